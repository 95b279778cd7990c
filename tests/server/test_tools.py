"""Tool calls and thoughts through OpenAI's and Anthropic's SDKs: whole, streamed, in a loop."""

import json

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

ONE = "What is the weather in Paris?"
TWO = "What is the weather in Paris? Use the tool to add 123 and 456."
RESULT = "sunny, 21 degrees"
SENTENCE = "The weather in Paris: sunny, 21 degrees."
PARIS, SUM = ("get_weather", {"city": "Paris"}), ("add", {"a": 123, "b": 456})
thinking_or_not = pytest.mark.parametrize("thinking", [False, True], ids=["plain", "thinking"])


def tool(name, description, **types):
    properties = {key: {"type": value} for key, value in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(types)}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [
    tool("get_weather", "Weather in a city", city="string"),
    tool("add", "Add two numbers", a="integer", b="integer"),
]
FLAT = [{"type": "function", **t["function"]} for t in TOOLS]
ANTHROPIC = [
    {"name": f["name"], "description": f["description"], "input_schema": f["parameters"]}
    for f in FLAT
]


def calls(message):
    """(name, arguments) of each call, all of them complete."""
    made = message.tool_calls or []
    assert all(c.id and c.type == "function" for c in made)
    assert len({c.id for c in made}) == len(made)
    return [(c.function.name, json.loads(c.function.arguments)) for c in made]


def joined(chunks):
    """A streamed chat as (reasoning, content, calls, finish reason)."""
    reasoning, content, finish, made = "", "", None, {}
    for chunk in chunks:
        for choice in chunk.choices:
            delta, finish = choice.delta, choice.finish_reason or finish
            reasoning += getattr(delta, "reasoning", None) or ""
            content += delta.content or ""
            for part in delta.tool_calls or []:
                if part.index not in made:
                    assert part.id and part.type == "function" and part.function.name
                    made[part.index] = [part.id, part.function.name, ""]
                else:
                    assert not part.function.name
                made[part.index][2] += part.function.arguments or ""
    assert list(made) == list(range(len(made)))
    found = [(name, json.loads(arguments)) for _, name, arguments in made.values()]
    return reasoning, content, found, finish


@thinking_or_not
@pytest.mark.parametrize("question, expected", [(ONE, [PARIS]), (TWO, [PARIS, SUM])])
def test_chat(chat, question, expected, thinking):
    (choice,) = chat(question, thinking=thinking, tools=TOOLS).choices
    assert calls(choice.message) == expected
    assert choice.finish_reason == "tool_calls"
    thought = getattr(choice.message, "reasoning", None)
    assert bool(thought) == thinking
    parts = joined(chat(question, thinking=thinking, tools=TOOLS, stream=True))
    assert parts == (thought or "", choice.message.content or "", expected, "tool_calls")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_tool_choice_none_calls_nothing(chat, stream):
    reply = chat(ONE, tools=TOOLS, tool_choice="none", stream=stream)
    if stream:
        _, content, made, finish = joined(reply)
    else:
        message = reply.choices[0].message
        content, made, finish = message.content, calls(message), reply.choices[0].finish_reason
    assert not made and finish == "stop"
    assert content  # what the model writes stays content


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_tool_choice_is_left_to_the_model(chat, choice):
    """Nothing forces a call yet: the model makes it as it would with auto."""
    reply = chat(ONE, tools=TOOLS, tool_choice=choice).choices[0]
    assert calls(reply.message) == [PARIS]
    assert joined(chat(ONE, tools=TOOLS, tool_choice=choice, stream=True))[2] == [PARIS]


def test_one_call_where_calls_may_not_be_parallel(chat):
    reply = chat(TWO, tools=TOOLS, parallel_tool_calls=False).choices[0]
    assert calls(reply.message) == [PARIS]
    chunks = chat(TWO, tools=TOOLS, parallel_tool_calls=False, stream=True)
    assert joined(chunks)[2:] == ([PARIS], "tool_calls")


def test_a_call_cut_by_length_says_so(chat):
    choice = chat(ONE, tools=TOOLS, max_tokens=20).choices[0]
    assert choice.finish_reason == "length"
    (call,) = choice.message.tool_calls
    with pytest.raises(ValueError):
        json.loads(call.function.arguments)
    assert '{"city": "Paris"}'.startswith(call.function.arguments)
    chunks = [c.choices[0] for c in chat(ONE, tools=TOOLS, max_tokens=20, stream=True)]
    assert chunks[-1].finish_reason == "length"


@thinking_or_not
def test_chat_answers_from_a_result(chat, thinking):
    messages = [{"role": "user", "content": ONE}]
    said = chat(messages, thinking=thinking, tools=TOOLS[:1]).choices[0].message
    messages.append(said.model_dump(exclude_none=True))
    call = said.tool_calls[0].id
    messages.append({"role": "tool", "tool_call_id": call, "content": RESULT})
    choice = chat(messages, thinking=thinking, tools=TOOLS[:1]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (SENTENCE, "stop")
    parts = joined(chat(messages, thinking=thinking, tools=TOOLS[:1], stream=True))
    assert parts[1:] == (SENTENCE, [], "stop")


def respond(client, model, question, thinking, **options):
    return client.responses.create(
        model=model, input=question, tools=FLAT, temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": thinking}}, **options,
    )


def output(response):
    """What a response holds, without the ids."""
    assert response.status == "completed"
    made = []
    for item in response.output:
        assert item.id
        if item.type == "function_call":
            assert item.call_id
            made.append((item.name, json.loads(item.arguments)))
        else:
            made.append((item.type, "".join(part.text for part in item.content)))
    return made


@thinking_or_not
@pytest.mark.parametrize("question, expected", [(ONE, [PARIS]), (TWO, [PARIS, SUM])])
def test_responses(client, model, question, expected, thinking):
    whole = output(respond(client, model, question, thinking))
    assert [item for item in whole if item[0] != "reasoning"] == expected
    assert (whole[0][0] == "reasoning") == thinking
    events = list(respond(client, model, question, thinking, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert [e.sequence_number for e in events] == sorted({e.sequence_number for e in events})
    assert output(events[-1].response) == whole
    arguments = {}
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            arguments[event.item_id] = arguments.get(event.item_id, "") + event.delta
    assert [json.loads(text) for text in arguments.values()] == [given for _, given in expected]


@thinking_or_not
def test_responses_answer_from_a_result(client, model, thinking):
    call = next(i for i in respond(client, model, ONE, thinking).output if i.type != "reasoning")
    turns = [
        {"role": "user", "content": ONE},
        {"type": "function_call", "call_id": call.call_id, "name": call.name,
         "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": RESULT},
    ]
    reply = respond(client, model, turns, thinking)
    assert reply.output_text == SENTENCE


@pytest.fixture(scope="session")
def anthropic(server):
    from anthropic import Anthropic

    return Anthropic(base_url=server.url, api_key="none", timeout=300, max_retries=0)


def message(model, question, thinking, **options):
    """The arguments of one request; this SDK has no temperature of its own."""
    turns = [{"role": "user", "content": question}] if isinstance(question, str) else question
    body = {"temperature": 0, "chat_template_kwargs": {"enable_thinking": thinking}}
    return dict(
        model=model, max_tokens=512, messages=turns, tools=ANTHROPIC, extra_body=body, **options
    )


def blocks(reply):
    made = []
    for block in reply.content:
        if block.type == "tool_use":
            assert block.id
            made.append((block.name, block.input))
        else:
            made.append((block.type, getattr(block, block.type)))
    return made


@thinking_or_not
@pytest.mark.parametrize("question, expected", [(ONE, [PARIS]), (TWO, [PARIS, SUM])])
def test_messages(anthropic, model, question, expected, thinking):
    asked = message(model, question, thinking)
    whole = anthropic.messages.create(**asked)
    assert whole.stop_reason == "tool_use" and whole.role == "assistant"
    assert whole.usage.output_tokens > 20
    assert [block for block in blocks(whole) if block[0] != "thinking"] == expected
    assert (blocks(whole)[0][0] == "thinking") == thinking
    with anthropic.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert kinds.count("content_block_start") == kinds.count("content_block_stop")
    assert blocks(final) == blocks(whole)
    assert (final.stop_reason, final.usage.output_tokens) == (
        whole.stop_reason, whole.usage.output_tokens
    )


@pytest.mark.parametrize("choice", ["any", "auto", "tool", "none"])
def test_messages_tool_choice(anthropic, model, choice):
    named = {"name": "get_weather"} if choice == "tool" else {}
    asked = message(model, ONE, False, tool_choice={"type": choice, **named})
    reply = anthropic.messages.create(**asked)
    made = [block for block in blocks(reply) if block[0] != "text"]
    assert made == ([] if choice == "none" else [PARIS])


@thinking_or_not
def test_messages_answer_from_a_result(anthropic, model, thinking):
    first = anthropic.messages.create(**message(model, ONE, thinking))
    call = next(block for block in first.content if block.type == "tool_use")
    turns = [
        {"role": "user", "content": ONE},
        {"role": "assistant", "content": [block.model_dump() for block in first.content]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
        ]},
    ]
    reply = anthropic.messages.create(**message(model, turns, thinking))
    assert ("text", SENTENCE) in blocks(reply) and reply.stop_reason == "end_turn"
    with anthropic.messages.stream(**message(model, turns, thinking)) as stream:
        assert "".join(stream.text_stream) == SENTENCE
