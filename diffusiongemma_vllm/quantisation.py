"""How a checkpoint's weights are stored, as its config says it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

NVFP4, NVFP4_WEIGHTS = "NVFP4", "W4A16_NVFP4"
BLOCK = 16
LAYER = "model.decoder.layers.0"
EXPERT = f"{LAYER}.experts.0.gate_proj"
DENSE = (  # one module of every kind that is not an expert
    f"{LAYER}.self_attn.q_proj", f"{LAYER}.mlp.gate_proj", f"{LAYER}.router.proj",
    "model.decoder.self_conditioning.gate_proj", "model.encoder.embed_vision.embedding_projection",
    "model.encoder.vision_tower.encoder.layers.0.mlp.up_proj.linear",
)


@dataclass(frozen=True)
class Quantisation:
    """What ``quantization_config`` of config.json, or hf_quant_config.json, says."""

    method: str  # the tool's name in vLLM: modelopt, compressed-tensors, ...
    algorithm: str | None  # ModelOpt's name for the format
    group_size: int | None
    excluded: tuple[str, ...]  # patterns of module names

    def excludes(self, module: str) -> bool:
        return any(fnmatchcase(module, pattern) for pattern in self.excluded)

    @property
    def nvfp4_experts(self) -> bool:
        """NVIDIA's layout: the experts in NVFP4, everything else as in the BF16 checkpoint."""
        return (
            self.method.startswith("modelopt")
            and self.algorithm in (NVFP4, NVFP4_WEIGHTS)
            and self.group_size == BLOCK
            and not self.excludes(EXPERT)
            and all(self.excludes(module) for module in DENSE)
        )

    @property
    def input_scales(self) -> bool:
        """True where activations were calibrated too, and every projection has its scale."""
        return self.algorithm == NVFP4

    def __str__(self) -> str:
        return f"{self.method} {self.algorithm}" if self.algorithm else self.method


def read(config: Mapping[str, Any]) -> Quantisation:
    """Read ``quantization_config`` of config.json, or the content of hf_quant_config.json."""
    inner = config.get("quantization")
    fields = inner if isinstance(inner, Mapping) else config
    algorithm = fields.get("quant_algo")
    return Quantisation(
        method=str(config.get("quant_method") or ("modelopt" if algorithm else "unknown")),
        algorithm=None if algorithm is None else str(algorithm).upper(),
        group_size=fields.get("group_size", _group_size(fields.get("config_groups"))),
        excluded=tuple(_texts(fields.get("exclude_modules", fields.get("ignore")))),
    )


def _group_size(groups: Any) -> int | None:
    """The weights' in ModelOpt's ``config_groups``, where all groups agree."""
    sizes = set()
    for group in groups.values() if isinstance(groups, Mapping) else ():
        sizes.add((group.get("weights") or {}).get("group_size"))
    return sizes.pop() if len(sizes) == 1 else None


def _texts(value: Any) -> Iterable[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []
