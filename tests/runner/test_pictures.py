"""vLLM's processor for our model, without an engine: placeholders, patches, caching, refusals."""

import base64
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from clips import clip, flat
from hostile import images
from pictures import encoded, noise, processed
from PIL import ExifTags, Image
from transformers import AutoConfig, AutoTokenizer
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.cache import MultiModalProcessorOnlyCache
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.processing import InputProcessingContext
from vllm.multimodal.processing.inputs import ProcessorInputs

from diffusiongemma_vllm.cli.main import MINIATURE
from diffusiongemma_vllm.media.images import read_image
from diffusiongemma_vllm.runner import items
from diffusiongemma_vllm.runner.admission import check_pictures
from diffusiongemma_vllm.runner.media import IMAGE, VIDEO, Encoded, FileIO, connector
from diffusiongemma_vllm.runner.pictures import (
    PictureDummies,
    PictureInfo,
    PictureProcessor,
    timestamp,
)

TOKENIZER = AutoTokenizer.from_pretrained(MINIATURE)
CONFIG = AutoConfig.from_pretrained(MINIATURE)
TIMING = SimpleNamespace(record=lambda name: nullcontext())


def make(tokenizer=TOKENIZER, config=CONFIG, **served):
    limits = dict(
        mm_processor_kwargs=served or None, enable_mm_embeds=False, mm_hasher_algorithm="blake3",
        get_limit_per_prompt=lambda name: 3, limit_per_prompt={}, mm_processor_cache_gb=1,
    )
    given = SimpleNamespace(**limits)
    model = SimpleNamespace(
        model="m", hf_config=config, multimodal_config=given, max_model_len=8192,
        get_multimodal_config=lambda: given, encoder_config=None,
    )
    info = PictureInfo(InputProcessingContext(model, tokenizer))
    return PictureProcessor(info, PictureDummies(info))


def apply(processor, text, media, cache=None, **asked):
    data = processor.info.parse_mm_data(media)
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    inputs = ProcessorInputs(tokens, data, hf_processor_mm_kwargs=asked, cache=cache)
    return processor.apply(inputs, TIMING)


def written(found):
    return TOKENIZER.decode(found["prompt_token_ids"])


def test_images_in_turns_with_text():
    shown = [noise(90, 60), noise(30, 200, seed=1)]
    found = apply(make(), "a<|image|>b <|image|>", {"image": shown})
    counts = processed(shown, 70)["num_soft_tokens_per_image"]
    first, second = (f"<|image>{'<|image|>' * int(count)}<image|>" for count in counts)
    assert written(found) == f"a{first}b {second}"
    places = found["mm_placeholders"]["image"]
    assert [place.get_num_embeds() for place in places] == [int(count) for count in counts]
    assert [place.offset for place in places] == [1, 1 + int(counts[0]) + 2 + 2]


@pytest.mark.parametrize("budget", [70, 140, 280])
def test_the_budget_of_a_request_and_of_a_server(budget):
    image = noise(300, 200)
    count = int(processed([image], budget)["num_soft_tokens_per_image"][0])
    asked = apply(make(), "<|image|>", {"image": image}, max_soft_tokens=budget)
    served = apply(make(max_soft_tokens=budget), "<|image|>", {"image": image})
    for found in (asked, served):
        assert found["mm_placeholders"]["image"][0].get_num_embeds() == count
        item = found["mm_kwargs"]["image"][0]
        assert item["image_grid"].data.prod() == count
        assert item["image_patches"].data.shape == (count * 9, 768)


def video(seconds, rate=2):
    return clip([flat((9 * k % 256, 90, 30)) for k in range(seconds * rate)], rate=rate)


def test_a_video_is_frames_with_their_time():
    found = apply(make(), "see: <|video|>!", {"video": [video(3)]})
    frame = f"<|image>{'<|video|>' * 63}<image|>"
    assert written(found) == f"see: 00:00 {frame} 00:01 {frame} 00:02 {frame}!"
    (place,) = found["mm_placeholders"]["video"]
    assert place.get_num_embeds() == 3 * 63
    assert found["mm_kwargs"]["video"][0]["video_patches"].data.shape == (3, 567, 768)


def test_timestamps():
    assert [timestamp(s) for s in (0, 9, 59, 60, 3599)] == [
        "00:00", "00:09", "00:59", "01:00", "59:59"
    ]


def test_image_and_video_together():
    found = apply(
        make(), "<|video|> and <|image|>", {"image": noise(50, 50), "video": video(1)},
        videos_kwargs={"max_soft_tokens": 140},
    )
    (image,), (clip_,) = found["mm_placeholders"]["image"], found["mm_placeholders"]["video"]
    assert clip_.offset < image.offset and 70 < clip_.get_num_embeds() <= 140
    assert image.get_num_embeds() == 64


def test_forms_of_images_and_videos():
    image = noise(90, 60)
    pixels = np.asarray(image)
    forms = [image, pixels, encoded(image), MediaWithBytes(image, encoded(image))]
    shown = [apply(make(), "<|image|>", {"image": form}) for form in forms]
    values = [found["mm_kwargs"]["image"][0]["image_patches"].data for found in shown]
    assert all((one == values[0]).all() for one in values)

    frames = [noise(50, 40, seed=k) for k in range(3)]
    told = {"fps": 2.0, "frames_indices": [0, 4, 9]}
    for form, stamps in (
        (frames, "00:00 00:01 00:02"),
        (np.stack([np.asarray(frame) for frame in frames]), "00:00 00:01 00:02"),
        ((np.stack([np.asarray(frame) for frame in frames]), told), "00:00 00:02 00:04"),
    ):
        found = apply(make(), "<|video|>", {"video": form})
        text = written(found).replace("<|video|>", "").replace("<|image><image|>", "")
        assert text.split() == stamps.split()


@pytest.mark.parametrize("form", [
    "a path", 3, np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), b"no image",
    Encoded("video", b""),
], ids=lambda form: type(form).__name__)
def test_other_forms_are_refused(form):
    with pytest.raises(VLLMValidationError, match="image"):
        items.image_item(form)


def test_pillow_images_that_are_not_loaded_yet():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for kind in ("TIFF", "PNG"):  # TIFFs turn when they are loaded
        data = encoded(noise(30, 20), kind, exif=exif)
        found = items.image_item(Image.open(BytesIO(data)))
        assert found.size == (20, 30) and found == read_image(data)
    for kind in ("TIFF", "PNG", "JPEG"):
        data = encoded(noise(300, 200), kind)
        for form, take in (("image", items.image_item), ("video", items.video_item)):
            cut = Image.open(BytesIO(data[: len(data) // 2]))
            with pytest.raises(VLLMValidationError, match=f"{form}: the image cannot be decoded"):
                take(cut if form == "image" else [cut])
    with Image.open(BytesIO(data)) as closed:
        pass
    with pytest.raises(VLLMValidationError, match="cannot be decoded"):
        items.image_item(closed)


def test_other_forms_of_videos_are_refused():
    for form in ("a path", 3, b"no video", ([], {}), ([noise(9, 9)], {"fps": 0}), [],
                 ([noise(9, 9)], {"frames_indices": [1, 2]}), ([noise(9, 9)], None)):
        with pytest.raises(VLLMValidationError, match="video"):
            items.video_item(form)
    for told in ({"fps": None}, {"fps": "2"}, {"fps": [1]}, {"frames_indices": None},
                 {"frames_indices": ["0"]}, {"frames_indices": [float("nan")]}):
        with pytest.raises(VLLMValidationError, match="an fps above 0 and an index for every"):
            items.video_item(([noise(9, 9)], told))
    many = apply(make(), "<|video|>", {"video": [noise(20, 20)] * 60})
    assert many["mm_kwargs"]["video"][0]["video_patches"].data.shape[0] == 60
    with pytest.raises(VLLMValidationError, match="61 frames, more than 60"):
        apply(make(), "<|video|>", {"video": [noise(20, 20)] * 61})
    with pytest.raises(VLLMValidationError, match="changes its size"):
        apply(make(), "<|video|>", {"video": [noise(20, 20), noise(90, 20)]})


def test_cached_media_are_not_decoded_again(monkeypatch):
    decoded, read = [], items.read_image
    monkeypatch.setattr(items, "read_image", lambda data: decoded.append(1) or read(data))
    processor = make()
    cache = MultiModalProcessorOnlyCache(processor.info.ctx.model_config)
    data = encoded(noise(90, 60))
    first = apply(processor, "<|image|>", {"image": [data]}, cache)
    again = apply(processor, "x<|image|>", {"image": [data]}, cache)
    assert decoded == [1] and first["mm_hashes"] == again["mm_hashes"]
    other = apply(processor, "<|image|>", {"image": [data]}, cache, max_soft_tokens=140)
    assert decoded == [1, 1] and other["mm_hashes"] != first["mm_hashes"]
    with pytest.raises(VLLMValidationError, match="'size' is unknown"):
        apply(processor, "<|image|>", {"image": [data]}, cache, size=3)


def test_too_many():
    with pytest.raises(VLLMValidationError, match=r"At most 3 image\(s\) may be provided"):
        make().info.parse_mm_data({"image": [noise(9, 9)] * 4})
    with pytest.raises(ValueError, match="Unsupported modality"):
        make().info.parse_mm_data({"audio": [np.zeros(9)]})


def test_without_a_tokenizer_or_a_tower():
    assert make(tokenizer=None).info.supported_mm_limits == {"image": None}
    blind = SimpleNamespace(vision_config=None)
    processor = make()
    processor.info.get_hf_config = lambda: blind
    assert processor.info.get_supported_mm_limits() == {}


def test_the_largest_media_are_measured():
    processor = make(videos_kwargs={"num_frames": 5, "max_soft_tokens": 140})
    most = processor.info.get_mm_max_tokens_per_item(8192, {"image": 1, "video": 1})
    assert most == {"image": 1120, "video": 700}
    dummies = processor.get_dummy_inputs(8192, {"image": 1, "video": 1}, {})
    found = processor.apply(dummies, TIMING)
    assert {name: places[0].get_num_embeds()
            for name, places in found["mm_placeholders"].items()} == most


def test_files_are_refused_by_their_header(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(noise(9, 9)))
    assert FileIO(IMAGE).load_file(path) == Encoded("image", path.read_bytes())
    assert FileIO(IMAGE).load_base64("", base64.b64encode(path.read_bytes()).decode()).data
    for bad in images().values():
        with pytest.raises(VLLMValidationError):
            item = FileIO(IMAGE).load_bytes(bad)
            apply(make(), "<|image|>", {"image": [item]})
    with pytest.raises(VLLMValidationError, match="no base64"):
        FileIO(IMAGE).load_base64("", "§§§§")
    with pytest.raises(VLLMValidationError, match="cannot be read"):
        FileIO(IMAGE).load_file(tmp_path / "missing")
    sparse = tmp_path / "large.mp4"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(VLLMValidationError, match="video: the video has 1,099,511,627,776 bytes"):
        FileIO(VIDEO).load_file(sparse)


def test_a_connector_has_the_servers_rules(tmp_path):
    def at(**rules):
        given = dict(media_io_kwargs=None, allowed_local_media_path="", allowed_media_domains=None)
        return connector(SimpleNamespace(_tracker=SimpleNamespace(**given | rules)))

    path = tmp_path / "picture.png"
    path.write_bytes(encoded(noise(9, 9)))
    url = f"file://{path}"
    with pytest.raises(VLLMValidationError, match="--allowed-local-media-path"):
        at().fetch_image(url)
    assert at(allowed_local_media_path=str(tmp_path)).fetch_image(url).kind == "image"
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="must be a subpath"):
        at(allowed_local_media_path=str(tmp_path / "other")).fetch_image(url)
    with pytest.raises(ValueError, match="allowed domains"):
        at(allowed_media_domains=["example.org"]).fetch_image("http://127.0.0.1:1/x.png")
    with pytest.raises(VLLMValidationError, match="media_io_kwargs"):
        at(media_io_kwargs={"image": {"image_mode": None}}).fetch_image(url)
    for bad in ("data:image/png,abc", "data:image/png;base64", "data:"):
        with pytest.raises(VLLMValidationError, match="a data URL must be"):
            at().fetch_image(bad)


def test_a_picture_that_no_step_could_read_whole():
    """Its rows see each other, so it is never read in parts."""
    found = apply(make(), "<|image|>", {"image": noise(300, 200)}, max_soft_tokens=280)
    features = [SimpleNamespace(mm_position=found["mm_placeholders"]["image"][0])]

    def served(tokens, seqs, threshold=0):
        return SimpleNamespace(
            scheduler_config=SimpleNamespace(
                max_num_batched_tokens=tokens, max_num_seqs=seqs,
                long_prefill_token_threshold=threshold,
            ),
            diffusion_config=SimpleNamespace(canvas_length=256),
        )

    count = features[0].mm_position.get_num_embeds()
    assert 256 < count <= 280
    check_pictures(features, served(256 * 3 + count, 4))
    check_pictures(features, served(256 * 3 + count, 4, threshold=count))
    with pytest.raises(VLLMValidationError, match=f"--max-num-batched-tokens {768 + count} or"):
        check_pictures(features, served(256 * 3 + count - 1, 4))
    with pytest.raises(VLLMValidationError, match=f"--long-prefill-token-threshold {count} or"):
        check_pictures(features, served(9999, 4, threshold=200))
    place = replace(features[0].mm_position, is_embed=None)  # as /inference/v1/generate has it
    with pytest.raises(VLLMValidationError, match="pictures cannot come as tokens"):
        check_pictures([SimpleNamespace(mm_position=place)], served(9999, 4))
