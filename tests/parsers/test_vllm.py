"""Our parsers behind vLLM's classes: what is configured, what is asked, how the prompt ends."""

import json

import pytest
from turns import tokenized

pytest.importorskip("vllm")

from runs import NEW_TURN, OPEN, TOKENIZER, TOOLS, F, G, Pair, Run, request  # noqa: E402
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: E402

from diffusiongemma_vllm.parsers.parser import TurnParser  # noqa: E402


class OnlyTools(TurnParser):
    reasoning_parser_cls = None


class OnlyReasoning(TurnParser):
    tool_parser_cls = None


BOTH = pytest.mark.parametrize("composed", [TurnParser, Pair], ids=["server", "pair"])


@BOTH
def test_a_thought_a_text_two_calls(composed):
    text = f"<|channel>thought\nHm.\n<channel|>Let me see.{F}{G}<|tool_response>"
    calls = [("f", '{"a": "x"}'), ("g", '{"a": "5"}')]
    Run(composed, text).check("Hm.", "Let me see.", calls)


@BOTH
def test_thoughts_between_calls(composed):
    thought = "<|channel>thought\nHm.<channel|>"
    text = thought + F + thought + "So." + G
    Run(composed, text).check("Hm.Hm.", "So.", [("f", '{"a": "x"}'), ("g", '{"a": "5"}')])


@BOTH
def test_a_prompt_inside_an_open_thought(composed):
    asked = ChatCompletionRequest(
        model="m",
        messages=[{"role": "user", "content": "Hi"}, {"role": "tool", "content": "4"}],
        tools=TOOLS,
    )
    run = Run(composed, f"Hm.<channel|>Yes.{F}", asked, prompt=OPEN)
    run.check("Hm.", "Yes.", [("f", '{"a": "x"}')])


@BOTH
def test_an_unclosed_thought_is_reasoning(composed):
    Run(composed, "<|channel>thought\nHm, I").check("Hm, I", "", [])


@BOTH
def test_thinking_off(composed):
    Run(composed, f"thought\nYes.{F}", thinking=False).check(
        "", "thought\nYes.", [("f", '{"a": "x"}')]
    )
    Run(composed, "<|channel>thought\n<channel|>Yes.", thinking=False).check("", "Yes.", [])


NAMED = {"type": "function", "function": {"name": "f"}}


@BOTH
@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=str)
def test_forced_calls_use_the_same_syntax(composed, choice):
    asked = (
        Run(composed, "", request(tool_choice=choice))
        .parser()
        .adjust_request(request(tool_choice=choice))
    )
    assert asked.skip_special_tokens is False
    if choice == "auto":
        assert asked.structured_outputs is None
    else:  # no JSON: a structural tag in the model's own syntax
        assert "call:f" in asked.structured_outputs.structural_tag
    Run(composed, F, asked).check("", "", [("f", '{"a": "x"}')])
    Run(composed, "No.", asked).check("", "No.", [])


@BOTH
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_name_may_begin_with_a_digit(composed, choice):
    tool = {"type": "function", "function": {"name": "2fa", "parameters": {}}}
    run = Run(composed, F.replace(":f{", ":2fa{"), request(tools=[tool], tool_choice=choice))
    run.parser().adjust_request(run.asked)
    run.check("", "", [("2fa", '{"a": "x"}')])


@BOTH
@pytest.mark.parametrize("asked", [{"tool_choice": "none"}, {"tools": None}], ids=str)
def test_without_tools_to_call_a_call_is_text(composed, asked):
    text = 'See. call:f{a:<|"|>x<|"|>} Done.'
    Run(composed, f"See. {F} Done.", request(**asked)).check("", text, [])


def test_reasoning_can_be_left_out():
    run = Run(
        TurnParser, f"<|channel>thought\nHm.<channel|>Yes.{F}", request(include_reasoning=False)
    )
    assert run.streamed(3) == ("", "Yes.", [("f", '{"a": "x"}')])


def test_reasoning_tokens_are_counted():
    run = Run(TurnParser, f"<|channel>thought\nHm.<channel|>Yes.{F}")
    ids = [i for i, _ in run.tokens]
    assert run.parser().count_reasoning_tokens(ids) == len(TOKENIZER.encode("thought\nHm."))


def test_only_tools_configured():
    thought = "<|channel>thought\nHm.<channel|>"
    Run(OnlyTools, f"{thought}Yes.{F}").check("", f"{thought}Yes.", [("f", '{"a": "x"}')])


def test_only_reasoning_configured():
    thought = "<|channel>thought\nHm.<channel|>"
    for thinking in (True, False):
        Run(OnlyReasoning, f"{thought}Yes.{F}{thought}No.<turn|>", thinking=thinking).check(
            "Hm.Hm.", f"Yes.{F}No.", []
        )


@BOTH
def test_a_cut_call_is_visibly_incomplete(composed):
    run = Run(composed, f'So. {F}<|tool_call>call:f{{a:<|"|>rm -rf /tm')
    calls = [("f", '{"a": "x"}'), ("f", '{"a": "rm -rf /tm')]
    run.check("", "So. ", calls)


def test_text_and_arguments_go_out_as_they_come():
    """Never more than a marker's length behind, and no JSON is ever taken back."""
    body = "line of code; {x} <y>\n" * 40
    run = Run(TurnParser, f'{body}<|tool_call>call:f{{a:<|"|>{body}<|"|>}}<tool_call|>')
    parser, came, said = run.parser(), "", ""
    for text, ids in tokenized(run.tokens, 4):
        came += text
        delta = parser.parse_delta(text, ids, run.asked, run.prompt, finished=False)
        if delta is not None:
            said += delta.content or ""
            arguments = "".join(c.function.arguments for c in delta.tool_calls)
            said += json.loads(f'"{arguments}"') if not arguments.count('"') else arguments
        assert len(came) - len(said) < 40


def test_fresh_parsers_know_the_end_of_reasoning():
    """What the engine core asks before a grammar may begin."""
    thinking = Run(TurnParser, "").parser()
    assert thinking.is_reasoning_end(TOKENIZER.encode(NEW_TURN)) is False
    assert thinking.is_reasoning_end(TOKENIZER.encode(OPEN)) is False
    assert thinking.is_reasoning_end(TOKENIZER.encode(OPEN + "Hm.<channel|>")) is True
    assert Run(TurnParser, "", thinking=False).parser().is_reasoning_end(TOKENIZER.encode(NEW_TURN))
