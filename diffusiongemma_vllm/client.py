"""The OpenAI client of a vLLM server, with a sentence for what can be wrong at the other end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from openai import APIStatusError, OpenAI, OpenAIError

LISTED = 60.0  # seconds for the list of models


@dataclass(frozen=True)
class Model:
    """name: at that server.  checkpoint: behind it, where the server says so."""

    name: str
    checkpoint: str


def check(url: str, key: str | None) -> None:
    """Raises ValueError for an address or a key that no request can carry."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not (url.isascii() and url.isprintable()):
        raise ValueError(f"--url {url} is no address of a server; one is http://127.0.0.1:8000")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ValueError("the API key (--api-key, VLLM_API_KEY) has characters beyond plain ASCII")


def connect(url: str, key: str | None, timeout: float, retries: int = 2) -> OpenAI:
    """url: without /v1.

    Raises:
        ValueError: as ``check`` does.
    """
    check(url, key)
    return OpenAI(
        base_url=f"{url.rstrip('/')}/v1", api_key=key or "none", max_retries=retries,
        timeout=timeout,
    )


def models(client: OpenAI, url: str) -> list[Model]:
    """What is served; at least one model.

    Raises:
        ValueError: where no vLLM server answers, or it wants another key.
    """
    try:
        once = client.with_options(max_retries=0, timeout=LISTED)
        body = once.models.with_raw_response.list().http_response.json()
    except APIStatusError as error:
        if error.status_code in (401, 403):
            raise ValueError(
                f"the server at {url} refuses the API key (HTTP {error.status_code}): pass "
                "--api-key, or set VLLM_API_KEY"
            ) from None
        raise ValueError(
            f"the server at {url} lists no models (HTTP {error.status_code}): is it vLLM's?"
        ) from None
    except OpenAIError as error:
        raise ValueError(f"no server answers at {url}: {error}") from None
    except ValueError:
        body = None
    listed = body.get("data") if isinstance(body, dict) else None
    if not isinstance(listed, list) or not all(_named(row) for row in listed):
        raise ValueError(f"what answers at {url} is no vLLM server: it lists no models")
    if not listed:
        raise ValueError(f"the server at {url} serves no model")
    return [Model(row["id"], row.get("root") or row["id"]) for row in listed]


def _named(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("id"), str)
