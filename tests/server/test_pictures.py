"""Images and videos over HTTP: what is shown, what is refused, and that refusing costs nothing."""

import base64
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai
import pytest
from clips import clip, flat
from hostile import images, videos
from pictures import encoded, noise, processed

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

MEGABYTES = 500
SMALL = noise(90, 60)
COUNT = int(processed([SMALL], 70)["num_soft_tokens_per_image"][0])
FRAME = 63  # tokens of 64 x 48 pixels


def url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(data=None):
    return {"type": "image_url", "image_url": {"url": url(data or encoded(SMALL))}}


def video(seconds=2):
    data = clip([flat((90 * k % 256, 9, 200)) for k in range(seconds)], rate=1)
    return {"type": "video_url", "video_url": {"url": url(data, "video/mp4")}}


def text(words):
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def show(chat):
    """Asks about parts, two denoise steps long; the tokens of the prompt."""

    def ask(*parts, messages=None, **extra):
        messages = messages or [{"role": "user", "content": list(parts)}]
        extra = {"vllm_xargs": {"diffusion_max_steps": 2}} | extra
        return chat(messages, max_tokens=4, extra=extra).usage.prompt_tokens

    return ask


@pytest.fixture(scope="module")
def plain(show):
    """Tokens of a prompt with one letter."""
    return show(text("a"))


def test_an_image(show, plain):
    assert show(text("a"), image()) == plain + COUNT + 2
    assert show(image(), text("a")) == plain + COUNT + 2


def test_several_images_in_turns_with_text(show, plain):
    assert show(image(), text("a"), image(), image()) == plain + 3 * (COUNT + 2)


def test_budgets(show, plain):
    for budget in (140, 560):
        count = int(processed([SMALL], budget)["num_soft_tokens_per_image"][0])
        found = show(text("a"), image(), mm_processor_kwargs={"max_soft_tokens": budget})
        assert found == plain + count + 2


def test_a_video_and_an_image(show, plain):
    # "00:00 " and " 00:01 ", a token a letter, and the frames in their marks
    frames = 6 + 7 + 2 * (FRAME + 2)
    assert show(text("a"), video()) == plain + frames
    assert show(video(), text("a"), image()) == plain + frames + COUNT + 2


def test_an_image_in_a_tools_result(show):
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}

    def turn(content):
        return [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": content},
        ]

    alone = show(messages=turn([text("seen")]))
    assert show(messages=turn([text("seen"), image()])) == alone + COUNT + 2


def test_local_files(show, plain, media, tmp_path):
    path = media[0] / "picture.png"
    path.write_bytes(encoded(SMALL))
    part = {"type": "image_url", "image_url": {"url": f"file://{path}"}}
    assert show(text("a"), part) == plain + COUNT + 2
    (media[0] / "out").symlink_to("/etc")
    for outside in ("/etc/passwd", f"{media[0]}/../../../etc/passwd", f"{media[0]}/out/passwd",
                    f"{media[0]}/missing.png"):
        bad = {"type": "image_url", "image_url": {"url": f"file://{outside}"}}
        with pytest.raises(openai.BadRequestError, match="subpath|cannot be read"):
            show(text("a"), bad)


def test_files_of_a_web_server(show, plain):
    """vLLM loads them; a page that is no picture, or larger than it says, is refused."""

    class Files(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            if self.path == "/endless":
                for _ in range(100):
                    self.wfile.write(b"\0" * (1 << 20))
            else:
                page = encoded(SMALL) if self.path == "/picture.png" else b"<html></html>"
                self.wfile.write(page)

        def log_message(self, *args):
            pass

    served = HTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{served.server_port}"
    try:
        part = {"type": "image_url", "image_url": {"url": f"{root}/picture.png"}}
        assert show(text("a"), part) == plain + COUNT + 2
        for name, said in (("page", "it looks like a web page"), ("endless", "maximum size of 67")):
            with pytest.raises(openai.BadRequestError, match=said):
                show({"type": "image_url", "image_url": {"url": f"{root}/{name}"}})
    finally:
        served.shutdown()


REFUSED = [
    ((image(),) * 4, {}, r"At most 3 image\(s\)"),
    ((image(),), {"mm_processor_kwargs": {"max_soft_tokens": 100}}, "must be one of 70, 140"),
    ((image(),), {"mm_processor_kwargs": {"size": 3}}, "'size' is unknown"),
    ((image(),), {"media_io_kwargs": {"image": {"image_mode": None}}}, "media_io_kwargs"),
    ((image(encoded(noise(4000, 3))),), {"mm_processor_kwargs": {"max_soft_tokens": 280}},
     "840 patches along a side, more than the checkpoint's 256"),
    ((video(90),), {}, "lasts 90.0 s"),
    ((video(60), text("a")), {"mm_processor_kwargs": {"videos_kwargs": {"max_soft_tokens": 140}}},
     "4096|maximum"),
    (({"type": "image_url", "image_url": {"url": "data:image/png,abc"}},), {}, "data URL must be"),
    (({"type": "image_url", "image_url": {"url": "data:image/png;base64,§§§§"}},), {}, "no base64"),
    (({"type": "image_url", "image_url": {"url": "ftp://x/y.png"}},), {}, "HTTP, data or file"),
    (({"type": "video_url", "video_url": {"url": url(b"AA", "video/jpeg")}},), {}, "neither MP4"),
]


@pytest.mark.parametrize(("parts", "extra", "said"), REFUSED, ids=lambda value: str(value)[:30])
def test_refused(show, parts, extra, said):
    with pytest.raises(openai.BadRequestError, match=said):
        show(*parts, **extra)


def high_water(server):
    """Most memory the server's front end had so far, in MB."""
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def test_hostile_files(show, server, healthy):
    show(image()), show(video())  # what decoding loads
    before = high_water(server)
    refused = 0
    for kind, files in (("image", images()), ("video", videos())):
        for name, data in files.items():
            part = {"type": f"{kind}_url", f"{kind}_url": {"url": url(data, f"{kind}/x")}}
            with pytest.raises(openai.BadRequestError) as error:
                show(text("a"), part)
            assert kind in str(error.value) or "pictures" in str(error.value), (name, error.value)
            refused += 1
    assert refused >= 60
    assert high_water(server) - before < MEGABYTES
    healthy()


def test_the_largest_image_is_decoded_within_bounds(show, server, plain):
    """50 million pixels with transparency, the costliest of what is accepted."""
    from PIL import Image

    before = high_water(server)
    data = encoded(Image.new("RGBA", (10_000, 5_000), (200, 30, 30, 128)), compress_level=1)
    assert show(text("a"), image(data)) > plain
    assert high_water(server) - before < MEGABYTES
