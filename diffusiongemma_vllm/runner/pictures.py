"""vLLM's multimodal processor for DiffusionGemma: media in, patches and placeholders out.

``<|image|>`` becomes ``<|image>`` soft tokens ``<image|>``, and ``<|video|>`` becomes
``mm:ss <|image>`` soft tokens ``<image|>`` for every frame, joined by spaces.
Source: transformers' ``Gemma4Processor``, which needs torchvision and is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)
from vllm.multimodal.processing.inputs import ProcessorInputs

from diffusiongemma_vllm.media.limits import MediaError
from diffusiongemma_vllm.media.options import BUDGETS, ImageOptions, MediaOptions
from diffusiongemma_vllm.media.pixels import Tiling
from diffusiongemma_vllm.runner.items import PictureParser, Shown, image_patches, video_clip
from diffusiongemma_vllm.runner.media import refused

VIDEO_TOKEN = "<|video|>"


def served_options(model_config: Any) -> MediaOptions:
    """The checkpoint's options with the server's ``--mm-processor-kwargs``.

    Raises:
        ValueError: for an unknown key or a value out of range.
    """
    budget = getattr(model_config.hf_config, "vision_soft_tokens_per_image", None)
    options = MediaOptions(ImageOptions(budget or ImageOptions.max_soft_tokens))
    return options.changed(model_config.multimodal_config.mm_processor_kwargs)


class PictureInfo(BaseProcessingInfo):
    @cached_property
    def served(self) -> MediaOptions:
        return served_options(self.ctx.model_config)

    @cached_property
    def tiling(self) -> Tiling:
        vision = self.get_hf_config().vision_config
        return Tiling(vision.patch_size, vision.pooling_kernel_size, vision.position_embedding_size)

    @cached_property
    def largest(self) -> int:
        """The largest budget whose square pictures the tower has positions for."""
        side = self.tiling.positions // self.tiling.pool
        return max(budget for budget in BUDGETS if budget <= side**2 or budget == min(BUDGETS))

    @cached_property
    def video_token(self) -> int | None:
        """None where there is no tokenizer to write timestamps with, or none that knows videos."""
        tokenizer = self.ctx.tokenizer
        return None if tokenizer is None else tokenizer.get_vocab().get(VIDEO_TOKEN)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        if getattr(self.get_hf_config(), "vision_config", None) is None:
            return {}
        return {"image": None} if self.video_token is None else {"image": None, "video": None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        video = self.served.video
        most = {"image": self.largest, "video": video.num_frames * video.max_soft_tokens}
        return {name: most[name] for name in mm_counts}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {}

    def get_data_parser(self) -> PictureParser:
        return PictureParser()


class PictureDummies(BaseDummyInputsBuilder[PictureInfo]):
    """The largest media, for measuring memory; drawn at their final size."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return "<|image|>" * mm_counts.get("image", 0) + VIDEO_TOKEN * mm_counts.get("video", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any
    ) -> dict[str, Any]:
        video = self.info.served.video
        frames = [self._picture(video.max_soft_tokens)] * video.num_frames
        shown = Shown(tuple(frames), tuple(range(len(frames))))
        return {
            "image": [self._picture(self.info.largest)] * mm_counts.get("image", 0),
            "video": [shown] * mm_counts.get("video", 0),
        }

    def _picture(self, tokens: int) -> Image.Image:
        rows = next(n for n in range(int(tokens**0.5), 0, -1) if tokens % n == 0)
        side = self.info.tiling.side
        return Image.new("RGB", (tokens // rows * side, rows * side))


class PictureProcessor(BaseMultiModalProcessor[PictureInfo]):
    requires_tokenizer = False

    def get_dummy_inputs(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any
    ) -> ProcessorInputs:
        config = self.info.get_hf_config()
        prompt = [config.image_token_id] * mm_counts.get("image", 0)
        if self.info.video_token is not None:
            prompt += [self.info.video_token] * mm_counts.get("video", 0)
        data = self.dummy_inputs.get_dummy_mm_data(seq_len, mm_counts, mm_options)
        items = self.info.parse_mm_data({k: v for k, v in data.items() if v}, validate=False)
        return ProcessorInputs(
            prompt, items, hf_processor_mm_kwargs={"max_soft_tokens": self.info.largest}
        )

    def _options(self, given: Mapping[str, object]) -> MediaOptions:
        try:
            return self.info.served.changed(given)
        except ValueError as error:
            raise VLLMValidationError(str(error), parameter="mm_processor_kwargs") from None

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> Any:
        self._options(inputs.hf_processor_mm_kwargs)  # also where all media are cached
        return super().apply(inputs, timing_ctx)

    def _apply_hf_processor_main(
        self, mm_items: Any, hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        options, tiling = self._options(hf_kwargs), self.info.tiling
        images, clips = [], []
        try:
            for item in mm_items.get("image", ()):
                images.append(image_patches(item, options, tiling))
        except MediaError as error:
            raise refused(error, "image") from None
        try:
            for item in mm_items.get("video", ()):
                clips.append(video_clip(item, options.video, tiling))
        except MediaError as error:
            raise refused(error, "video") from None
        return BatchFeature({
            "image_patches": [torch.from_numpy(one.values) for one in images],
            "image_grid": [torch.tensor([one.rows, one.columns]) for one in images],
            "video_patches": [torch.from_numpy(one.values) for one in clips],
            "video_grid": [torch.tensor([one.rows, one.columns]) for one in clips],
            "video_seconds": [torch.tensor(one.seconds) for one in clips],
        })

    def _matched_updates_from_result(self, mm_prompt_updates: Any, match_result: Any) -> Any:
        for kind, places in match_result.items():
            if None in places:
                raise VLLMValidationError(
                    f"the chat template shows no {kind} where one stands in the messages (in "
                    "system messages, for example); put it into a message of the user",
                    parameter="messages",
                )
        return super()._matched_updates_from_result(mm_prompt_updates, match_result)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        batched = MultiModalFieldConfig.batched
        return {
            "image_patches": batched("image"),
            "image_grid": batched("image", keep_on_cpu=True),
            "video_patches": batched("video"),
            "video_grid": batched("video", keep_on_cpu=True),
            "video_seconds": batched("video", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        config = self.info.get_hf_config()
        begin, end = config.boi_token_id, config.eoi_token_id
        image, video = config.image_token_id, self.info.video_token or 0

        def framed(token: int, grid: Any) -> list[int]:
            return [begin, *[token] * int(grid.prod()), end]

        def for_image(index: int) -> PromptUpdateDetails:
            grid = out_mm_kwargs["image"][index]["image_grid"].data
            return PromptUpdateDetails.select_token_id(framed(image, grid), image)

        def for_video(index: int) -> PromptUpdateDetails:
            item = out_mm_kwargs["video"][index]
            frame = framed(video, item["video_grid"].data)
            tokens: list[int] = []
            for k, second in enumerate(item["video_seconds"].data.tolist()):
                tokens += self._written(f"{' ' if k else ''}{timestamp(second)} ") + frame
            return PromptUpdateDetails.select_token_id(tokens, video)

        updates = [
            PromptReplacement("image", [image], for_image),
            PromptReplacement("video", [video], for_video),
        ]
        return [update for update in updates if update.modality in mm_items]

    def _written(self, text: str) -> list[int]:
        return self.info.get_tokenizer().encode(text, add_special_tokens=False)


def timestamp(seconds: int) -> str:
    """mm:ss"""
    return f"{seconds // 60:02d}:{seconds % 60:02d}"
