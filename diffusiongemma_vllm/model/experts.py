"""Which experts a layer gets: our kernels on a GPU, plain torch on CPU, or vLLM's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm import envs
from vllm.model_executor.layers.fused_moe import FusedMoEFactory
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.platforms import current_platform

from diffusiongemma_kernels import target
from diffusiongemma_kernels.formats.nvfp4 import BLOCK, E4M3_TINY, NVFP4, dequantize
from diffusiongemma_kernels.moe_gemm.op import lane, moe_unsummed
from diffusiongemma_kernels.moe_gemm.pack import pack
from diffusiongemma_kernels.moe_gemm.types import Arranged, Dense, Unsummed
from diffusiongemma_kernels.moe_gemm.types import Experts as Weights
from diffusiongemma_kernels.moe_gemm_fp4.op import moe_fp4, multiplies_fp4
from diffusiongemma_kernels.moe_gemm_fp4.types import Fp4
from diffusiongemma_vllm.model import selfcheck
from diffusiongemma_vllm.model.moe import Router, Routing, TorchExperts
from diffusiongemma_vllm.model.place import Place
from diffusiongemma_vllm.model.share import Share
from diffusiongemma_vllm.nvfp4 import Nvfp4ExpertsConfig

SIGN, NAN = 0x80, 0x7F  # bits of e4m3
# A row's rounding: of h and of each slot to BF16; of the activations to NVFP4.
BF16_ROUNDING, NVFP4_ROUNDING = 0.02, 0.5


def run_kernels(
    x: Tensor | Arranged, scores: Tensor, routing: Routing, gate_up: Weights, down: Weights
) -> Tensor | Unsummed:
    """x: [T, H]  scores: [T, E]  ->  [T, H], summed or not"""
    weights, ids = routing(scores)
    invariant = envs.VLLM_BATCH_INVARIANT
    return moe_unsummed(x, ids, weights, gate_up, down, batch_invariant=invariant)


class DenseExperts(TorchExperts):
    """The experts of a BF16 checkpoint by our kernels."""

    def __init__(self, config: Any, router: Router, share: Share) -> None:
        super().__init__(config, router, share)
        self.config = config
        self.quant_method = Prepare()  # vLLM calls it once the weights are there

    def prepare(self) -> None:
        """Prove the kernels on this GPU."""

        def weights(expert: int) -> tuple[Tensor, Tensor]:
            return self.gate_up_proj[expert].float(), self.down_proj[expert].float()

        selfcheck.check(
            self, weights, self.config, self.routing, limit=BF16_ROUNDING,
            device=self.down_proj.device,
        )

    def forward(  # type: ignore[override]
        self, x: Tensor, scores: Tensor
    ) -> Tensor | Unsummed:
        """x: [T, H]  scores: [T, E]  ->  [T, H], summed or not"""
        gate_up, down = Dense(self.gate_up_proj), Dense(self.down_proj)
        return run_kernels(x, scores, self.routing, gate_up, down)


class PackedExperts(nn.Module):
    """NVFP4 experts in the order in which our kernels read them."""

    def __init__(self, routing: Routing, gate_up: NVFP4, down: NVFP4) -> None:
        super().__init__()
        self.routing = routing
        self.gate_up, self.down = pack(*gate_up, gate_up=True), pack(*down, gate_up=False)

    def forward(self, x: Tensor | Arranged, scores: Tensor) -> Tensor | Unsummed:
        """x: [T, H]  scores: [T, E]  ->  [T, H], summed or not"""
        return run_kernels(x, scores, self.routing, self.gate_up, self.down)


class Fp4Experts(nn.Module):
    """NVFP4 experts as they are stored, whose activations are rounded to NVFP4 too."""

    def __init__(self, routing: Routing, gate_up: Fp4, down: Fp4) -> None:
        super().__init__()
        self.routing = routing
        self.gate_up, self.down = gate_up, down

    def forward(self, x: Tensor, scores: Tensor) -> Unsummed:
        """x: [T, H]  scores: [T, E]  ->  [T, H], summed or not"""
        weights, ids = self.routing(scores)
        invariant = envs.VLLM_BATCH_INVARIANT
        return moe_fp4(x, ids, weights, self.gate_up, self.down, batch_invariant=invariant)


class Nvfp4Experts(nn.Module):
    """The experts of a checkpoint in NVIDIA's layout.

    Loaded as they are stored, then turned once into what runs here.  E, F: experts and their width,
    of ``share``, whose part of the sum over experts comes out.
    gate_up_weight: [E, 2, F, H / 2] u8, gate first.  gate_up_weight_scale: [E, 2, F, H / 16] e4m3.
    gate_up_weight_scale_2, gate_up_input_scale: [E, 2] f32.
    down_weight: [E, H, F / 2] u8.  down_weight_scale: [E, H, F / 16] e4m3.
    down_weight_scale_2, down_input_scale: [E] f32.
    """

    gate_up_weight: Tensor
    gate_up_weight_scale: Tensor
    gate_up_weight_scale_2: Tensor
    down_weight: Tensor
    down_weight_scale: Tensor
    down_weight_scale_2: Tensor

    def __init__(
        self, config: Any, router: Router, share: Share, *, input_scales: bool
    ) -> None:
        super().__init__()
        H, width = config.hidden_size, config.moe_intermediate_size
        if H % BLOCK or width % BLOCK:
            raise ValueError(
                f"config.json: NVFP4 experts need hidden_size and moe_intermediate_size in "
                f"multiples of {BLOCK}, found {H} and {width}; serve the BF16 checkpoint instead"
            )
        E, F = share.count, share.width
        self.config, self.routing = config, Routing(config.top_k_experts, router, share)
        self.dtype = torch.get_default_dtype()  # vLLM sets it to the model's while it builds
        self.input_scales = input_scales
        self.checked = False
        for name, shape in {"gate_up": (E, 2, F, H), "down": (E, H, F)}.items():
            *lead, K = shape
            each = lead[:-1]
            self._hold(f"{name}_weight", *lead, K // 2, dtype=torch.uint8)
            self._hold(f"{name}_weight_scale", *lead, K // BLOCK, dtype=torch.float8_e4m3fn)
            self._hold(f"{name}_weight_scale_2", *each, dtype=torch.float32)
            if input_scales:
                self._hold(f"{name}_input_scale", *each, dtype=torch.float32)
        self.run: nn.Module | None = None
        self.quant_method = Prepare()  # vLLM calls it once the weights are there

    def _hold(self, name: str, *shape: int, dtype: torch.dtype) -> None:
        place = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
        self.register_parameter(name, place)

    def places(self) -> dict[str, Place]:
        """The checkpoint's names below ``experts.`` -> where they are loaded."""
        found, mine = {}, self.routing.share.experts
        for name, parameter in self.named_parameters():
            projection, _, leaf = name.removeprefix("gate_").partition("_")
            for expert in range(self.config.num_experts):
                held = mine.start <= expert < mine.stop
                place = parameter.data[expert - mine.start] if held else None
                if projection == "down":
                    found[f"{expert}.down_proj.{leaf}"] = self._place(place, leaf, down=True)
                    continue
                for i, half in enumerate(("gate_proj", "up_proj")):
                    part = None if place is None else place[i]
                    found[f"{expert}.{half}.{leaf}"] = self._place(part, leaf, down=False)
        return found

    def _place(self, tensor: Tensor | None, leaf: str, *, down: bool) -> Place:
        H, F = self.config.hidden_size, self.config.moe_intermediate_size
        rows, K = (H, F) if down else (F, H)
        packed = {"weight": (torch.uint8, 2), "weight_scale": (torch.float8_e4m3fn, BLOCK)}
        if leaf not in packed:
            return Place(tensor, (), torch.float32)
        dtype, each = packed[leaf]
        mine = self.routing.share.columns
        columns = slice(mine.start // each, mine.stop // each)
        return Place(
            tensor, (rows, K // each), dtype,
            (lambda whole: whole[:, columns]) if down else (lambda whole: whole[mine]),
        )

    def gate_up(self) -> NVFP4:
        """codes [E, 2 F, H / 2], scales [E, 2 F, H / 16], global scale [E]"""
        return NVFP4(
            self.gate_up_weight.flatten(1, 2), self.gate_up_weight_scale.flatten(1, 2),
            self.gate_up_weight_scale_2[:, 0].contiguous(),
        )

    def down(self) -> NVFP4:
        """codes [E, H, F / 2], scales [E, H, F / 16], global scale [E]"""
        return NVFP4(self.down_weight, self.down_weight_scale, self.down_weight_scale_2)

    def with_input_scales(self) -> tuple[Fp4, Fp4]:
        """Gate and up, and down, with their activations' scales [E]."""
        gate_up_input: Tensor = self.gate_up_input_scale  # type: ignore[assignment]
        down_input: Tensor = self.down_input_scale  # type: ignore[assignment]
        return (
            Fp4(*self.gate_up(), gate_up_input[:, 0].contiguous()),
            Fp4(*self.down(), down_input),
        )

    def check(self, checkpoints_name: str) -> None:
        """Raises ValueError naming the first expert whose scales cannot be."""

        first = self.routing.share.experts.start

        def complain(local: int, what: str) -> None:
            expert = first + local
            raise ValueError(
                f"checkpoint: {checkpoints_name}.{expert}: {what}. Quantise the checkpoint again "
                "(diffusiongemma-vllm quantize) or download it again."
            )

        for name, scales in self.named_parameters():
            if scales.is_meta:
                return
            if scales.dtype == torch.float8_e4m3fn:
                bits = scales.view(torch.uint8)
                bad = (bits >= SIGN) | (bits & NAN == NAN)
                what = "must not be negative or NaN"
            elif scales.dtype == torch.float32:
                bad = ~(torch.isfinite(scales) & (scales > 0))
                what = "must be a positive number"
            else:
                continue
            if bool(bad.any()):
                complain(int(bad.reshape(len(bad), -1).any(1).nonzero()[0]), f"{name} {what}")
        for leaf in ("weight_scale_2", "input_scale")[: 1 + self.input_scales]:
            gate, up = getattr(self, f"gate_up_{leaf}").unbind(1)
            if not torch.equal(gate, up):
                e = int((gate != up).nonzero()[0])
                two = f"{gate[e].item()} and {up[e].item()}"
                complain(e, f"gate_proj and up_proj must have one {leaf}, found {two}")
        self.checked = True

    def prepare(self) -> None:
        """Turn the loaded tensors into what runs here, and let go of them."""
        if self.run is not None or self.gate_up_weight.is_meta:
            return
        if not self.checked:
            self._correct_dummy()
        if not self.gate_up_weight.is_cuda:
            self.run = self._dense()
        elif self.input_scales and multiplies_fp4(target.of(self.gate_up_weight.device).capability):
            self.run = Fp4Experts(self.routing, *self.with_input_scales())
        else:
            self.run = PackedExperts(self.routing, self.gate_up(), self.down())
        if self.gate_up_weight.is_cuda:
            self._prove(self.run)
        for name in [name for name, _ in self.named_parameters(recurse=False)]:
            delattr(self, name)

    def _prove(self, run: nn.Module) -> None:
        """Keeps what was loaded in the host's memory until the comparison is made."""
        device = self.gate_up_weight.device
        if selfcheck.known(run, device):
            return
        gate_up, down = ([part.cpu() for part in w] for w in (self.gate_up(), self.down()))

        def weights(expert: int) -> tuple[Tensor, Tensor]:
            parts = ([part[expert].to(device) for part in w] for w in (gate_up, down))
            both = (dequantize(NVFP4(*each)) for each in parts)
            return next(both).float(), next(both).float()

        selfcheck.check(
            run, weights, self.config, self.routing, device=device,
            limit=NVFP4_ROUNDING if isinstance(run, Fp4Experts) else BF16_ROUNDING,
        )

    def _correct_dummy(self) -> None:
        """Load format ``dummy`` draws numbers around zero, of which no scale can be negative."""
        for parameter in self.parameters():
            if parameter.dtype != torch.uint8:
                least = E4M3_TINY if parameter.dtype == torch.float8_e4m3fn else 1e-6
                parameter.data.copy_(parameter.data.float().nan_to_num(1.0).abs().clamp(min=least))

    def _dense(self) -> TorchExperts:
        """Plain torch with the same numbers, expert by expert."""
        with torch.device(self.down_weight.device):
            experts = TorchExperts(
                self.config, self.routing.router, self.routing.share, self.dtype
            )
        for ours, theirs in ((experts.gate_up_proj, self.gate_up()),
                             (experts.down_proj, self.down())):
            for e in range(len(ours)):
                ours[e].copy_(dequantize(NVFP4(*(part[e] for part in theirs))))
        return experts

    def lane(self) -> int:
        """How ``norms.enter`` arranges x for them, 0 for not at all."""
        whole = self.config.hidden_size % 64 == 0
        if not (whole and isinstance(self.run, PackedExperts)):
            return 0
        return lane(target.of(self.run.gate_up.codes.device).capability)

    def forward(self, x: Tensor | Arranged, scores: Tensor) -> Tensor | Unsummed:
        """x: [T, H]  scores: [T, E]  ->  [T, H], summed or not"""
        assert self.run is not None, "the experts' weights are not loaded"
        return self.run(x, scores)


OurExperts = TorchExperts | Nvfp4Experts


class Prepare(QuantizeMethodBase):
    """The moment after loading, with real weights or a dummy's."""

    def create_weights(self, layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("the experts make their own parameters")

    def apply(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError("the experts run themselves")

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        assert isinstance(layer, (DenseExperts, Nvfp4Experts))
        layer.prepare()


def build_experts(config: Any, router: Router, quant_config: Any, prefix: str) -> nn.Module:
    """Ours for BF16 and for NVFP4 experts, and for everything on CPU; vLLM's for the rest.

    The rest, on a GPU: other quantised formats, and weights served in FP16 or FP32.  vLLM's give
    out the sum over all ranks, ours this rank's part of it.
    """
    share = Share.here(config)
    if isinstance(quant_config, Nvfp4ExpertsConfig):
        scaled = quant_config.description.input_scales
        return Nvfp4Experts(config, router, share, input_scales=scaled)
    if current_platform.is_cpu():
        return TorchExperts(config, router, share)
    if quant_config is None and torch.get_default_dtype() == torch.bfloat16:
        return DenseExperts(config, router, share)
    return FusedMoEFactory(
        num_experts=config.num_experts,
        top_k=config.top_k_experts,
        hidden_size=config.hidden_size,
        intermediate_size=config.moe_intermediate_size,
        renormalize=True,
        quant_config=quant_config,
        prefix=prefix,
        custom_routing_function=router.route,
        activation="gelu_tanh",
    )
