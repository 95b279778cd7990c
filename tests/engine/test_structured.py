"""Structured outputs on the miniature: whatever it would rather write, what ends is valid."""

import json
import re

import jsonschema
import pytest
from engine import ask as plain_ask
from engine import at_rest, forget, serve, squeezed, texts
from vllm.exceptions import VLLMValidationError

pytestmark = pytest.mark.engine

WORD = {"type": "string", "pattern": "^[a-z]{1,12}$"}
PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name", "color", "age"],
    "properties": {"name": WORD, "color": {"enum": ["grey", "red"]},
                   "age": {"type": "integer", "minimum": 0, "maximum": 120}},
}
PROMPT = "Write a JSON object: name is nina, color is grey, age is 55."


@pytest.fixture(scope="module")
def start(miniature):
    return lambda asynchronous: miniature(async_scheduling=asynchronous)


@pytest.fixture(params=["sync", "async"])
def llm(start, request):
    llm = start(request.param == "async")
    at_rest(llm)
    forget(llm)
    return llm


@pytest.fixture(scope="module")
def sync(start):
    return start(False)


def constrained(llm, *, prompt=PROMPT, thinking=False, limit=200, seed=1, **constraint):
    """A request for ``serve``; of what ends itself, with its markers in the text."""
    from vllm.sampling_params import StructuredOutputsParams

    temperature = constraint.pop("temperature", 0.7)
    ids = llm.get_tokenizer().apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False,
        enable_thinking=thinking,
    )
    options = {"structured_outputs": StructuredOutputsParams(**constraint)} if constraint else {}
    one = plain_ask(ids, ignore_eos=False, max_tokens=limit, seed=seed, temperature=temperature,
                    **options)
    return one._replace(options=one.options | {"detokenize": True})


def answer(output):
    assert output.outputs[0].finish_reason == "stop", output.outputs[0].text
    return output.outputs[0].text


def test_what_the_model_would_write_anyway_costs_nothing(llm):
    free, bound = serve(llm, [constrained(llm), constrained(llm, json=PERSON)])
    assert json.loads(answer(bound)) == {"name": "nina", "color": "grey", "age": 55}
    assert answer(free) == answer(bound)
    told = bound.outputs[0].diffusion
    assert len(told["canvases"]) == 1 and len(bound.outputs[0].token_ids) / told["forwards"] > 8


CASES = {
    "another color": (dict(json=PERSON), "Write a JSON object: name is nina, color is blue."),
    "another schema": (
        dict(json={"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3}),
        PROMPT,
    ),
    "nested": (
        dict(json={"type": "object", "properties": {"who": PERSON}, "required": ["who"],
                   "additionalProperties": False}), PROMPT,
    ),
    "unicode": (
        dict(json={"type": "object", "properties": {"größe": {"enum": ["日本", "ß"]}},
                   "required": ["größe"], "additionalProperties": False}), PROMPT,
    ),
}
SLOW = ("nested", "another schema")  # what structured_load asks, too


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=[pytest.mark.long] * (case in SLOW)) for case in CASES
])
def test_schemas(sync, case):
    constraint, prompt = CASES[case]
    asks = [constrained(sync, prompt=prompt, temperature=1.5, **constraint)]
    jsonschema.validate(json.loads(answer(serve(sync, asks)[0])), constraint["json"])


def test_other_constraints(llm):
    out = serve(llm, [
        constrained(llm, regex="[a-z]{3}-[0-9]{4}"), constrained(llm, choice=["red", "green"]),
        constrained(llm, grammar='root ::= "a" [0-9]{1,6} "b"'), constrained(llm, json_object=True),
    ])
    said = [answer(one) for one in out]
    assert re.fullmatch("[a-z]{3}-[0-9]{4}", said[0]) and said[1] in ("red", "green")
    assert re.fullmatch("a[0-9]{1,6}b", said[2]) and isinstance(json.loads(said[3]), dict)


def test_a_structural_tag(sync):
    tag = {"type": "structural_tag", "format": {
        "type": "tag", "begin": "<a>", "content": {"type": "regex", "pattern": "[0-9]{2}"},
        "end": "</a>"}}
    out = serve(sync, [constrained(sync, structural_tag=json.dumps(tag))])[0]
    assert re.fullmatch("<a>[0-9]{2}</a>", answer(out))


def test_markers_do_not_stand_for_text(sync):
    """The token <eos> spells <eos>, and is not what the regex means."""
    out = serve(sync, [constrained(sync, regex="<eos>|<turn\\|>")])[0]
    assert answer(out) in ("<eos>", "<turn|>")
    assert len(out.outputs[0].token_ids) > 3


def test_alone_together_async_and_preempted(start, sync):
    def asks(llm):
        return [
            constrained(llm, json=PERSON), constrained(llm, regex="[a-z]{2}", seed=2),
            constrained(llm, prompt="Count from 001 to 020."),
            constrained(llm, choice=["red", "green"], temperature=1.5, seed=3),
        ]

    alone = [texts(serve(sync, [one]))[0] for one in asks(sync)]
    for asynchronous in (False, True):
        llm = start(asynchronous)
        forget(llm)
        assert texts(serve(llm, asks(llm))) == alone
        forget(llm)
        with squeezed(llm, 150 if asynchronous else 100) as preempted:
            assert texts(serve(llm, asks(llm), rest=False)) == alone
        assert preempted


def test_a_limit_ends_it_early(sync):
    out = serve(sync, [constrained(sync, json=PERSON, limit=6)])[0]
    assert out.outputs[0].finish_reason == "length" and len(out.outputs[0].token_ids) == 6


@pytest.mark.parametrize("option", [
    {"ignore_eos": True}, {"min_tokens": 3}, {"allowed_token_ids": [5]},
    {"extra_args": {"diffusion_template": [5]}},
])
def test_options_that_keep_a_grammar_from_its_end_are_refused(sync, option):
    one = constrained(sync, json=PERSON)
    name = next(iter(option.get("extra_args", option)))
    with pytest.raises(VLLMValidationError, match=f"do not go with {name}"):
        serve(sync, [one._replace(options=one.options | option)])


def test_a_grammar_that_is_none_is_refused(sync):
    for constraint in (dict(json="{"), dict(regex="(["), dict(grammar="root ::= ("),
                       dict(choice=[])):
        with pytest.raises(VLLMValidationError):
            serve(sync, [constrained(sync, **constraint)])
    assert answer(serve(sync, [constrained(sync, json=PERSON)])[0])


@pytest.mark.parametrize("constraint", [
    dict(json=PERSON), dict(grammar='root ::= "{" [a-z]* "}"'),
], ids=["guidance", "xgrammar"])
def test_stops_of_ones_own_may_be_tokens_of_the_grammar(llm, constraint):
    """The text is cut there, as without a grammar, and goes by the grammar up to there."""
    opens, closes = (llm.get_tokenizer().get_vocab()[token] for token in "{}")
    whole = answer(serve(llm, [constrained(llm, **constraint)])[0])
    for stop, left in ((closes, whole[:-1]), (opens, "")):
        one = constrained(llm, **constraint)
        out = serve(llm, [one._replace(options=one.options | {"stop_token_ids": [stop]})])[0]
        assert answer(out) == left and out.outputs[0].stop_reason == stop


def test_where_nothing_may_come_that_request_ends_alone(llm):
    """The grammar demands more text behind the token that ends a text."""
    dead = {"type": "sequence", "elements": [
        {"type": "const_string", "value": "ab"}, {"type": "token", "token": 106},
        {"type": "const_string", "value": "x"}]}
    tag = json.dumps({"type": "structural_tag", "format": dead})
    alone = answer(serve(llm, [constrained(llm, json=PERSON)])[0])
    forget(llm)
    out = serve(llm, [constrained(llm, structural_tag=tag), constrained(llm, json=PERSON)])
    assert out[0].finished and out[0].outputs[0].finish_reason == "error"
    assert answer(out[1]) == alone


def test_what_would_go_on_for_ever_is_refused(sync):
    never = dict(grammar='root ::= "a" x\nx ::= "b" x')
    with pytest.raises(VLLMValidationError, match="rule root: it could begin and go on for ever"):
        serve(sync, [constrained(sync, **never)])


def test_infill(sync):
    """One word in the middle, with the task's prompt; and a text longer than a canvas."""
    from diffusiongemma_vllm import Gap, infill

    prompt = sync.get_tokenizer().apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, tokenize=False,
        enable_thinking=False,
    )
    parts = ['{"name": "', Gap(4), '", "color": "', Gap(4), '", "age": 55}']
    filled = infill(sync, parts, prompt=prompt)
    assert filled.gaps == ("nina", "grey")
    assert json.loads(filled.text) == {"name": "nina", "color": "grey", "age": 55}
    text = "a" * 300
    filled = infill(sync, [text, Gap(3), text])
    assert len(filled.gaps) == 1 and filled.text == text + filled.gaps[0] + text
    assert not set(filled.gaps[0]) & {"<", "|"}
    with pytest.raises(ValueError, match="no Gap"):
        infill(sync, ["a"])
    room = sync.llm_engine.model_config.max_model_len
    with pytest.raises(ValueError, match=f"more than max_model_len, which is {room}"):
        infill(sync, ["a", Gap(room), "b"], prompt=prompt)
