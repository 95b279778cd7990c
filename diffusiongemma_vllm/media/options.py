"""How pictures are shown to the model: ``mm_processor_kwargs`` of a server or of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from diffusiongemma_vllm.media.limits import VIDEO_TOKENS

BUDGETS = (70, 140, 280, 560, 1120)
MAX_FPS = 30.0
REFUSE, SPREAD = "refuse", "spread"


@dataclass(frozen=True)
class ImageOptions:
    """max_soft_tokens: most tokens of an image."""

    max_soft_tokens: int = 280


@dataclass(frozen=True)
class VideoOptions:
    """Which frames of a video are shown.

    max_soft_tokens: most tokens of a frame.  fps: frames shown for a second of video.
    num_frames: most frames shown.  longer: what becomes of a video that has more; "refuse", or
    "spread" num_frames over all of it.
    """

    max_soft_tokens: int = 70
    fps: float = 1.0
    num_frames: int = 60
    longer: str = REFUSE


@dataclass(frozen=True)
class MediaOptions:
    image: ImageOptions = field(default_factory=ImageOptions)
    video: VideoOptions = field(default_factory=VideoOptions)

    def changed(self, given: Mapping[str, Any] | None) -> MediaOptions:
        """These options with some changed.

        given: ``max_soft_tokens`` for images, or ``images_kwargs`` and ``videos_kwargs``, each an
            object with fields of the options above.

        Raises:
            ValueError: naming a key that is unknown or a value that is out of range.
        """
        image, video = self.image, self.video
        for key, value in (given or {}).items():
            if key == "max_soft_tokens":
                image = _changed(image, {key: value}, "mm_processor_kwargs")
            elif key == "images_kwargs":
                image = _changed(image, value, "images_kwargs")
            elif key == "videos_kwargs":
                video = _changed(video, value, "videos_kwargs")
            else:
                raise ValueError(
                    f"mm_processor_kwargs {key!r} is unknown; known are max_soft_tokens, "
                    "images_kwargs and videos_kwargs"
                )
        return MediaOptions(image, video)


Options = TypeVar("Options", ImageOptions, VideoOptions)


def _changed(options: Options, given: Any, owner: str) -> Options:
    if not isinstance(given, Mapping):
        raise ValueError(f"{owner} must be an object, got {given!r}")
    known = [each.name for each in fields(options)]
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{owner} {key!r} is unknown; known: {', '.join(known)}")
        wanted = _wanted(key, value)
        if wanted:
            raise ValueError(f"{owner} {key} must be {wanted}, got {value!r}")
    options = replace(options, **given)
    if isinstance(options, VideoOptions):
        _check_tokens(options)
    return options


def _wanted(key: str, value: Any) -> str | None:
    """What a value should have been; None where it is right."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key == "max_soft_tokens":
        right = number and value in BUDGETS and isinstance(value, int)
        return None if right else f"one of {', '.join(map(str, BUDGETS))}"
    if key == "fps":
        right = number and 0 < value <= MAX_FPS
        return None if right else f"above 0 and at most {MAX_FPS:g}"
    if key == "num_frames":
        right = number and isinstance(value, int) and 1 <= value <= VIDEO_TOKENS // min(BUDGETS)
        return None if right else f"a whole number from 1 to {VIDEO_TOKENS // min(BUDGETS)}"
    return None if value in (REFUSE, SPREAD) else f"{REFUSE!r} or {SPREAD!r}"


def _check_tokens(options: VideoOptions) -> None:
    if options.num_frames * options.max_soft_tokens > VIDEO_TOKENS:
        raise ValueError(
            f"videos_kwargs num_frames {options.num_frames} x max_soft_tokens "
            f"{options.max_soft_tokens} is more than the {VIDEO_TOKENS} tokens that a video may "
            "have; lower one of them"
        )
