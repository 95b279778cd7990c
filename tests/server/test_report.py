"""What answers tell of their canvases, through the stock OpenAI client."""

import json
import urllib.request

import openai
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

COUNT = "Count from 001 to 170."


def check(told, canvases):
    assert len(told["canvases"]) == canvases
    steps = [canvas["steps"] for canvas in told["canvases"]]
    assert all(canvas["stopped"] in ("settled", "step_limit") for canvas in told["canvases"])
    assert min(steps) >= 1 and told["forwards"] == 1 + sum(steps)
    assert told["fused"] == canvases - 1, "text is committed beside the next canvas"


def test_a_chat(chat):
    choice = chat("What is 27 + 38?").choices[0]
    check(choice.model_extra["diffusion"], 1)
    several = chat(COUNT, temperature=1, n=2, seed=1).choices
    for choice in several:
        check(choice.model_extra["diffusion"], len(choice.model_extra["diffusion"]["canvases"]))


def test_a_batch_of_chats(client, model, chat):
    """vLLM's own endpoint, an answer a conversation."""
    asked = [[{"role": "user", "content": ask}] for ask in (COUNT, "What is 27 + 38?")]
    body = {"model": model, "messages": asked, "temperature": 0,
            "chat_template_kwargs": {"enable_thinking": False}}
    reply = client.post("/chat/completions/batch", body=body, cast_to=object)
    alone = [chat(messages).choices[0] for messages in asked]
    assert [(c["message"]["content"], c["diffusion"]) for c in reply["choices"]] == [
        (c.message.content, c.model_extra["diffusion"]) for c in alone
    ]
    for wrong, says in (({"priority": 5}, "priority"), ({"media_io_kwargs": {"a": {}}}, "media_io"),
                        ({"repetition_penalty": 1e-38}, "repetition_penalty must")):
        with pytest.raises(openai.BadRequestError, match=says):
            client.post("/chat/completions/batch", body=body | wrong, cast_to=object)


def test_a_streamed_chat(chat):
    """In the chunk that ends the choice, and in no other."""
    chunks = list(chat(COUNT, stream=True, stream_options={"include_usage": True}))
    told = [c for c in chunks if c.choices and "diffusion" in (c.choices[0].model_extra or {})]
    assert [c.choices[0].finish_reason for c in told] == ["stop"]
    whole = chat(COUNT).choices[0]
    assert told[0].choices[0].model_extra["diffusion"]["canvases"] == (
        whole.model_extra["diffusion"]["canvases"]
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.message.content


def test_completions(client, model):
    options = dict(model=model, prompt=["ab", "cd"], max_tokens=20, temperature=0, n=1,
                   extra_body={"ignore_eos": True})
    whole = client.completions.create(**options)
    for choice in whole.choices:
        check(choice.model_extra["diffusion"], 1)
    streamed = {}
    for chunk in client.completions.create(stream=True, **options):
        for choice in chunk.choices:
            if "diffusion" in (choice.model_extra or {}):
                streamed[choice.index] = choice.model_extra["diffusion"]
    assert streamed == {c.index: c.model_extra["diffusion"] for c in whole.choices}


def test_a_stop_string(chat):
    """Found in the front end, before the engine knows."""
    choice = chat(COUNT, stop="017").choices[0]
    assert choice.finish_reason == "stop" and len(choice.model_extra["diffusion"]["canvases"]) == 1


def test_kv_transfer_params_are_vllms_own(server, model):
    body = {"model": model, "prompt": "ab", "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    answer = json.load(urllib.request.urlopen(request))
    assert answer["kv_transfer_params"] is None and "diffusion" in answer["choices"][0]
