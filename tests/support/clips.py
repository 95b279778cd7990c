"""Small video files, made with PyAV."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO

import av
import numpy as np


def flat(color, size=(64, 48)):
    return np.broadcast_to(np.array(color, np.uint8), (size[1], size[0], 3)).copy()


def clip(frames, *, container="mp4", codec=None, rate=24, times=None, base=None, **options):
    """A file of RGB frames [H, W, 3] u8; times in seconds where the rate varies.   ->  bytes"""
    codec = codec or {"mp4": "libx264", "webm": "libvpx-vp9"}[container]
    data = BytesIO()
    base = base or (Fraction(1, 1000) if times is not None else None)
    with av.open(data, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        fast = {"libx264": {"preset": "ultrafast", "qp": "10"},
                "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "10"}}
        stream.options = fast.get(codec, {}) | options
        stream.pix_fmt = "yuv420p"
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if k == 0:
                stream.width, stream.height = frame.width, frame.height
                if times is not None:
                    stream.codec_context.time_base = base
            if times is not None:
                frame.pts, frame.time_base = round(times[k] / base), base
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return data.getvalue()
