"""What a caller may hand over as a picture or a video, brought into few forms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataParser

from diffusiongemma_vllm.media.clips import Clip, Frames
from diffusiongemma_vllm.media.images import read_image, to_rgb
from diffusiongemma_vllm.media.limits import MediaError
from diffusiongemma_vllm.media.options import MediaOptions, VideoOptions
from diffusiongemma_vllm.media.pixels import Patches, Tiling, patches
from diffusiongemma_vllm.runner.media import IMAGE, VIDEO, Encoded, refused


@dataclass(frozen=True)
class Shown:
    """Frames that a caller decoded, all of which are shown.  seconds: when, from the start."""

    frames: tuple[Image.Image, ...]
    seconds: tuple[int, ...]

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from others in vLLM's caches."""
        return {"frames": [np.asarray(frame) for frame in self.frames], "seconds": self.seconds}


class PictureItems(ModalityDataItems[Sequence[Any], Any]):
    """Items of one modality: None where only a cached item is named."""

    def get_count(self) -> int:
        return len(self.data)

    def get(self, index: int) -> Any:
        return self.data[index]

    def get_item_for_hash(self, index: int) -> object:
        item = self.data[index]
        if isinstance(item, Encoded):
            return item.data
        return item.key if isinstance(item, Shown) else item

    def get_processor_data(self) -> Mapping[str, object]:
        return {self.modality: self.get_all()}

    def get_passthrough_data(self) -> Mapping[str, object]:
        return {}


class PictureParser(MultiModalDataParser):
    """vLLM's parser of ``multi_modal_data``, for our items."""

    def _parse_image_data(self, data: Any) -> PictureItems:
        many = isinstance(data, list | tuple)
        return PictureItems([image_item(one) for one in (data if many else [data])], "image")

    def _parse_video_data(self, data: Any) -> PictureItems:
        frames = isinstance(data, list) and bool(data) and isinstance(data[0], Image.Image)
        many = isinstance(data, list) and not frames
        return PictureItems([video_item(one) for one in (data if many else [data])], "video")

    def _get_subparsers(self) -> Mapping[str, Any]:
        return {"image": self._parse_image_data, "video": self._parse_video_data}


def image_item(data: Any) -> Encoded | Image.Image | None:
    """An item of bytes of a file, a Pillow image or an array [H, W, 3] u8.

    Raises:
        VLLMValidationError: for anything else, and for what will not be decoded.
    """
    if isinstance(data, MediaWithBytes):
        data = data.original_bytes
    if isinstance(data, bytes):
        return IMAGE.accept(data)
    if data is None or (isinstance(data, Encoded) and data.kind == "image"):
        return data
    try:
        return _picture(data)
    except MediaError as error:
        raise refused(error, "image") from None


def video_item(data: Any) -> Encoded | Shown | None:
    """An item of bytes of a file, or of frames: Pillow images or an array [F, H, W, 3] u8.

    Frames stand a second apart, or where a dict beside them says: ``fps`` and ``frames_indices``.

    Raises:
        VLLMValidationError: for anything else, and for what will not be decoded.
    """
    if isinstance(data, MediaWithBytes):
        data = data.original_bytes
    if isinstance(data, bytes):
        return VIDEO.accept(data)
    if data is None or isinstance(data, Shown) or (
        isinstance(data, Encoded) and data.kind == "video"
    ):
        return data
    frames, told = data if isinstance(data, tuple) and len(data) == 2 else (data, {})
    try:
        if not isinstance(frames, list | np.ndarray) or not isinstance(told, Mapping):
            raise MediaError(f"a video must be bytes or frames, got {type(frames).__name__}")
        pictures = tuple(_picture(frame) for frame in frames)
        return Shown(pictures, _seconds(told, len(pictures)))
    except MediaError as error:
        raise refused(error, "video") from None


def _seconds(told: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """When each of ``count`` frames stands."""
    rate, indices = told.get("fps", 1), told.get("frames_indices", range(count))
    try:
        if count and len(indices) == count and rate > 0:
            return tuple(math.floor(index / rate) for index in indices)
    except (TypeError, ValueError, OverflowError):  # no numbers, NaN, infinity
        pass
    raise MediaError("a video needs a frame, an fps above 0 and an index for every frame")


def _picture(data: Any) -> Image.Image:
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 3 and (
        data.shape[2] == 3
    ):
        data = Image.fromarray(np.ascontiguousarray(data))
    if not isinstance(data, Image.Image):
        raise MediaError(
            f"a picture must be bytes, a Pillow image or an array [height, width, 3] of uint8, got "
            f"{type(data).__name__}"
        )
    return to_rgb(data)


def image_patches(item: Encoded | Image.Image, options: MediaOptions, tiling: Tiling) -> Patches:
    """Raises MediaError for a damaged file."""
    picture = read_image(item.data) if isinstance(item, Encoded) else item
    return patches(picture, options.image.max_soft_tokens, tiling)


def video_clip(item: Encoded | Shown, options: VideoOptions, tiling: Tiling) -> Clip:
    """Raises MediaError for a damaged file, or more frames than are shown."""
    if isinstance(item, Encoded):
        from diffusiongemma_vllm.media.videos import read_video

        return read_video(item.data, options, tiling)
    if len(item.frames) > options.num_frames:
        raise MediaError(
            f"the video has {len(item.frames)} frames, more than {options.num_frames}; send fewer "
            "or raise videos_kwargs num_frames"
        )
    first = patches(item.frames[0], options.max_soft_tokens, tiling)
    frames = Frames(len(item.frames), first)
    for frame in item.frames:
        frames.add(patches(frame, options.max_soft_tokens, tiling))
    return Clip(frames.values, item.seconds, frames.rows, frames.columns)
