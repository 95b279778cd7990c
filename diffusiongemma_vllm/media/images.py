"""Image files: what is refused by its header alone, and how the rest becomes an RGB picture."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image

from diffusiongemma_vllm.media.limits import (
    CANVAS_PIXELS,
    IMAGE_BYTES,
    IMAGE_PIXELS,
    MediaError,
    cause,
    check_size,
)

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
NAMES = "PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
OPAQUE = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
WHITE = (255, 255, 255, 255)
BAND = 256  # rows that are laid on white at a time
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}
BROKEN = (  # RuntimeError: AVIF's decoder
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, RuntimeError,
)


def check_image(data: bytes) -> None:
    """Look at a file's size and header.

    Raises:
        MediaError: for what will not be decoded, with the reason.
    """
    _open(data)


def read_image(data: bytes) -> Image.Image:
    """Decode the first frame of an image file.

    Turned as its EXIF says, what is transparent on white, 16 bits cut to 8.   ->  RGB

    Raises:
        MediaError: for a file that is refused or damaged, with the reason.
    """
    return to_rgb(_open(data))


def _open(data: bytes) -> Image.Image:
    check_size(len(data), IMAGE_BYTES, "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large or odd files: checked here
            image = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise MediaError(f"the image is too large: {cause(error)}; send a smaller one") from None
    except BROKEN as error:
        if isinstance(error, Image.UnidentifiedImageError):
            raise MediaError(f"the image is no {NAMES} file, or is damaged{_guess(data)}") from None
        raise MediaError(f"the image has a damaged header ({cause(error)})") from None
    check_picture(image)
    return image


def check_picture(image: Image.Image) -> None:
    """Raises MediaError for a picture, loaded or not, of a size or a mode that is refused."""
    if not image.width or not image.height:
        raise MediaError(f"the image has no pixels: {image.width} x {image.height}")
    most = CANVAS_PIXELS if image.format in ("WEBP", "AVIF") else IMAGE_PIXELS
    if image.width * image.height > most:
        raise MediaError(
            f"the image has {image.width} x {image.height} pixels, more than the {most:,} that "
            "are decoded; send a smaller one"
        )
    if image.mode not in TRANSPARENT + OPAQUE + DEEP:
        raise MediaError(
            f"the image has samples of Pillow's mode {image.mode}, which have no known white; "
            "send 8 or 16 bits a sample"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture, loaded or not, upright and in RGB.

    Raises:
        MediaError: as ``check_picture`` does, and for a file that is damaged.
    """
    check_picture(image)
    try:
        image.load()
    except (*BROKEN, MemoryError, AssertionError) as error:  # AssertionError: its file is closed
        raise MediaError(f"the image cannot be decoded ({cause(error)}); is it whole?") from None
    check_picture(image)  # loading may turn it and choose another mode
    turn = _turn(image)
    image = _flat(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 0))
    except BROKEN:  # damaged EXIF says nothing
        return None


def _flat(image: Image.Image) -> Image.Image:
    if image.mode in DEEP:
        return _cut_to_8_bits(image).convert("RGB")
    if image.mode not in TRANSPARENT and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, BAND):
        band = image.crop((0, top, image.width, min(top + BAND, image.height))).convert("RGBA")
        white = Image.new("RGBA", band.size, WHITE)
        white.alpha_composite(band)
        flat.paste(white.convert("RGB"), (0, top))
    return flat


def _cut_to_8_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits in mode L, its transparent grey white."""
    grey = image.point(lambda value: value / 256).convert("L")
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.paste(WHITE[0], mask=Image.fromarray(np.asarray(image) == clear))
    return grey


def _guess(data: bytes) -> str:
    """What a file that is no image may be."""
    start = data[:256].lstrip().lower()
    if start.startswith((b"<svg", b"<?xml")):
        return ": it looks like SVG, which is not drawn here; send pixels"
    if start.startswith((b"<!doctype", b"<html")):
        return ": it looks like a web page"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"hevc"):
        return ": it looks like HEIC, which is not read here; send JPEG or PNG"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return ""
    if data[4:8] == b"ftyp" or data.startswith(b"\x1aE\xdf\xa3"):
        return ": it looks like a video; send it as video_url"
    if data.startswith(b"%PDF"):
        return ": it looks like a PDF; send pages as pictures"
    return ""
