"""Every field of vLLM's chat, completions and responses requests: what it does, or its refusal.

A field that this vLLM has and the tables below do not name fails the test.  All requests go out
first, beside each other; each test looks at its own field's answers.
"""

import http.client
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

QUESTION, COUNT = "Count from 10 to 25.", "Count from 001 to 060."
WEATHER = "What is the weather in Cairo?"
TURN = "<bos><|turn>user\n{}<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
DIGITS = "0123456789 "
LIMIT = 120
CITY = {"type": "object", "properties": {"city": {"enum": ["Cairo", "Paris"]}},
        "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Weather in a city", "parameters": CITY}
YES = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"],
       "additionalProperties": False}
SCHEMA = {"name": "answer", "schema": YES}
PATHS = {"c": "/v1/chat/completions", "t": "/v1/completions", "r": "/v1/responses"}
# Nothing is certain any more: the noise of the seed decides.
HOT = {
    "question": "Zebra quokka 9x%", "temperature": 2.0, "seed": 1, "ignore_eos": True,
    "vllm_xargs": {
        "diffusion_t_min": 50, "diffusion_t_max": 50, "diffusion_max_denoising_steps": 2}}
SHORT = {"ignore_eos": True, "vllm_xargs": {  # five canvases
    "diffusion_canvas_length": 24, "diffusion_max_steps": 2}}
# For asks that the model works against: what a field forbids holds after any number of steps.
FEW = {"vllm_xargs": {"diffusion_max_steps": 6}}
THINK = {"chat_template_kwargs": {"enable_thinking": True}}
SPECIAL = {"ignore_eos": True, "skip_special_tokens": False}


def ids(text: str) -> list[int]:
    from transformers import AutoTokenizer

    from diffusiongemma_vllm.cli.main import MINIATURE

    return AutoTokenizer.from_pretrained(MINIATURE).encode(text, add_special_tokens=False)


class Reply(NamedTuple):
    """An answer of any of the three."""

    status: int
    body: str

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def chunks(self) -> list[dict]:
        lines = [line.removeprefix("data: ") for line in self.body.splitlines()]
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def choice(self) -> dict:
        return self.json["choices"][0]

    @property
    def message(self) -> dict:
        return self.choice["message"]

    @property
    def text(self) -> str:
        if "output" in self.json:
            items = [item for item in self.json["output"] if item["type"] == "message"]
            return "".join(part["text"] for item in items for part in item["content"])
        return self.choice["text"] if "text" in self.choice else self.message["content"] or ""

    @property
    def thought(self) -> str:
        if "output" in self.json:
            items = [item for item in self.json["output"] if item["type"] == "reasoning"]
            return "".join(part["text"] for item in items for part in item["content"] or ())
        return self.message.get("reasoning") or ""

    @property
    def tokens(self) -> int:
        usage = self.json["usage"]
        return usage.get("completion_tokens", usage.get("output_tokens"))

    @property
    def prompt_tokens(self) -> int:
        usage = self.json["usage"]
        return usage.get("prompt_tokens", usage.get("input_tokens"))

    @property
    def called(self) -> list[str]:
        if "output" in self.json:
            return [one["name"] for one in self.json["output"] if one["type"] == "function_call"]
        return [call["function"]["name"] for call in self.message.get("tool_calls") or ()]


class Case(NamedTuple):
    """apis: c(hat), t(ext completions), r(esponses).  asks: options on top of the plain request.

    honoured: called with the plain answer, or the one to ``HOT``, and those to ``asks``.
    """

    apis: str
    field: str
    asks: tuple[dict, ...]
    honoured: Callable[..., Any]
    against: str = "plain"


class Refused(NamedTuple):
    apis: str
    field: str
    options: dict
    says: str


def case(apis: str, field: str, *asks: Any, honoured: Callable[..., Any], **more: Any) -> Case:
    """An ask that is no dict is the field's value."""
    own = tuple(one if isinstance(one, dict) and field in one else {field: one} for one in asks)
    return Case(apis, field, own, honoured, **more)


def differs(plain: Reply, *got: Reply) -> bool:
    return all(one.text != plain.text for one in got)


def cut(plain: Reply, got: Reply) -> bool:
    return got.tokens == 5 and plain.text.startswith(got.text)


def valid(plain: Reply, got: Reply) -> bool:
    return list(json.loads(got.text)) == ["yes"]


def joined(plain: Reply, got: Reply) -> bool:
    found = ""
    for chunk in got.chunks:
        if chunk.get("type") == "response.output_text.delta":
            found += chunk["delta"]
        for choice in chunk.get("choices", ()):
            found += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return found == plain.text


def pieces(got: Reply) -> int:
    choices = [choice for chunk in got.chunks for choice in chunk.get("choices", ())]
    return sum(bool(one.get("text") or (one.get("delta") or {}).get("content")) for one in choices)


def told(got: Reply) -> list[dict]:
    """Log-probabilities of a response."""
    (message,) = [item for item in got.json["output"] if item["type"] == "message"]
    return message["content"][0]["logprobs"]


def prompt_ids(got: Reply) -> list[int]:
    return got.json.get("prompt_token_ids") or got.choice["prompt_token_ids"]


A, ONE, FIVE = ids("a")[0], ids("1")[0], ids("5")[0]
TEXT = [
    case("ctr", "frequency_penalty", FEW | {"frequency_penalty": 2.0}, honoured=differs),
    case("ctr", "presence_penalty", HOT | {"presence_penalty": 2.0}, honoured=differs,
         against="hot"),
    case("ctr", "repetition_penalty", FEW | {"repetition_penalty": 5.0}, honoured=differs),
    case("ctr", "logit_bias", FEW | {"logit_bias": {str(ONE): -100}},
         honoured=lambda plain, got: "1" in plain.text and "1" not in got.text),
    case("ct", "bad_words", ["1"], honoured=lambda plain, got: "1" not in got.text),
    case("ct", "allowed_token_ids", FEW | {"allowed_token_ids": ids(DIGITS) + [106]},
         honoured=lambda plain, got: got.text and set(got.text) <= set(DIGITS)),
    case("ct", "min_tokens", 100, honoured=lambda plain, got: plain.tokens < 100 <= got.tokens),
    case("ct", "max_tokens", 5, honoured=cut),
    case("c", "max_completion_tokens", 5, honoured=cut),
    case("r", "max_output_tokens", 5, honoured=lambda plain, got: (
        cut(plain, got) and got.json["status"] == "incomplete")),
    case("ctr", "ignore_eos", True, honoured=lambda plain, got: got.tokens == LIMIT),
    case("ctr", "stop", ["15"], honoured=lambda plain, got: (
        got.text == plain.text[: plain.text.index("15")])),
    case("ctr", "stop_token_ids", [FIVE], honoured=lambda plain, got: (
        got.tokens == ids(plain.text).index(FIVE) + 1)),
    case("ctr", "include_stop_str_in_output", {"stop": "15", "include_stop_str_in_output": True},
         honoured=lambda plain, got: got.text == plain.text[: plain.text.index("15") + 2]),
    case("ct", "n", {"n": 2, "temperature": 1, "seed": 1}, honoured=lambda plain, got: (
        [one["index"] for one in got.json["choices"]] == [0, 1])),
    case("ctr", "temperature", HOT | {"temperature": 0.01}, honoured=differs, against="hot"),
    case("ctr", "top_p", HOT | {"top_p": 1e-6}, honoured=differs, against="hot"),
    case("ctr", "top_k", HOT | {"top_k": 1}, honoured=differs, against="hot"),
    case("ctr", "min_p", HOT | {"min_p": 1.0}, honoured=differs, against="hot"),
    case("ctr", "seed", HOT, HOT | {"seed": 2}, honoured=lambda hot, again, other: (
        hot.text == again.text != other.text), against="hot"),
    case("ct", "response_format",
         {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, honoured=valid),
    case("r", "text", {"text": {"format": {"type": "json_schema", **SCHEMA}}}, honoured=valid),
    case("ctr", "structured_outputs", {"structured_outputs": {"choice": ["yes", "no"]}},
         honoured=lambda plain, got: got.text in ("yes", "no")),
    case("ctr", "vllm_xargs", {"vllm_xargs": {"diffusion_template": ids("abc")}},
         honoured=lambda plain, got: got.text.startswith("abc")),
    case("ct", "repetition_detection",
         {"logit_bias": {str(A): 100}, "ignore_eos": True,
          "repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 1, "min_count": 9}},
         honoured=lambda plain, got: (
             got.choice["finish_reason"] == "repetition" and got.tokens < 30)),
    # Of tokenizers that put spaces there; Gemma's does not.
    case("ct", "spaces_between_special_tokens", *(
        SPECIAL | {"spaces_between_special_tokens": spaces} for spaces in (True, False)),
        honoured=lambda plain, spaces, none: spaces.text == none.text),
    case("t", "suffix", "", {
        "prompt": TURN.format("Write a JSON object: name is nina, color is grey.") + '{"name": "',
        "suffix": '", "color": "grey"}', "max_tokens": 4,
    }, honoured=lambda plain, none, got: none.text == plain.text and got.text == "nina"),
]
LOGPROBS = [
    case("c", "logprobs", True, honoured=lambda plain, got: (
        len(got.choice["logprobs"]["content"]) == got.tokens)),
    case("t", "logprobs", 2, honoured=lambda plain, got: any(
        len(one) >= 2 for one in got.choice["logprobs"]["top_logprobs"])),
    case("c", "top_logprobs", {"logprobs": True, "top_logprobs": 2}, honoured=lambda plain, got: {
        len(one["top_logprobs"]) for one in got.choice["logprobs"]["content"]} == {2}),
    case("r", "top_logprobs",
         {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
         honoured=lambda plain, got: {len(one["top_logprobs"]) for one in told(got)} == {2}),
    case("r", "include", {"include": ["message.output_text.logprobs"]},
         honoured=lambda plain, got: len(told(got)) >= len(ids(plain.text))),
    case("c", "logprob_token_ids", {"logprobs": True, "logprob_token_ids": [A, ONE]},
         honoured=lambda plain, got: {"a", "1"} <= {
             one["token"] for one in got.choice["logprobs"]["content"][0]["top_logprobs"]}),
    case("t", "logprob_token_ids", {"logprobs": 1, "logprob_token_ids": [A, ONE]},
         honoured=lambda plain, got: {"a", "1"} <= set(
             got.choice["logprobs"]["top_logprobs"][0])),
    case("c", "return_tokens_as_token_ids",
         {"logprobs": True, "return_tokens_as_token_ids": True}, honoured=lambda plain, got: (
             got.choice["logprobs"]["content"][0]["token"] == f"token_id:{ONE}")),
    case("t", "return_tokens_as_token_ids",
         {"logprobs": 1, "return_tokens_as_token_ids": True}, honoured=lambda plain, got: (
             got.choice["logprobs"]["tokens"][0] == f"token_id:{ONE}")),
    case("ct", "return_token_ids", True, honoured=lambda plain, got: (
        got.choice["token_ids"][:-1] == ids(plain.text))),
]
PROMPT = [
    case("c", "messages", [{"role": "user", "content": "What is 27 + 38?"}], honoured=differs),
    case("t", "prompt", [TURN.format("What is 27 + 38?"), TURN.format(QUESTION)],
         honoured=lambda plain, got: [one["text"] for one in got.json["choices"]][1] == plain.text),
    case("r", "input", "What is 27 + 38?", honoured=differs),
    case("r", "instructions", "Be brief.", honoured=lambda plain, got: (
        got.prompt_tokens > plain.prompt_tokens)),
    case("t", "echo", True, honoured=lambda plain, got: (
        got.text == TURN.format(QUESTION) + plain.text)),
    case("c", "add_generation_prompt", FEW | {"add_generation_prompt": False},
         honoured=lambda plain, got: got.prompt_tokens < plain.prompt_tokens),
    case("c", "continue_final_message",
         {"messages": [{"role": "user", "content": QUESTION},
                       {"role": "assistant", "content": "10 11"}], "return_prompt_text": True,
          "continue_final_message": True, "add_generation_prompt": False},
         honoured=lambda plain, got: got.json["prompt_text"].endswith("10 11")),
    case("c", "chat_template_kwargs", THINK, honoured=lambda plain, got: (
        got.thought and not plain.thought)),
    case("r", "chat_template_kwargs", THINK, honoured=lambda plain, got: (
        got.thought and not plain.thought)),
    case("c", "reasoning_effort", {"reasoning_effort": "low", "chat_template_kwargs": {}},
         {"reasoning_effort": "none", "chat_template_kwargs": {}},
         honoured=lambda plain, low, none: low.thought and not none.thought),
    case("r", "reasoning", {"reasoning": {"effort": "low"}, "chat_template_kwargs": {}},
         {"reasoning": {"effort": "none"}, "chat_template_kwargs": {}},
         honoured=lambda plain, low, none: low.thought and not none.thought),
    case("cr", "include_reasoning", THINK | {"include_reasoning": False},
         honoured=lambda plain, got: not got.thought and got.text),
    case("c", "thinking_token_budget", THINK | {"thinking_token_budget": 3},
         honoured=lambda plain, got: got.text and len(ids(got.thought)) <= 3),
    case("t", "thinking_token_budget",
         {"prompt": TURN.format(QUESTION).removesuffix("<channel|>"), "thinking_token_budget": 3,
          "return_token_ids": True}, honoured=lambda plain, got: got.choice["token_ids"][0] == 101),
    case("ct", "truncate_prompt_tokens", 10, honoured=lambda plain, got: got.prompt_tokens == 10),
    case("ct", "truncation_side", *(
        {"truncate_prompt_tokens": 10, "truncation_side": side, "return_token_ids": True}
        for side in ("left", "right")), honoured=lambda plain, left, right: (
            prompt_ids(left) != prompt_ids(right) and prompt_ids(right)[0] == 2)),
    case("r", "truncation", {"truncation": "auto", "input": "a" * 9000, "max_output_tokens": 5},
         honoured=lambda plain, got: got.prompt_tokens <= 4096),
    case("c", "return_prompt_text", True, honoured=lambda plain, got: (
        got.json["prompt_text"] == TURN.format(QUESTION))),
    case("r", "enable_response_messages", True, honoured=lambda plain, got: (
        got.json["input_messages"] and not plain.json.get("input_messages"))),
]
TOOLS = {"c": [{"type": "function", "function": FUNCTION}],
         "r": [{"type": "function"} | FUNCTION]}
ASKED, TWICE = (
    {"c": {"messages": [{"role": "user", "content": text}]}, "t": {"prompt": TURN.format(text)},
     "r": {"input": text}} for text in (WEATHER, f"{WEATHER} What is the weather in Paris?")
)
LONG = {"c": {"messages": [{"role": "user", "content": COUNT}]},
        "t": {"prompt": TURN.format(COUNT)}}
CALLS = [
    one for api in "cr" for one in (
        case(api, "tools", ASKED[api] | {"tools": TOOLS[api]}, honoured=lambda plain, got: (
            got.called == ["get_weather"])),
        case(api, "tool_choice", ASKED[api] | {"tools": TOOLS[api], "tool_choice": "none"},
             {"tools": TOOLS[api], "tool_choice": "required"},
             honoured=lambda plain, none, forced: not none.called and not forced.text),
        case(api, "parallel_tool_calls", *(
            TWICE[api] | {"tools": TOOLS[api], "parallel_tool_calls": parallel}
            for parallel in (True, False)
        ), honoured=lambda plain, both, one: len(one.called) == 1 <= len(both.called)),
    )
]
TRANSPORT = [
    case("ctr", "stream", True, honoured=joined),
    case("ct", "stream_options", {"stream": True, "stream_options": {"include_usage": True}},
          honoured=lambda plain, got: got.chunks[-1]["usage"]["completion_tokens"] == plain.tokens),
    *(case(api, "stream_interval", LONG[api] | SHORT | {"stream": True, "stream_interval": 1000},
           honoured=lambda plain, got: 0 < pieces(got) < 3) for api in "ct"),
    case("ctr", "request_id", "mine", honoured=lambda plain, got: "mine" in got.json["id"]),
    case("t", "skip_special_tokens", SPECIAL, honoured=lambda plain, got: "<turn|>" in got.text),
]
CASES = [*TEXT, *LOGPROBS, *PROMPT, *CALLS, *TRANSPORT]
# What says nothing to the model: all of it in one request, whose text is the plain one.
SILENT = [
    ("ctr", "cache_salt", "a secret"),  # of the prefix cache
    ("ctr", "session_id", "mine"), ("ctr", "user", "me"), ("r", "prompt_cache_key", "x"),
    ("r", "metadata", {"a": "b"}), ("r", "service_tier", "flex"), ("r", "max_tool_calls", 3),
    ("r", "store", True),
    ("ct", "add_special_tokens", True),  # the tokenizer has none to add: templates write <bos>
    ("cr", "skip_special_tokens", False),  # our parser needs the markers, and drops them
    ("ct", "length_penalty", 2.0),  # of beam search, which is refused
    # Of connectors, images, expert records and the render API: nothing here.
    ("ctr", "kv_transfer_params", {"a": 1}), ("ctr", "ec_transfer_params", {"a": 1}),
    ("ctr", "mm_payload", "none"), ("ctr", "return_mm_kwargs", False),
    ("ct", "return_token_offsets", True), ("ct", "routed_experts_prompt_start", 1),
]
ECHOED = ("user", "metadata", "service_tier", "max_tool_calls")  # by a response
REFUSED = [
    Refused("ctr", "model", {"model": "nobody"}, "nobody"),
    Refused("ctr", "watermarking", {"watermarking": True}, "watermark"),
    Refused("ctr", "priority", {"priority": 1}, "priority"),
    Refused("ct", "use_beam_search", {"use_beam_search": True}, "beam search"),
    Refused("ct", "prompt_logprobs", {"prompt_logprobs": 1}, "prompt_logprobs"),
    Refused("c", "echo", {"echo": True}, "without echo"),
    Refused("c", "chat_template", {"chat_template": "{{ messages }}"}, "template"),
    Refused("c", "documents", {"documents": [{"text": "a"}]}, "reads no documents"),
    Refused("cr", "mm_processor_kwargs", {"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs"),
    Refused("cr", "media_io_kwargs", {"media_io_kwargs": {"image": {"a": 1}}}, "media_io_kwargs"),
    Refused("t", "prompt_embeds", {"prompt_embeds": "AAAA"}, "prompt-embeds"),
    Refused("r", "prompt", {"prompt": {"id": "x"}}, "prompt template"),
    Refused("r", "background", {"background": True}, "background"),
    Refused("r", "previous_response_id", {"previous_response_id": "resp_x"}, "resp_x"),
    Refused("r", "previous_input_messages",
            {"previous_input_messages": [{"role": "user", "content": "a"}]}, "harmony"),
]


def fields(api: str) -> set[str]:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    requests = {"c": ChatCompletionRequest, "t": CompletionRequest, "r": ResponsesRequest}
    return set(requests[api].model_fields)


@pytest.mark.parametrize("api", PATHS)
def test_every_field_of_this_vllm_is_in_the_tables(api):
    named = [one.field for one in (*CASES, *REFUSED) if api in one.apis]
    named += [field for apis, field, _ in SILENT if api in apis]
    assert sorted(named) == sorted(fields(api))


@pytest.fixture(scope="module")
def post(server, model):
    def plain(api: str, question: str) -> dict:
        return {
            "c": {"messages": [{"role": "user", "content": question}], "max_tokens": LIMIT},
            "t": {"prompt": TURN.format(question), "max_tokens": LIMIT,
                  "add_special_tokens": False},
            "r": {"input": question, "max_output_tokens": LIMIT},
        }[api]

    answer = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": 0, "model": model}

    def send(api: str, options: dict) -> Reply:
        own = dict(options)
        body = json.dumps(plain(api, own.pop("question", QUESTION)) | answer | own)
        line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        line.request("POST", PATHS[api], body, {"Content-Type": "application/json"})
        answered = line.getresponse()
        reply = Reply(answered.status, answered.read().decode())
        line.close()
        return reply

    return send


@pytest.fixture(scope="module")
def replies(post):
    """(api, field) -> the answers to its asks; (api, "plain"), (api, "hot"), (api, "silent")."""
    asks = []
    for api in PATHS:
        silent = {field: value for apis, field, value in SILENT if api in apis}
        asks += [(api, "plain", {}), (api, "hot", HOT), (api, "silent", silent)]
    asks += [(api, one.field, ask) for one in CASES for api in one.apis for ask in one.asks]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda ask: post(ask[0], ask[2]), asks))
    found: dict[tuple[str, str], list[Reply]] = {}
    for (api, field, _), reply in zip(asks, answers, strict=True):
        found.setdefault((api, field), []).append(reply)
    return found


@pytest.mark.parametrize(
    ("api", "one"), [(api, one) for one in CASES for api in one.apis],
    ids=lambda value: value.field if isinstance(value, Case) else value,
)
def test_a_field_does_what_it_says(replies, api, one):
    (base,) = replies[api, one.against]
    got = replies[api, one.field]
    assert all(reply.status == 200 for reply in (base, *got)), (base, *got)
    assert one.honoured(base, *got), (base.body, *(reply.body for reply in got))


@pytest.mark.parametrize("api", "ct")
def test_without_an_interval_canvases_are_pieces(post, unjoined, api):
    unjoined(lambda: pieces(post(api, LONG[api] | SHORT | {"stream": True})), 3)  # of five


@pytest.mark.parametrize("api", PATHS)
def test_what_says_nothing_to_the_model(replies, api):
    (plain,), (silent,) = replies[api, "plain"], replies[api, "silent"]
    assert silent.status == 200 and silent.text == plain.text, silent
    assert plain.text.startswith("10 11 ")
    if api == "r":
        sent = {field: value for _, field, value in SILENT}
        assert {field: silent.json[field] for field in ECHOED} == {f: sent[f] for f in ECHOED}


@pytest.mark.parametrize("api", PATHS)
def test_a_field_that_cannot_be_honoured_is_refused(post, healthy, api):
    for one in REFUSED:
        if api in one.apis:
            reply = post(api, one.options)
            assert 400 <= reply.status < 500 and one.says in reply.body, (one, reply)
    healthy()
