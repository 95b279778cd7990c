"""A small web server: the page, and a way from the page to one vLLM server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost")
READ = ("/v1/models", "/metrics", "/health")
ASK = ("/v1/chat/completions", "/v1/completions", "/tokenize")
KEPT = ("content-type",)  # of the headers of a request and of an answer
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"


@dataclass(frozen=True)
class Options:
    """url: of the vLLM server.  key: what it was started with as --api-key, if anything."""

    url: str
    host: str = "127.0.0.1"
    port: int = 8600
    key: str | None = None


def app(options: Options) -> Starlette:
    """The page at ``/``, and those paths of the vLLM server that it needs, under their own names.

    On a loopback address it answers to that name alone, so that no other site can reach it by a
    name of its own.
    """
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    client = httpx.AsyncClient(
        base_url=options.url, headers=headers, timeout=httpx.Timeout(10, read=None),
        limits=httpx.Limits(keepalive_expiry=2),  # before vLLM closes the line, after 5
    )

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": POLICY})

    async def forward(request: Request) -> Response:
        asked = client.build_request(
            request.method, request.url.path, content=await request.body(), headers=_kept(request)
        )
        try:
            answer = await client.send(asked, stream=True)
        except httpx.HTTPError as error:
            return _unreachable(options.url, error)
        return StreamingResponse(_body(answer), answer.status_code, _kept(answer))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    hosts = list(LOOPBACK) if options.host in LOOPBACK else ["*"]
    return Starlette(
        routes=[
            Route("/", page),
            *(Route(path, forward) for path in READ),
            *(Route(path, forward, methods=["POST"]) for path in ASK),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        lifespan=lifespan,
    )


def _kept(message: Request | httpx.Response) -> dict[str, str]:
    return {name: message.headers[name] for name in KEPT if name in message.headers}


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    """As it comes; closed when the page goes away, which ends the request in the server."""
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()


def _unreachable(url: str, error: Exception) -> JSONResponse:
    said = f"no vLLM server answers at {url} ({type(error).__name__}); start it, or pass its --url"
    return JSONResponse({"error": {"message": said}}, status_code=502)


def watch(options: Options) -> int:
    """Serve the page until interrupted."""
    import uvicorn

    class AtOnce(uvicorn.Server):
        """Cuts the streams off when it is to end, without a word about each."""

        async def shutdown(self, sockets: list[socket] | None = None) -> None:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    settings: dict[str, Any] = {
        "log_level": "warning", "server_header": False, "timeout_graceful_shutdown": 0,
    }
    config = uvicorn.Config(app(options), host=options.host, port=options.port, **settings)
    with config.bind_socket() as listening:
        listening.listen()  # whoever reads the next line may come at once
        print(f"watching {options.url} on http://{options.host}:{options.port} (Ctrl-C ends it)",
              flush=True)
        AtOnce(config).run(sockets=[listening])
    return 0
