"""Video files: which frames are shown, decoded as a stream of which only those are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

import av
from PIL import Image

from diffusiongemma_vllm.media.clips import Clip, Frames
from diffusiongemma_vllm.media.limits import (
    FRAME_BYTES,
    VIDEO_BYTES,
    VIDEO_PACKETS,
    MediaError,
    cause,
    check_size,
)
from diffusiongemma_vllm.media.options import SPREAD, VideoOptions
from diffusiongemma_vllm.media.pixels import Tiling, patches

# The demuxer is named, never guessed: playlists and the like would open other files.
MP4, WEBM = "mp4", "matroska"
EBML = b"\x1aE\xdf\xa3"
BOUND = {"max_pixels": str(FRAME_BYTES * 8 // 12), "threads": "1"}  # 12 bits: 8-bit 4:2:0
LATE = 1.0  # seconds that a file may end before its header says
EDGE = 1e-3  # seconds; a frame this little before its time is in time
BROKEN = (av.error.FFmpegError, EOFError, OverflowError, UnicodeDecodeError)
TURNS = {
    90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270,
}


class Span(NamedTuple):
    """From the first shown frame to the end of the last, in seconds of the file's clock."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def check_video(data: bytes) -> None:
    """Look at a file's size and header.

    Raises:
        MediaError: for what will not be decoded, with the reason.
    """
    with _opened(data):
        pass


def read_video(data: bytes, options: VideoOptions, tiling: Tiling) -> Clip:
    """Decode the frames that ``options`` ask for.

    A frame stands for the time that it is on the screen; time begins with the first frame.

    Raises:
        MediaError: for a file that is refused or damaged, with the reason.
    """
    with _opened(data) as container:
        span = _measure(container)
    times = sample_times(span.seconds, options)
    frames: Frames | None = None
    with _opened(data) as container:
        for picture in _pictures(container, [span.start + time for time in times]):
            cut = patches(picture, options.max_soft_tokens, tiling)
            frames = frames or Frames(len(times), cut)
            frames.add(cut)
    if frames is None:
        raise MediaError("the video holds no frame that can be decoded; is it whole?")
    seconds = tuple(math.floor(time + EDGE) for time in times[: frames.count])
    return Clip(frames.values[: frames.count], seconds, frames.rows, frames.columns)


def sample_times(seconds: float, options: VideoOptions) -> list[float]:
    """When the frames that are shown stand, from the start of a video of so many seconds.

    Raises:
        MediaError: where they are more than allowed.
    """
    count = max(1, math.ceil(seconds * options.fps - EDGE))
    if count <= options.num_frames:
        return [k / options.fps for k in range(count)]
    if options.longer == SPREAD:
        return [k * seconds / options.num_frames for k in range(options.num_frames)]
    raise MediaError(
        f"the video lasts {seconds:.1f} s, which is {count} frames at {options.fps:g} a second, "
        f"more than {options.num_frames}; cut it, or send mm_processor_kwargs "
        '{"videos_kwargs": {"longer": "spread"}} (or a lower fps, or more num_frames)'
    )


@contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    """A container whose first video stream is one that will be decoded."""
    check_size(len(data), VIDEO_BYTES, "video")
    try:
        container = av.open(
            BytesIO(data), format=_format(data), metadata_errors="replace", options=BOUND
        )
    except BROKEN as error:
        raise MediaError(f"the video has a damaged header ({cause(error)}); is it whole?") from None
    try:
        if not container.streams.video:
            raise MediaError("the file holds no pictures, only sound or other streams")
        _check_stream(container.streams.video[0])
        yield container
    except BROKEN as error:
        raise MediaError(f"the video cannot be decoded ({cause(error)}); is it whole?") from None
    finally:
        container.close()


def _format(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return MP4
    if data.startswith(EBML):
        return WEBM
    raise MediaError("the video is neither MP4 nor WebM, or is damaged; encode it as one of them")


def _check_stream(stream: Any) -> None:
    context = stream.codec_context
    if context is None:
        raise MediaError("the video has a codec that is not known here; use H.264, H.265, VP9, AV1")
    width, height, kind = context.width, context.height, context.pix_fmt
    if width <= 0 or height <= 0:
        raise MediaError("the video has no frame size; is it whole?")
    bits = av.VideoFormat(kind, width, height).padded_bits_per_pixel if kind else 12
    size = width * height * bits // 8
    if size > FRAME_BYTES:
        raise MediaError(
            f"a frame of the video has {width} x {height} pixels, {size:,} bytes, more than the "
            f"{FRAME_BYTES:,} that are decoded; scale it down"
        )
    if not context.is_open:
        context.options = BOUND | {"max_pixels": str(FRAME_BYTES * 8 // bits)}


def _measure(container: Any) -> Span:
    """The span of the frames, from all packets of the file; nothing is decoded.

    Packets that an edit list cuts off are marked, and decode to nothing.
    """
    stream = container.streams.video[0]
    start, end, count, last = math.inf, -math.inf, 0, 0.0
    for count, packet in enumerate(container.demux(), 1):
        if count > VIDEO_PACKETS:
            raise MediaError(f"the video has more than {VIDEO_PACKETS:,} packets; cut it")
        if packet.pts is None or packet.time_base is None:
            continue
        begin = float(packet.pts * packet.time_base)
        stop = begin + float((packet.duration or 0) * packet.time_base)
        last = max(last, stop)
        if packet.stream.index == stream.index and not packet.is_discard:
            start, end = min(start, begin), max(end, stop)
    if end < start:
        raise MediaError("the video holds no frames")
    told = (container.duration or 0) / av.time_base
    if told - last > LATE:
        raise MediaError(
            f"the video ends after {last:.1f} s where its header says {told:.1f} s; is it whole?"
        )
    rate = stream.average_rate
    return Span(start, max(end, start + (1 / float(rate) if rate else 0.0)))


def _pictures(container: Any, times: list[float]) -> Iterator[Image.Image]:
    """The picture on the screen at each of ``times``, which rise."""
    waiting, held, drawn = iter(times), None, None
    time = next(waiting, None)
    for frame in container.decode(video=0):
        begin = None if frame.pts is None else float(frame.pts * frame.time_base)
        while time is not None and held is not None and (begin is None or begin > time + EDGE):
            drawn = drawn or _picture(held)
            yield drawn
            time = next(waiting, None)
        if time is None:
            return
        held, drawn = frame, None
    while time is not None and held is not None:
        drawn = drawn or _picture(held)
        yield drawn
        time = next(waiting, None)


def _picture(frame: Any) -> Image.Image:
    picture: Image.Image = frame.to_image()
    turn = TURNS.get(round(frame.rotation) % 360)
    return picture if turn is None else picture.transpose(turn)
