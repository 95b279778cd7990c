"""No HTTP request ends the engine: each is honoured, or refused with a sentence that says why."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

MESSAGES = [{"role": "user", "content": "What is 27 + 38?"}]
PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9Q" \
      "DwADhgGAWjR9awAAAABJRU5ErkJggg=="
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
RESPOND, MESSAGE = "/v1/responses", "/v1/messages"
CHATS_AT_ONCE = "/v1/chat/completions/batch"
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
THINK = {"chat_template_kwargs": {"enable_thinking": True}}
ONLY = {"vllm_xargs": {"diffusion_constrained": 1}}
NO_OBJECT = "structured_outputs must be an object with one of json"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


class Case(NamedTuple):
    """Options on top of a good request, and a word of the refusal; "" where it is honoured."""

    options: dict
    says: str


def user(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


CHATS = [
    Case({"prompt_logprobs": 1}, "prompt_logprobs"),
    Case({"prompt_logprobs": -1}, "prompt logprobs"),
    Case({"logprobs": True}, ""),
    Case({"logprobs": True, "top_logprobs": 2}, ""),
    Case({"logprobs": True, "logprob_token_ids": [5]}, ""),
    Case({"logit_bias": {"5": 1}}, ""),
    Case({"logit_bias": {"50000": 1}}, "logit_bias"),
    Case({"min_p": 0.1, "temperature": 1}, ""),
    Case({"presence_penalty": 0.5}, ""),
    Case({"frequency_penalty": 0.5}, ""),
    Case({"repetition_penalty": 1.5}, ""),
    Case({"min_tokens": 5}, ""),
    Case({"bad_words": ["a"]}, ""),
    Case({"allowed_token_ids": [5, 6]}, ""),
    Case({"allowed_token_ids": []}, "allowed_token_ids"),
    Case({"thinking_token_budget": 5}, ""),
    Case({"watermarking": True}, "watermarking"),
    Case({"response_format": SCHEMA}, ""),
    Case({"response_format": {"type": "json_object"}}, ""),
    Case({"response_format": {"type": "structural_tag", "format": {}}}, "structural_tag"),
    Case({"response_format": {"type": "nonsense"}}, "response_format"),
    Case({"response_format": {"type": "text"}}, ""),
    Case({"structured_outputs": {"choice": ["a", "b"]}}, ""),
    Case({"structured_outputs": {"regex": "a+"}}, ""),
    *[Case({"structured_outputs": wrong}, NO_OBJECT) for wrong in ("text", "", ["a"], 5, False)],
    Case({"structured_outputs": None}, ""),
    Case({"structured_outputs": {}}, "structured outputs constraint"),
    Case({"response_format": "text"}, "response_format"),
    Case({"structured_outputs": {"regex": "(["}}, "regex"),
    Case({"structured_outputs": {"regex": "a"}, "min_tokens": 3}, "min_tokens"),
    Case({"structured_outputs": {"grammar": "root ::= ("}}, "rammar"),
    Case({"structured_outputs": {"grammar": 'root ::= "a" x\nx ::= "b" x'}}, "no text ends the gr"),
    Case({"structured_outputs": {"regex": "a[^\\s\\S]"}}, "no text matches the regex"),
    Case({"structured_outputs": {"choice": [f"c{i}" for i in range(2500)]}}, ""),
    Case({"structured_outputs": {"choice": ["a" * 600_000]}}, "outputs may have 524,288"),
    Case({"bad_words": ["ab" * 40_000]}, "bad_words may have 65,536 characters, got 80,000"),
    Case({"structured_outputs": {"choice": ["a" * 300_000]}}, ""),
    Case({"structured_outputs": {"grammar": 'root ::= "a"{100000}'}}, ""),
    Case({"vllm_xargs": {"kv_transfer_params": "x"}}, "kv_transfer_params must be an object"),
    Case({"response_format": SCHEMA, "vllm_xargs": {"_shorts": "x"}}, "the engine's own"),
    Case({"vllm_xargs": {"_thought_first": 1}}, "the engine's own"),
    Case({"response_format": SCHEMA, "stop_token_ids": [77, 109]}, ""),
    Case({"tools": [TOOL], "tool_choice": "required", "stop_token_ids": [48, 49]}, ""),
    Case({"repetition_penalty": 1e-38}, "repetition_penalty must be a number of 1e-06..1e+06"),
    Case({"thinking_token_budget": 2**63 - 1, **THINK}, ""),
    Case({"thinking_token_budget": 2**64 - 1, **THINK}, "thinking_token_budget must hold"),
    Case({"top_k": 10**30, "temperature": 1}, "top_k must hold whole numbers below 2^63"),
    Case({"repetition_detection": {"max_pattern_size": 10**30, "min_count": 3}}, "2^63"),
    Case({"logprobs": True, "logprob_token_ids": [5], "allowed_token_ids": [6], **ONLY}, "leaves"),
    Case({"logprobs": True, "logprob_token_ids": [104], "bad_words": ["y"], **ONLY}, "leaves no"),
    Case({"seed": -1}, ""),
    Case({"seed": -(2**63)}, ""),
    Case({"seed": 2**63 - 1}, ""),
    Case({"seed": 2**70}, "seed"),
    Case({"seed": "x"}, "seed"),
    Case({"seed": 1.5}, "seed"),
    Case({"temperature": -1}, "temperature"),
    Case({"temperature": 1e30}, "temperature"),
    Case({"temperature": float("nan")}, "temperature"),
    Case({"temperature": float("inf")}, "temperature"),
    Case({"temperature": 1e-30}, ""),
    Case({"top_p": 0}, "top_p"),
    Case({"top_p": float("nan")}, "top_p"),
    Case({"top_k": -5}, "top_k"),
    Case({"top_k": 2**40, "temperature": 1, "seed": 1}, ""),
    Case({"top_p": 1e-30, "temperature": 1, "seed": 1}, ""),
    Case({"max_tokens": 10**9}, "max_tokens"),
    Case({"max_completion_tokens": 10**9}, "max_completion_tokens"),
    Case({"max_tokens": 0}, "max_tokens"),
    Case({"stop": [""]}, "stop"),
    Case({"stop": 5}, "stop"),
    Case({"stop_token_ids": [10**6]}, "stop_token_ids"),
    Case({"stop_token_ids": [-1]}, "stop_token_ids"),
    Case({"n": 0}, "n must be"),
    Case({"n": 10**5}, "n must be"),
    Case({"use_beam_search": True, "n": 2}, "beam search"),
    Case({"best_of": 3}, ""),  # unknown to vLLM's chat protocol
    Case({"vllm_xargs": {"diffusion_steps": 3}}, "diffusion_steps"),
    Case({"vllm_xargs": {"diffusion_": "x"}}, "unknown diffusion_"),
    Case({"vllm_xargs": {"diffusion_max_steps": 2, "diffusion_t_max": 0.5}}, ""),
    Case({"vllm_xargs": {"a": {"b": 1}}}, "vllm_xargs"),
    Case({"vllm_xargs": {"somebody_elses": 3}}, ""),
    Case({"messages": []}, "empty"),
    Case({"messages": None}, "iterable"),
    Case({"messages": [{"role": "user", "content": 5}]}, "content"),
    Case({"messages": [{"role": "user", "content": "\ud800"}]}, "TextEncodeInput"),
    Case({"messages": [{"role": "user", "content": "\0<|image|> <|turn>"}]}, ""),
    Case({"messages": [{"role": "tool", "content": "x", "tool_call_id": "y"}]}, ""),
    Case({"messages": [{"role": "user", "content": "a" * 9000}]}, "4096"),
    Case(user({"type": "image_url", "image_url": {"url": PNG}}), ""),
    Case({"messages": [
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]},
        *MESSAGES,
    ]}, "the chat template shows no image"),
    Case(user({"type": "image_url", "image_url": {"url": "FILE:///etc/passwd"}}), "media"),
    Case(user({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}}), "video"),
    Case(user({"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}), "audio"),
    Case(user({"type": "image_embeds", "image_embeds": "AA=="}), "image_embeds"),
    Case({"model": "nobody"}, "nobody"),
    Case({"tools": [{"type": "function", "function": {}}]}, "tools"),
    Case({"tool_choice": "required"}, "tools"),
    Case({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool"),
    Case({"chat_template": "{{ 1/0 }}"}, "template"),
    Case({"chat_template_kwargs": {"enable_thinking": "maybe"}}, ""),
    Case({"cache_salt": ""}, "cache_salt"),
    Case({"stream_options": {"include_usage": True}}, "tream"),
    Case({"ignore_eos": True, "max_tokens": 300}, ""),
    Case({"reasoning_effort": "low"}, ""),
]
COMPLETIONS = [
    Case({"vllm_xargs": {"diffusion_template": [5, -1, 6]}}, ""),
    Case({"vllm_xargs": {"diffusion_template": [5, 384]}}, "tokens of -1..383"),
    Case({"prompt": [2, 5000]}, "5000"),
    Case({"prompt": [384]}, "384"),
    Case({"prompt": [-1]}, "prompt"),
    Case({"prompt": [2**40]}, "vocabulary"),
    Case({"prompt": ["a", 5]}, "prompt"),
    Case({"prompt": ""}, "prompt"),
    Case({"prompt": []}, "prompt"),
    Case({"prompt": [379, 383]}, ""),  # an image's token without an image
    Case({"prompt": [5] * 5000}, "4096"),
    Case({"prompt": [5] * 4096}, "max_tokens"),
    Case({"prompt": [5] * 4095}, ""),
    Case({"echo": True, "logprobs": 1}, "logprobs"),
    Case({"echo": True, "logprobs": 0, "max_tokens": 0}, "logprobs"),
    Case({"echo": True, "max_tokens": 0}, ""),
    Case({"logprobs": 0}, ""),
    Case({"prompt_logprobs": 0}, "prompt_logprobs"),
    Case({"max_tokens": 0}, "max_tokens"),
    Case({"suffix": "c"}, ""),
    Case({"suffix": "c", "echo": True}, "suffix does not go with echo"),
    Case({"suffix": "c", "max_tokens": 0}, "max_tokens"),
    Case({"suffix": "c", "vllm_xargs": {"diffusion_template": [5]}}, "suffix does not go with"),
    Case({"prompt_embeds": "AAAA"}, "prompt-embeds"),
    Case({"response_format": {"type": "json_object"}}, ""),
    *[Case({"structured_outputs": wrong}, NO_OBJECT) for wrong in ("text", ["a"], 0)],
    Case({"response_format": ["text"]}, "response_format"),
    Case({"truncate_prompt_tokens": 10**7}, "truncate_prompt_tokens"),
    Case({"use_beam_search": True, "n": 2}, "beam search"),
]
OTHERS = [
    (RESPOND, Case({"top_logprobs": 2, "include": ["message.output_text.logprobs"]}, "")),
    (RESPOND, Case({"text": {"format": {"type": "json_object"}}}, "")),
    (RESPOND, Case({"background": True}, "background")),
    (RESPOND, Case({"previous_response_id": "resp_x"}, "resp_x")),
    (RESPOND, Case({"input": None}, "input")),
    (RESPOND, Case({"vllm_xargs": {"diffusion_steps": 3}}, "diffusion_steps")),
    (RESPOND, Case({"temperature": -1}, "temperature")),
    (RESPOND, Case({"structured_outputs": {"regex": "(["}}, "regex")),
    (RESPOND, Case({"structured_outputs": "text"}, NO_OBJECT)),
    (RESPOND, Case({"text": {"format": "text"}}, "format")),
    (RESPOND, Case({"logit_bias": {"50000": 1}}, "logit_bias")),
    (MESSAGE, Case({"max_tokens": 0}, "max_tokens")),
    (MESSAGE, Case({"messages": [{"role": "user", "content": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png",
                                     "data": PNG.partition(",")[2]}}]}]}, "")),
    (MESSAGE, Case({"output_config": {"format": "text"}}, "format")),
    ("/invocations", Case({"prompt_logprobs": 1}, "prompt_logprobs")),
    ("/invocations", Case({"structured_outputs": "text"}, NO_OBJECT)),
    (CHATS_AT_ONCE, Case({"structured_outputs": "text", "messages": [MESSAGES]}, NO_OBJECT)),
    (CHATS_AT_ONCE, Case({"response_format": "text", "messages": [MESSAGES]}, "response_format")),
    ("/generative_scoring",
     Case({"query": "a", "items": ["b"], "label_token_ids": [5, 6]}, "")),
    ("/generative_scoring",
     Case({"query": "a", "items": ["b"], "label_token_ids": [5, 6], "priority": 5}, "priority")),
    ("/v1/systemone", Case({}, "state")),
    ("/detokenize", Case({"tokens": [-5]}, "tokens")),
    ("/v1/embeddings", Case({}, "Not Found")),
]
BODIES = [b'{"model":', b"[]", b"", b"\xff\xfe", b"null", b'{"messages": {}}', b'{"n": 1e999}']


@pytest.fixture(scope="session")
def post(server, model):
    def send(path, options, raw=None):
        """Status and text of the answer."""
        body = {
            "model": model, "max_tokens": 16, "temperature": 0,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        if path == RESPOND:
            body["input"] = "Hello"
            body["max_output_tokens"] = body.pop("max_tokens")
        elif path == COMPLETE:
            body["prompt"] = "ab"
        else:
            body["messages"] = MESSAGES
        data = json.dumps(body | options).encode() if raw is None else raw
        line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        line.request("POST", path, data, {"Content-Type": "application/json"})
        answer = line.getresponse()
        text = answer.read().decode()
        line.close()
        return answer.status, text

    return send


def groups(cases, size=8):
    return [cases[i : i + size] for i in range(0, len(cases), size)]


def judge(case, status, text):
    if case.says:
        assert 400 <= status < 500, (case, status, text)
        assert case.says in text, (case, text)
    else:
        assert status == 200, (case, status, text)


@pytest.mark.parametrize("cases", groups(CHATS), ids=lambda cases: "+".join(cases[0].options))
def test_chat(post, healthy, cases):
    for case in cases:
        judge(case, *post(CHAT, case.options))
    healthy()


@pytest.mark.parametrize("cases", groups(COMPLETIONS), ids=lambda cases: "+".join(cases[0].options))
def test_completions(post, healthy, cases):
    for case in cases:
        judge(case, *post(COMPLETE, case.options))
    healthy()


def test_other_paths(post, healthy):
    for path, case in OTHERS:
        judge(case, *post(path, case.options))
    healthy()


def test_bodies_that_are_no_request(post, healthy):
    for body in BODIES:
        for path in (CHAT, COMPLETE, RESPOND, MESSAGE):
            status, text = post(path, {}, body)
            assert 400 <= status < 500, (path, body, status, text)
    healthy()


def test_a_refusal_of_a_stream(post, healthy):
    """As without streaming: a status, not an event after vLLM's 200."""
    everything = [(CHAT, c) for c in CHATS] + [(COMPLETE, c) for c in COMPLETIONS] + OTHERS
    for path, case in everything:
        if case.says and path in (CHAT, COMPLETE, RESPOND) and "stream_options" not in case.options:
            status, text = post(path, case.options | {"stream": True})
            assert 400 <= status < 500, (case, status, text)
            assert json.loads(text)["error"]["message"], (case, text)
    healthy()


def test_refused_beside_answered(post, chat, at_rest):
    """Refusals leave the requests that run beside them alone."""
    alone = chat("Count from 001 to 170.").choices[0].message.content
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(lambda: chat("Count from 001 to 170."))
        refused = [case for case in CHATS if case.says][:12]
        bad = [pool.submit(post, CHAT, case.options) for case in refused]
        assert all(400 <= b.result()[0] < 500 for b in bad)
        assert running.result().choices[0].message.content == alone
    at_rest()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves(server, model, healthy, underway, at_rest, stream):
    """Before the first chunk, and after it; its neighbours and successors do not notice."""
    body = {
        "model": model, "messages": MESSAGES, "stream": stream, "max_tokens": 3500,
        "ignore_eos": True, "temperature": 1,
    }
    for reads in (False, True) if stream else (False,):
        line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        line.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
        underway()
        if reads:
            answer = line.getresponse()
            for _ in range(3):
                answer.readline()
        line.close()
        at_rest()
    healthy()
