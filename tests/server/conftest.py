"""One `vllm serve` on the miniature for every test here: the model card's flags, and an adapter."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor, wait

import httpx
import pytest
from adapters import skeleton, write

from diffusiongemma_vllm.cli.main import MINIATURE
from diffusiongemma_vllm.cli.server import CARD_FLAGS, Server

# what tests/conftest.py sets for engines inside this process; a user's server has none of it
IN_PROCESS = ("VLLM_ENABLE_V1_MULTIPROCESSING", "DIFFUSIONGEMMA_VLLM_INTERPRETER",
              "VLLM_USE_V2_MODEL_RUNNER", "VLLM_LOGGING_LEVEL")
LIMIT = 4096


@pytest.fixture(scope="session")
def user_environment():
    """The environment for a process as a user starts it."""
    return {name: value for name, value in os.environ.items() if name not in IN_PROCESS}


@pytest.fixture(scope="session")
def adapter(tmp_path_factory):
    """The flags for a random LoRA adapter, served as the model "adapted"."""
    folder = write(tmp_path_factory.mktemp("adapter"), skeleton(MINIATURE), seed=0, size=4.0)
    return "--enable-lora", "--lora-modules", f"adapted={folder}"


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """The folder of local files that the server may read, and the flags for pictures."""
    folder = tmp_path_factory.mktemp("media")
    return folder, (
        "--allowed-local-media-path", str(folder), "--trust-request-mm-kwargs",
        "--limit-mm-per-prompt", '{"image": 3, "video": 1}',
    )


@pytest.fixture(scope="session")
def server(adapter, media):
    """It must live through every test and stop at once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in IN_PROCESS:
            patch.delenv(name, raising=False)
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        flags = *CARD_FLAGS, *adapter, *media[1], "--max-model-len", str(LIMIT)
        started = Server(str(MINIATURE), flags)
    with started as server:
        for _ in server.wait():
            pass
        yield server
        assert server.process.poll() is None, f"the server died:\n{server.tail()}"
        assert settled(server) == 0, "requests are left over"
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(streamed, server, i % 2) for i in range(8)]
            until = time.monotonic() + 60
            while (began := running(server)) < len(asked) and time.monotonic() < until:
                time.sleep(0.1)
            server.process.terminate()  # each stream ends, with its text or with an error
            late = wait(asked, timeout=60).not_done
            if late:
                server.stop()
            assert not late, f"{len(late)} streams hear nothing more:\n{server.tail()}"
            assert began == len(asked), f"{began} of {len(asked)} streams ran"
        try:
            server.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server does not stop:\n{server.tail()}")
        assert gone(server.process.pid), "the server left a process behind"


def streamed(server, drafts):
    """The body of a stream that would take minutes, or the error that ended it."""
    body = {"model": str(MINIATURE), "stream": True, "max_tokens": 3000, "ignore_eos": True,
            "messages": [{"role": "user", "content": "Count from 10 to 99."}],
            "vllm_xargs": {"diffusion_drafts": 1} if drafts else None}
    try:
        return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=None).text
    except httpx.HTTPError as error:
        return error


def gone(group, seconds=60):
    """Whether every process of a group ends; vLLM's resource tracker outlives the server a bit."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="session")
def client(server):
    from openai import DefaultHttpxClient, OpenAI

    return OpenAI(
        base_url=f"{server.url}/v1", api_key="none", timeout=300, max_retries=0,
        http_client=DefaultHttpxClient(limits=httpx.Limits(keepalive_expiry=2)),  # the server's: 5
    )


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def chat(client, model):
    """Ask in chat, greedily and without thinking unless told; `prompt` is a text or messages."""

    def ask(prompt, *, thinking=False, extra=None, **options):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        body = {"chat_template_kwargs": {"enable_thinking": thinking}} | (extra or {})
        return client.chat.completions.create(
            model=model, messages=messages, extra_body=body, **{"temperature": 0} | options
        )

    return ask


@pytest.fixture(scope="session")
def healthy(chat, server):
    """Calling it asserts that the server still answers a sum."""

    def check():
        assert server.process.poll() is None, server.tail()
        assert chat("What is 27 + 38?").choices[0].message.content == "65"

    return check


def running(server):
    """How many requests run or wait."""
    metrics = server.metrics()
    return sum(metrics[f"vllm:num_requests_{state}"] for state in ("running", "waiting"))


def settled(server, seconds=120):
    """How many requests still run or wait once the server had time to let them go."""
    until = time.monotonic() + seconds
    while True:
        count = running(server)
        if not count or time.monotonic() > until:
            return count
        time.sleep(0.2)


@pytest.fixture(scope="session")
def underway(server):
    """Calling it waits until a request runs."""

    def check():
        until = time.monotonic() + 60
        while not running(server):
            assert time.monotonic() < until, server.tail()
            time.sleep(0.05)

    return check


@pytest.fixture(scope="session")
def at_rest(server):
    """Calling it asserts that no request runs or waits any more."""

    def check():
        assert settled(server) == 0

    return check


@pytest.fixture(scope="session")
def unjoined():
    """Calling it asserts that one of a few streams, counted, comes in at least so many pieces.

    Not each does: what an API server was kept from sending, vLLM joins to the next piece.
    """

    def check(count, least, tries=10):
        counts = [count()]
        while counts[-1] < least and len(counts) < tries:
            time.sleep(0.5)
            counts.append(count())
        assert counts[-1] >= least, counts

    return check
