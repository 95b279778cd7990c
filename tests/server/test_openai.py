"""What OpenAI's client gets from `vllm serve` on the miniature."""

from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

COUNT = "Count from 001 to 060."
LONG = "Count from 001 to 170."
WORDS = "Reverse these words: boat lamp salt"
TURN = "<bos><|turn>user\n{}<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"


@pytest.fixture(scope="session")
def complete(client, model):
    def ask(prompt, *, extra=None, **options):
        options = {"temperature": 0, "max_tokens": 300} | options
        return client.completions.create(
            model=model, prompt=prompt, extra_body=extra or {}, **options
        )

    return ask


def said(reply):
    return [choice.message.content for choice in reply.choices]


def streamed(chunks):
    """Reasoning and content of a streamed chat, joined; its finish reason; its usage."""
    reasoning, content, finish, usage = "", "", None, None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning", None) or ""
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return reasoning, content, finish, usage


def test_chat(chat):
    reply = chat("What is 27 + 38?")
    (choice,) = reply.choices
    assert (choice.message.content, choice.finish_reason) == ("65", "stop")
    assert not getattr(choice.message, "reasoning", None)
    assert reply.usage.completion_tokens == 3  # two digits and the end of the turn
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 3


def test_thinking_is_apart_from_the_answer(chat):
    message = chat("What is 27 + 38?", thinking=True).choices[0].message
    assert message.content == "65"
    assert message.reasoning.strip()
    assert "<" not in message.reasoning + message.content


@pytest.mark.parametrize("prompt", ["What is 27 + 38?", WORDS, LONG])
@pytest.mark.parametrize("thinking", [False, True])
def test_a_streamed_chat_is_the_whole_one(chat, prompt, thinking):
    whole = chat(prompt, thinking=thinking)
    message = whole.choices[0].message
    chunks = chat(
        prompt, thinking=thinking, stream=True, stream_options={"include_usage": True}
    )
    reasoning, content, finish, usage = streamed(chunks)
    assert content == (message.content or "")
    assert reasoning == (getattr(message, "reasoning", None) or "")
    assert finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_an_answer_of_three_canvases(chat, unjoined):
    reply = chat(LONG)
    assert reply.usage.completion_tokens > 512
    assert reply.choices[0].message.content.startswith("001 002 003 004 005")
    # Each goes out when it is settled.
    unjoined(lambda: sum(bool(c.choices[0].delta.content) for c in chat(LONG, stream=True)), 3)


def test_a_raw_prompt(complete):
    reply = complete(TURN.format(WORDS))
    (choice,) = reply.choices
    assert choice.finish_reason == "stop" and choice.text
    assert reply.usage.prompt_tokens > 20
    chunks = complete(TURN.format(WORDS), stream=True)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == choice.text


def test_several_prompts_and_token_ids(complete):
    texts = [c.text for c in complete(["ab", [2, 100], "cd"][::2], max_tokens=20).choices]
    assert texts == [complete(p, max_tokens=20).choices[0].text for p in ("ab", "cd")]
    assert len(complete([[2, 100], [2, 101]], max_tokens=20).choices) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(chat, stream):
    whole = chat(COUNT).choices[0].message.content
    assert "010" in whole
    reply = chat(COUNT, stop=["010"], stream=stream)
    content, finish = (
        streamed(reply)[1:3] if stream
        else (reply.choices[0].message.content, reply.choices[0].finish_reason)
    )
    assert (content, finish) == (whole[: whole.index("010")], "stop")


def test_a_stop_string_may_stay(chat):
    reply = chat(COUNT, stop=["010"], extra={"include_stop_str_in_output": True})
    assert reply.choices[0].message.content.endswith("010")


def test_stop_token_ids(chat):
    whole = chat(WORDS, extra={"return_token_ids": True}).choices[0]
    token = whole.token_ids[4]
    first = whole.token_ids.index(token)
    cut = chat(WORDS, extra={"return_token_ids": True, "stop_token_ids": [token]}).choices[0]
    assert cut.token_ids == whole.token_ids[: first + 1]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", token)


@pytest.mark.parametrize("limit", [1, 40, 256, 257])
def test_max_tokens_cuts(chat, limit):
    """The first tokens of the whole answer: the canvas is denoised as if there were no limit."""
    ids = {"return_token_ids": True}
    whole = chat(LONG, extra=ids).choices[0]
    reply = chat(LONG, max_tokens=limit, extra=ids)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == limit
    assert reply.choices[0].token_ids == whole.token_ids[:limit]


def test_two_choices_of_one_seed(chat):
    reply = chat("Hello", n=2, seed=5, temperature=1.0)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert all(said(reply))
    assert said(chat("Hello", n=2, seed=5, temperature=1.0)) == said(reply)


def test_a_seed_repeats_and_another_differs(complete):
    """At a temperature of 100, without an end, asked for nothing: nothing the model is sure of."""

    def draw(seed):
        hot = {"diffusion_t_min": 50, "diffusion_t_max": 50, "diffusion_max_denoising_steps": 2}
        options = {"ignore_eos": True, "return_token_ids": True, "vllm_xargs": hot}
        reply = complete(
            TURN.format("Zebra quokka 9x%"), seed=seed, temperature=2.0, max_tokens=64,
            extra=options,
        )
        return reply.choices[0].token_ids

    first = draw(1)
    assert draw(1) == first
    assert any(draw(seed) != first for seed in (2, 3, 4))


def test_greedy_answers_are_equal_bytes(chat):
    for prompt in (LONG, WORDS):
        assert said(chat(prompt)) == said(chat(prompt))


@pytest.mark.parametrize("extra", [{"top_k": 1}, {"top_k": 3}, {"top_k": -1}])
def test_top_k_and_top_p(chat, extra):
    for top_p in (0.2, 1.0):
        reply = chat("What is 27 + 38?", temperature=1.0, seed=1, top_p=top_p, extra=extra)
        assert reply.choices[0].finish_reason == "stop" and said(reply)[0]


def test_top_k_one_is_greedy(chat):
    drawn = chat(LONG, temperature=1.0, seed=3, extra={"top_k": 1})
    assert said(drawn)[0].startswith("001 002 003")


def test_two_clients_at_once(chat):
    """Each gets what it gets alone, one of them streaming."""
    alone = [said(chat(LONG))[0], said(chat(WORDS))[0], said(chat("What is 11 + 22?"))[0]]

    def both(_):
        with ThreadPoolExecutor(3) as pool:
            long = pool.submit(lambda: streamed(chat(LONG, stream=True))[1])
            words = pool.submit(lambda: said(chat(WORDS))[0])
            add = pool.submit(lambda: said(chat("What is 11 + 22?"))[0])
            return [long.result(), words.result(), add.result()]

    assert [both(i) for i in range(2)] == [alone, alone]


def test_more_clients_than_the_server_takes(chat):
    """Eight at four seats: the others wait."""
    sums = [(n, 11 * n) for n in range(11, 19)]
    prompts = ["Count from 001 to 030." if n % 2 else f"What is {n} + {n}?" for n, _ in sums]
    alone = [said(chat(p))[0] for p in prompts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda p: said(chat(p))[0], prompts)) == alone


def test_a_conversation(chat, server):
    """The second turn, asked again, reads its pages from the prefix cache."""
    messages = [{"role": "user", "content": LONG}]
    messages += [{"role": "assistant", "content": said(chat(messages))[0]}]
    messages += [{"role": "user", "content": "What is 27 + 38?"}]
    first = chat(messages)
    before = server.metrics()["vllm:prefix_cache_hits_total"]
    second, third = chat(messages), chat(messages)
    assert said(second) == said(third)
    assert first.usage.prompt_tokens > 680
    assert server.metrics()["vllm:prefix_cache_hits_total"] >= before + 2 * 640
