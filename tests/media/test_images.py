"""Image files of every kind: what they become, and what is refused before it is decoded."""

from io import BytesIO

import numpy as np
import pytest
from hostile import images, png
from pictures import encoded, noise
from PIL import Image

from diffusiongemma_vllm.media import images as module
from diffusiongemma_vllm.media.images import check_image, read_image
from diffusiongemma_vllm.media.limits import IMAGE_BYTES, MediaError

PICTURE = noise(30, 20)


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats(kind):
    assert (pixels(read_image(encoded(PICTURE, kind))) == pixels(PICTURE)).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_other_formats(kind):
    image = read_image(encoded(PICTURE, kind))
    assert (image.mode, image.size) == ("RGB", (30, 20))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    from PIL import ExifTags, ImageOps

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = read_image(encoded(PICTURE, "PNG", exif=exif))
    stored = Image.open(BytesIO(encoded(PICTURE, "PNG", exif=exif)))
    assert (pixels(image) == pixels(ImageOps.exif_transpose(stored))).all()
    assert image.size == ((30, 20) if orientation < 5 else (20, 30))


def test_damaged_exif_is_upright():
    image = read_image(encoded(PICTURE, "JPEG", exif=b"Exif\0\0garbage", quality=100))
    assert np.abs(pixels(image) - pixels(PICTURE)).mean() < 20


def test_transparent_pixels_are_white():
    layer = PICTURE.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(PICTURE.size))
    alpha = pixels(layer)[..., 3:] / 255
    want = pixels(PICTURE) * alpha + 255 * (1 - alpha)
    assert np.abs(pixels(read_image(encoded(layer))) - want).max() <= 1
    gray = layer.convert("LA")
    assert read_image(encoded(gray)).mode == "RGB"


def test_a_transparent_palette():
    colours = PICTURE.quantize(8)
    colours.info["transparency"] = 0
    image = pixels(read_image(encoded(colours, transparency=0)))
    seen = np.asarray(colours) == 0
    assert (image[seen] == 255).all() and not (image[~seen] == 255).all()


def test_many_rows_on_white(monkeypatch):
    layer = noise(7, 40).convert("RGBA")
    layer.putalpha(100)
    whole = pixels(read_image(encoded(layer)))
    monkeypatch.setattr(module, "BAND", 9)
    assert (pixels(read_image(encoded(layer))) == whole).all()


def test_16_bits_are_cut_to_8():
    values = (np.arange(600).reshape(20, 30) * 109).astype(np.uint16)
    image = pixels(read_image(encoded(Image.fromarray(values))))
    assert (image == (values >> 8)[..., None]).all()


def test_a_transparent_grey_of_16_bits():
    """One grey alone: its neighbours of the same upper 8 bits stay."""
    values = (np.arange(600).reshape(20, 30) + 4000).astype(np.uint16)
    image = pixels(read_image(encoded(Image.fromarray(values), transparency=4100)))
    assert (image == np.where(values == 4100, 255, values >> 8)[..., None]).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes(mode):
    image = PICTURE.convert(mode)
    want = pixels(image.convert("RGB"))
    if mode == "YCbCr":
        data, slack = encoded(image, "JPEG", quality=100, subsampling=0), 6
    else:
        data, slack = encoded(image, "TIFF"), 0
    assert np.abs(pixels(read_image(data)) - want).max() <= slack


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_show_their_first_frame(kind):
    red, blue = (Image.new("RGB", (9, 9), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(red, kind, save_all=True, append_images=[blue], **options)
    assert (pixels(read_image(data)) == [255, 0, 0]).all()


def test_tiny_images():
    assert read_image(encoded(Image.new("RGB", (1, 1), "red"))).size == (1, 1)


@pytest.mark.parametrize("name", images())
def test_refused(name):
    with pytest.raises(MediaError, match="image"):
        read_image(images()[name])


@pytest.mark.parametrize("name", [name for name in images() if "million" in name or "5,5" in name
                                  or "bomb" in name or "billion" in name])
def test_refused_by_the_header(name, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(MediaError):
        check_image(images()[name])


def test_the_largest_image_that_is_decoded(monkeypatch):
    monkeypatch.setattr(module, "IMAGE_PIXELS", 600)
    check_image(encoded(PICTURE))
    with pytest.raises(MediaError, match="30 x 21 pixels, more than the 600"):
        check_image(encoded(noise(30, 21)))
    monkeypatch.setattr(module, "CANVAS_PIXELS", 599)
    check_image(encoded(PICTURE))
    for kind in ("WEBP", "AVIF"):
        with pytest.raises(MediaError, match="30 x 20 pixels, more than the 599"):
            check_image(encoded(PICTURE, kind))
    with pytest.raises(MediaError, match=f"more than the {IMAGE_BYTES:,}"):
        check_image(bytes(IMAGE_BYTES + 1))


def test_the_reason_says_what_the_file_looks_like():
    for name, said in (("SVG", "SVG"), ("HTML", "a web page"), ("PDF", "PDF"),
                       ("MP4 as a picture", "send it as video_url")):
        with pytest.raises(MediaError, match=said):
            check_image(images()[name])
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    with pytest.raises(MediaError, match="HEIC"):
        check_image(heic)
    with pytest.raises(MediaError, match="9 x 0|no PNG"):
        check_image(png(9, 0))
