"""Text beyond ASCII, through prompts, streams and canvas edges: bytes go in and come out whole."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm")

TEXTS = {
    "emoji": "🙂🎉👩‍👩‍👧 ok ",
    "thai": "สวัสดีครับ ผมชื่อมานี ",
    "chinese": "你好，世界。扩散模型 ",
    "mixed": "a🙂ไ你é\u00a0\u0301z ",
}
CANVAS = 256


def post(server, path, **body):
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)


def both(ask, *args, **options):
    """What is answered whole, and the chunks of the same as a stream, one beside the other."""
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(ask, *args, **options)
        streamed = list(ask(*args, stream=True, **options))
        return whole.result(), streamed


@pytest.mark.engine
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_prompt_comes_back(client, model, server, text):
    """Echoed, streamed or not, and by the tokenizer alone; longer than one canvas in tokens."""
    text = text * 20
    ids = post(server, "/tokenize", model=model, prompt=text, add_special_tokens=False)["tokens"]
    assert len(ids) > CANVAS
    assert post(server, "/detokenize", model=model, tokens=ids)["prompt"] == text
    options = dict(model=model, prompt=text, echo=True, max_tokens=20, temperature=0)
    whole, streamed = both(client.completions.create, **options)
    assert whole.choices[0].text.startswith(text)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == whole.choices[0].text


@pytest.mark.engine
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("temperature", [0, 2.0])
def test_a_stream_of_any_bytes_is_the_whole(client, model, text, temperature):
    """Noise for a prompt, few steps and no end: three canvases of whatever bytes come."""
    xargs = {"diffusion_max_denoising_steps": 8}
    options = dict(
        model=model, prompt=text, temperature=temperature, seed=3, max_tokens=600,
        extra_body={"ignore_eos": True, "skip_special_tokens": False, "vllm_xargs": xargs},
    )
    whole, streamed = both(client.completions.create, **options)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == whole.choices[0].text


@pytest.mark.engine
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_chat_about_it(chat, text):
    prompt = f"Reverse these words: {text}"
    whole, streamed = both(chat, prompt, max_tokens=300)
    parts = [c.choices[0].delta.content or "" for c in streamed if c.choices]
    assert "".join(parts) == (whole.choices[0].message.content or "")


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("size", [1, 7, CANVAS], ids=["token", "seven", "canvas"])
@pytest.mark.parametrize("shift", range(4))
def test_a_character_may_lie_across_an_edge(text, size, shift):
    """vLLM's detokenizer on our tokenizer: no half character ever goes out."""
    from transformers import AutoTokenizer
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    from diffusiongemma_vllm.cli.main import MINIATURE

    tokenizer = AutoTokenizer.from_pretrained(MINIATURE)
    text = "x" * shift + text * 20
    ids = tokenizer.encode(text, add_special_tokens=False)
    request = EngineCoreRequest(
        request_id="0", external_req_id="0", prompt_token_ids=[2], mm_features=None,
        sampling_params=SamplingParams(output_kind=RequestOutputKind.DELTA), pooling_params=None,
        arrival_time=0.0, lora_request=None, cache_salt=None, data_parallel_rank=None,
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    parts = []
    for start in range(0, len(ids), size):
        last = start + size >= len(ids)
        detokenizer.update(ids[start : start + size], False)
        parts.append(detokenizer.get_next_output_text(last, True))
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts)
