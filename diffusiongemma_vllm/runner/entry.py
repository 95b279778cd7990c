"""The class that vLLM resolves ``DiffusionGemmaForBlockDiffusion`` to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models.interfaces import (
    SupportsLoRA,
    SupportsMultiModal,
    SupportsQuant,
)
from vllm.model_executor.models.utils import WeightsMapper, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from diffusiongemma_vllm.model.backbone import Backbone
from diffusiongemma_vllm.model.load import ExpertLoad
from diffusiongemma_vllm.model.loading import load
from diffusiongemma_vllm.model.vision import Picture, Vision
from diffusiongemma_vllm.model.vocabulary import Vocabulary
from diffusiongemma_vllm.model.weights import PACKED

PLACEHOLDERS = {"image": "<|image|>", "video": "<|video|>"}


def _info(ctx: Any) -> Any:
    from diffusiongemma_vllm.runner.pictures import PictureInfo

    return PictureInfo(ctx)


def _dummies(info: Any) -> Any:
    from diffusiongemma_vllm.runner.pictures import PictureDummies

    return PictureDummies(info)


def _processor(info: Any, dummy_inputs: Any) -> Any:
    from diffusiongemma_vllm.runner.pictures import PictureProcessor

    return PictureProcessor(info, dummy_inputs)


@MULTIMODAL_REGISTRY.register_processor(_processor, info=_info, dummy_inputs=_dummies)
class DiffusionGemmaForBlockDiffusion(nn.Module, SupportsMultiModal, SupportsQuant, SupportsLoRA):
    """DiffusionGemma: a Gemma-4 mixture of experts that denoises canvases of text."""

    # For the quantisation config and LoRA adapters, whose module names are the checkpoint's.
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.decoder.": "model.",
            "model.encoder.language_model.": "model.",
            "model.encoder.vision_tower.": "vision.tower.",
            "model.encoder.embed_vision.": "vision.projector.",
        }
    )
    packed_modules_mapping = PACKED
    is_3d_moe_weight = True  # read with --enable-lora; experts are never adapted

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        hf_config = vllm_config.model_config.hf_config
        self.config = hf_config  # read with --enable-lora
        self.text_config = vllm_config.model_config.hf_text_config
        self.model = Backbone(
            self.text_config, cache_config=vllm_config.cache_config,
            quant_config=vllm_config.quant_config, prefix=maybe_prefix(prefix, "model"),
        )
        vision_config = getattr(hf_config, "vision_config", None)
        self.expert_load = ExpertLoad(self.model)
        self.vision = Vision(vision_config, self.text_config) if vision_config else None

    @staticmethod
    def get_model_state_cls() -> type:
        from diffusiongemma_vllm.runner import pages
        from diffusiongemma_vllm.runner.model_state import DiffusionGemmaModelState

        pages.install()
        return DiffusionGemmaModelState

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return PLACEHOLDERS.get(modality)

    def embed_input_ids(  # type: ignore[override]  # pictures come in by ``forward``
        self, input_ids: Tensor
    ) -> Tensor:
        return self.model.embed(input_ids)

    def embed_multimodal(self, **inputs: Any) -> list[Tensor]:
        """One modality of ``runner/pictures.py``'s fields.   ->  soft tokens of each item"""
        assert self.vision is not None, "without a tower no modality is supported"
        if "image_patches" in inputs:
            fields = zip(inputs["image_patches"], inputs["image_grid"].tolist(), strict=True)
            return self.vision([Picture(values, *grid) for values, grid in fields])
        fields = zip(inputs["video_patches"], inputs["video_grid"].tolist(), strict=True)
        clips = [[Picture(values, *grid) for values in frames] for frames, grid in fields]
        shown = iter(self.vision([frame for frames in clips for frame in frames]))
        return [torch.cat([next(shown) for _ in frames]) for frames in clips]

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        soft: Tensor | None = None,
        denoising: Tensor | None = None,
        features: Tensor | None = None,
        pictured: Tensor | None = None,
    ) -> Tensor:
        """input_ids, positions: [T] i64  soft: [T, H]  denoising: [T] bool  ->  [T, H]

        features: [F, H], soft tokens of pictures, of the rows ``pictured`` [F] i64.
        """
        x = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        if features is not None and pictured is not None:
            x = x.index_copy(0, pictured, features)
        return self.model(x, positions, soft, denoising)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Hands the hidden states [R, H] on: the sampler projects them a few canvases at a time."""
        return hidden_states

    @property
    def vocabulary(self) -> Vocabulary:
        """The tied embedding."""
        return self.model.embed_tokens

    def project(self, hidden_states: Tensor) -> Tensor:
        """The product with the tied embedding, before the softcap.   [R, H]  ->  [R, V]"""
        return self.vocabulary.project_all(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return load(self, self.text_config, weights)
