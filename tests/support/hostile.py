"""Files that claim to be pictures or videos and must be refused: each small, none decoded."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache

import av
import numpy as np
from clips import clip, flat
from pictures import encoded, noise
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth=8, color=2, data=b"", *extra):
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return PNG + b"".join(parts)


def bmp(width, height):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 30, 0, 0, 54) + head + b"\0" * 30


def tiff(width, height):
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1),
            (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, width)]
    body = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags
    )
    return b"II*\0" + struct.pack("<I", 8) + body + b"\0\0\0\0"


def jpeg_of(width, height, data):
    """A JPEG whose header says another size."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def gif_of(width, height, data):
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def sound(container, codec):
    data = io.BytesIO()
    with av.open(data, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        for _ in range(20):
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return data.getvalue()


def no_frames(container):
    data = io.BytesIO()
    with av.open(data, "w", format=container) as output:
        stream = output.add_stream({"mp4": "libx264", "webm": "libvpx-vp9"}[container], rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()
    return data.getvalue()


def entry_of(width, height, data):
    """An MP4 whose sample description says another size."""
    at = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    return data[:at] + struct.pack(">HH", width, height) + data[at + 4 :]


@cache
def images() -> dict[str, bytes]:
    small = noise(60, 40)
    png_file, jpeg, gif = (encoded(small, kind) for kind in ("PNG", "JPEG", "GIF"))
    webp, avif, tif = (encoded(small, kind) for kind in ("WEBP", "AVIF", "TIFF"))
    bomb = zlib.compress(b"\0" * 70_000_000)
    return {
        "empty": b"",
        "one byte": b"\x89",
        "text": b"this is not a picture",
        "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "SVG in XML": b'<?xml version="1.0"?><svg><image href="file:///etc/passwd"/></svg>',
        "PDF": b"%PDF-1.7\n1 0 obj\n",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "ZIP": b"PK\x03\x04" + b"\0" * 60,
        "ELF": b"\x7fELF" + b"\0" * 60,
        "JSON": b'{"image": true}',
        "noise": np.random.default_rng(0).bytes(4096),
        "zeros": b"\0" * 4096,
        "PPM": b"P6 99999 99999 255\n",
        "PSD": b"8BPS\0\x01" + b"\0" * 60,
        "ICO": encoded(small.resize((32, 32)), "ICO"),
        "JPEG 2000": encoded(small, "JPEG2000"),
        "MP4 as a picture": clip([flat((9, 9, 9))]),
        "PNG signature alone": PNG,
        "PNG cut in its header": png_file[:20],
        "PNG cut in its data": png_file[: len(png_file) // 2],
        "PNG without data": PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)),
        "PNG of garbage": PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"garbage") + chunk(b"IEND", b""),
        "PNG with a wrong checksum": png_file[:29] + b"\0\0\0\0" + png_file[33:],
        "PNG of no width": png(0, 9),
        "PNG of 2 billion columns": png(2**31 - 1, 2**31 - 1),
        "PNG bomb": png(65_500, 65_500, 1, 0, b"\0" * 1_000_000),
        "PNG of 51 million pixels": png(10_000, 5_100, 8, 2, b"\0" * 1000),
        "PNG of an unknown colour": png(9, 9, 8, 5),
        "PNG with a text bomb": png(9, 9, 8, 2, b"\0" * 252, chunk(b"zTXt", b"a\0\0" + bomb)),
        "JPEG cut in half": jpeg[: len(jpeg) // 2],
        "JPEG header alone": jpeg[:200],
        "JPEG that says 65,500 pixels": jpeg_of(65_500, 65_500, jpeg),
        "JPEG that says no pixels": jpeg_of(0, 0, jpeg),
        "GIF cut off": gif[: len(gif) // 2],
        "GIF that says 65,535 pixels": gif_of(65_535, 65_535, gif),
        "GIF header alone": gif[:13],
        "WebP cut off": webp[: len(webp) // 2],
        "WebP header alone": webp[:20],
        "AVIF cut off": avif[: len(avif) // 2],
        "AVIF without its codec's header": avif.replace(b"av1C", b"free", 1),
        "AVIF of zeros": avif[: (start := avif.index(b"mdat") + 4)] + bytes(len(avif) - start),
        "BMP that says a million rows": bmp(1_000_000, 1_000_000),
        "BMP cut off": bmp(60, 40),
        "TIFF that says a million rows": tiff(1_000_000, 1_000_000),
        "TIFF cut off": tif[:100],
        "TIFF of 32-bit samples": encoded(Image.new("I", (9, 9)), "TIFF"),
        "TIFF of floats": encoded(Image.new("F", (9, 9)), "TIFF"),
    }


@cache
def videos() -> dict[str, bytes]:
    frames = [flat((k * 20 % 250, 90, 30)) for k in range(48)]
    mp4, webm = clip(frames), clip(frames, container="webm")
    huge = clip([flat((9, 9, 9), (4608, 4608))])
    avi = clip(frames, container="avi", codec="mpeg4")
    return {
        "empty": b"",
        "text": b"this is not a video",
        "HTML": b"<html></html>",
        "PNG as a video": encoded(noise(60, 40)),
        "GIF as a video": encoded(noise(60, 40), "GIF"),
        "a playlist of other files": b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "a list of other files": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "AVI": avi,
        "MPEG-TS": clip(frames, container="mpegts", codec="mpeg4"),
        "MP4 first box alone": mp4[:32],
        "MP4 without its index": mp4[: len(mp4) // 2],
        "MP4 whose index comes first, cut off": clip(frames, movflags="faststart")[:-400],
        "MP4 of sound alone": sound("mp4", "aac"),
        "MP4 without frames": no_frames("mp4"),
        "MP4 of garbage": b"\0\0\0\x18ftypisom" + np.random.default_rng(1).bytes(5000),
        "MP4 of 4,608 x 4,608 pixels": huge,
        "MP4 that says 64 x 48 and has 4,608 x 4,608": entry_of(64, 48, huge),
        "MP4 of damaged frames": mp4.replace(mp4[48:2000], b"\xff" * 1952),
        "MP4 of 90 seconds": clip([flat((9, 9, 9))] * 90, rate=1),
        "MP4 of ten hours": clip([flat((9, 9, 9))] * 2, times=[0, 36_000]),
        "WebM header alone": webm[:60],
        "WebM cut in half": webm[: len(webm) // 2],
        "WebM of sound alone": sound("webm", "libopus"),
        "WebM without frames": no_frames("webm"),
        "WebM of garbage": b"\x1aE\xdf\xa3" + np.random.default_rng(2).bytes(5000),
    }
