"""What a media file may cost, and the error that says which limit it broke."""

from __future__ import annotations

MIB = 1 << 20
IMAGE_BYTES = 64 * MIB  # of an encoded image
IMAGE_PIXELS = 50_000_000  # decoded, laid on white and turned: 420 MB at most
CANVAS_PIXELS = 25_000_000  # of WebP and AVIF, whose decoders keep several canvases: as much
VIDEO_BYTES = 256 * MIB  # of an encoded video
FRAME_BYTES = 26_000_000  # of a decoded frame: 3840 x 2160 at 10 bits; a decoder keeps up to 17
VIDEO_PACKETS = 50_000  # of the whole file, and so of frames decoded
VIDEO_TOKENS = 32_768  # soft tokens of one video: 226 MB of pixels


class MediaError(ValueError):
    """A file that is not shown to the model; says what is wrong with it and what to do."""


def cause(error: BaseException) -> str:
    """What a decoder said of a file, short enough for a ``MediaError``."""
    return str(error)[:120] or type(error).__name__


def check_size(count: int, limit: int, kind: str) -> None:
    """Raises MediaError for an encoded file of ``count`` bytes that is empty or too large."""
    if count == 0:
        raise MediaError(f"the {kind} is empty (0 bytes); check what was sent")
    if count > limit:
        raise MediaError(
            f"the {kind} has {count:,} bytes, more than the {limit:,} that are decoded; send a "
            "smaller file"
        )
