"""The page's server, with a vLLM server that is none."""

import asyncio

import pytest

pytest.importorskip("starlette")

import httpx
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from diffusiongemma_vllm.watch import server
from diffusiongemma_vllm.watch.server import Options, app

CHAT = "/v1/chat/completions"


async def echo(request):
    return JSONResponse({"key": request.headers.get("authorization"),
                         "cookie": request.headers.get("cookie"),
                         "body": (await request.body()).decode()})


async def stream(request):
    async def parts():
        yield "data: 1\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(parts(), 418, media_type="text/event-stream")


UPSTREAM = Starlette(routes=[
    Route(CHAT, echo, methods=["POST"]), Route("/v1/completions", stream, methods=["POST"]),
    Route("/v1/load_lora_adapter", echo, methods=["POST"]),
])


@pytest.fixture
def ask(monkeypatch):
    """Ask the page's server, whose own requests go to UPSTREAM."""
    original = httpx.AsyncClient

    def upstream(**options):
        return original(transport=httpx.ASGITransport(UPSTREAM), **options)

    monkeypatch.setattr(server.httpx, "AsyncClient", upstream)

    def ask(method, path, *, host="127.0.0.1", options=None, **more):
        options = options or Options("http://vllm")

        async def run():
            transport = httpx.ASGITransport(app(options))
            async with original(transport=transport, base_url=f"http://{host}") as client:
                return await client.request(method, path, **more)

        return asyncio.run(run())

    return ask


def test_the_page(ask):
    page = ask("GET", "/")
    assert page.status_code == 200 and "<title>DiffusionGemma" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http" not in page.text  # nothing from elsewhere
    for name in ("style.css", "main.js", "chat.js", "icon.svg"):
        assert ask("GET", f"/static/{name}").status_code == 200


def test_a_request_goes_through(ask):
    answer = ask("POST", CHAT, content=b"{}", headers={"cookie": "mine=1"},
                 options=Options("http://vllm", key="secret"))
    assert answer.json() == {"key": "Bearer secret", "cookie": None, "body": "{}"}
    assert ask("POST", CHAT).json()["key"] is None


def test_a_stream_goes_through(ask):
    answer = ask("POST", "/v1/completions", json={})
    assert (answer.status_code, answer.text) == (418, "data: 1\n\ndata: [DONE]\n\n")
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/load_lora_adapter", 404), ("GET", CHAT, 405),
     ("GET", "/static/../server.py", 404)],
)
def test_nothing_else_does(ask, method, path, status):
    assert ask(method, path).status_code == status


def test_other_names_for_this_machine(ask):
    assert ask("GET", "/", host="evil.example").status_code == 400
    assert ask("GET", "/", host="localhost").status_code == 200
    elsewhere = Options("http://vllm", host="0.0.0.0")
    assert ask("GET", "/", host="box.example", options=elsewhere).status_code == 200


def test_no_server():
    async def run():
        transport = httpx.ASGITransport(app(Options("http://127.0.0.1:9")))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/v1/models")

    answer = asyncio.run(run())
    assert answer.status_code == 502
    assert "no vLLM server answers at http://127.0.0.1:9" in answer.json()["error"]["message"]
