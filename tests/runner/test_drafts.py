"""Drafts on their way: packed by the sampler, sent by the scheduler, heard and streamed."""

import asyncio
import json
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.outputs import ModelRunnerOutput

from diffusiongemma_vllm import Draft, on_draft
from diffusiongemma_vllm.denoise.step import Guess
from diffusiongemma_vllm.runner import draft_stream, listening, notes
from diffusiongemma_vllm.runner.drafts import Sent, Watch, Watched, send
from diffusiongemma_vllm.state import Canvases

TOLD = {"canvas": 0, "step": 1, "rerolls": 0, "done": False, "tokens": [7], "guess": [8],
        "settled": [False], "entropy": [1.5]}


def told(*watched, width=4):
    """Drafts of three canvases of four tokens: the first goes on, the second has settled with three
    of its tokens, the third did not denoise.
    """
    found = [Watched(f"r{place}", place, every) for place, every in watched]
    place = torch.tensor([one.place for one in found])
    nothing = torch.zeros(3, 4, dtype=torch.int64)
    before = Canvases(
        tokens=nothing, best=nothing, base=torch.zeros(3), width=torch.tensor([width, 4, 4]),
        step=torch.tensor([1, 5, 0]), held=torch.zeros(3), roll=torch.tensor([0, 3, 0]),
    )
    before = Canvases(*(getattr(before, field.name)[place] for field in fields(before)))
    guess = Guess(
        best=torch.tensor([[1, 9, 9, 4], [5, 6, 7, 8], [1, 1, 1, 1]]),
        sample=torch.tensor([[1, 8, 8, 99], [5, 5, 5, 5], [1, 1, 1, 1]]),
        entropy=torch.tensor([[0.25, 3.5, 2.0, 0.0]] * 3),
    )
    watch = Watch(
        tuple(found), place, place, before, denoising=place < 2,
        bound=torch.full((len(found),), 0.2), vocab=10,
    )
    text = torch.tensor([[1, 9, 9, 4], [5, 6, 0, 8], [1, 1, 1, 1]])
    noise = torch.full((len(found), 4), 2)
    made = watch.drafts(guess, text, torch.tensor([0, 3, 0]), noise)
    return notes.Notes(made).to_cpu_nonblocking().tolists(None).drafts


def test_a_canvas_under_way():
    """The surest token, and the one behind it while those before are below the bound."""
    found = told((0, 1))["r0"]
    assert found == {
        "step": 2, "rerolls": 0, "done": False, "tokens": [1, 2, 2, 9], "guess": [1, 9, 9, 4],
        "settled": [True, False, False, True], "entropy": [0.25, 3.5, 2.0, 0.0],
    }


def test_a_settled_canvas_holds_the_text():
    found = told((1, 1))["r1"]
    assert found["done"] and (found["step"], found["rerolls"]) == (6, 3)
    assert found["tokens"] == [5, 6, 0, 8] and found["settled"] == [True, True, True, False]


def test_which_steps_are_told():
    assert list(told((0, 2), (1, 6), (2, 1))) == ["r0", "r1"]
    assert list(told((0, 3), (1, 4))) == ["r1"]  # the step that settles always is


def test_a_short_canvas_is_cut():
    found = told((0, 1), width=3)["r0"]
    assert [len(found[name]) for name in ("tokens", "guess", "settled", "entropy")] == [3] * 4
    assert found["settled"] == [True, False, False]


def test_nothing_to_tell_is_nothing_to_copy():
    assert notes.notes(None, None) is None
    output = ModelRunnerOutput(req_ids=[], req_id_to_index={})
    assert notes.take(output) == notes.Told()
    output.sampling_masks = notes.Told(load=[[1]])
    assert notes.take(output).load == [[1]] and output.sampling_masks is None


def test_sent_with_the_text_or_alone():
    text = EngineCoreOutput(request_id="a", new_token_ids=[1], kv_transfer_params={"x": 1})
    outputs = {0: EngineCoreOutputs(outputs=[text])}
    send(outputs, [Sent(0, "a", {"step": 1}), Sent(2, "b", {"step": 2})])
    assert text.kv_transfer_params == {"x": 1, "diffusion_draft": {"step": 1}}
    (alone,) = outputs[2].outputs
    assert (alone.request_id, alone.new_token_ids) == ("b", [])


@pytest.fixture
def processor():
    listening.hear()
    return OutputProcessor(tokenizer=None, log_stats=False)


def added(processor, heard, *, stops=(5,)):
    """A request "r" whose drafts go to ``heard``; its state in the front end."""
    params = SamplingParams(
        detokenize=False, extra_args={"diffusion_drafts": 1}, stop_token_ids=list(stops),
        output_kind=RequestOutputKind.DELTA,
    )
    with on_draft(heard.append):
        listening.attach(params)
    request = EngineCoreRequest(
        request_id="r-1", external_req_id="r", prompt_token_ids=[1], mm_features=None,
        sampling_params=params, pooling_params=None, arrival_time=0.0, lora_request=None,
        cache_salt=None, data_parallel_rank=None,
    )
    processor.add_request(request, None)


def test_a_draft_is_heard_and_goes_no_further(processor):
    heard = []
    added(processor, heard)
    alone = EngineCoreOutput("r-1", [], kv_transfer_params={"diffusion_draft": TOLD})
    gone = EngineCoreOutput("else", [], kv_transfer_params={"diffusion_draft": TOLD})
    assert processor.process_outputs([alone, gone]).request_outputs == []
    assert heard == [
        Draft(request_id="r", prompt_tokens=1, index=0, ends=frozenset({5}), **TOLD)
    ]
    text = EngineCoreOutput("r-1", [3], kv_transfer_params={"diffusion_draft": TOLD, "x": 1})
    (output,) = processor.process_outputs([text]).request_outputs
    assert output.outputs[0].token_ids == [3] and output.kv_transfer_params == {"x": 1}
    assert len(heard) == 2


def test_a_callback_that_fails_holds_nobody_up(processor):
    """Its error comes at the end, and it is not called again."""
    heard = []

    def fails(draft):
        heard.append(draft)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), on_draft(fails):
        call = listening.listener()
        for _ in range(2):
            call(Draft(request_id="r", prompt_tokens=1, index=0, ends=frozenset(), **TOLD))
    assert len(heard) == 1
    with pytest.raises(ValueError, match="the block's own"), on_draft(fails):
        listening.listener()(heard[0])
        raise ValueError("the block's own")


def test_nobody_listens():
    params = SamplingParams(extra_args={"diffusion_drafts": 1})
    with pytest.raises(VLLMValidationError, match="stream=true"):
        listening.attach(params)
    listening.attach(SamplingParams(extra_args={"diffusion_rerolls": 1}))


def test_threads_know_who_listens():
    """vLLM tokenizes raw prompts in one."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as executor:
        front = SimpleNamespace(process_inputs=lambda: listening.listener(),
                                renderer=SimpleNamespace(_executor=executor))
        listening.keep_context(front)

        async def ask():
            return await front.process_inputs_async()

        with on_draft(print):
            assert asyncio.run(ask()) is listening.listener() is not None


class Letters:
    """Token n is the n-th letter."""

    def decode(self, tokens, skip_special_tokens):
        assert not skip_special_tokens
        return "".join(chr(ord("a") + token) for token in tokens)


def shape(**changes):
    return draft_stream.Shape(
        {"id": "x"}, {"text": ""}, draft_stream.Speller(Letters()), **changes
    )


def draft(index=0, request_id="chatcmpl-1", **changes):
    own = dict(request_id=request_id, prompt_tokens=6, index=index, ends=frozenset({2}))
    return Draft(**own | TOLD | changes)


def merged(events, several=1, **changes):
    """What a stream sends of ``events``, of which drafts come beside the stream."""

    async def run():
        mail = draft_stream.Mail()

        async def stream():
            for event in events:
                if isinstance(event, Draft):
                    mail(event)
                elif isinstance(event, Exception):
                    raise event
                else:
                    yield event

        return [one async for one in mail.merged(stream(), shape(**changes), several)]

    return asyncio.run(run())


def read(event):
    return json.loads(event.removeprefix("data: "))


def test_drafts_between_the_events():
    first, second, third = merged([draft(), "data: text\n\n", draft(done=True)])
    assert second == "data: text\n\n" and first.endswith("\n\n")
    found = read(first)
    assert found["id"] == "x"
    (choice,) = found["choices"]
    assert (choice["index"], choice["text"]) == (0, "")
    assert choice["diffusion_draft"]["tokens"] == ["h"]
    assert read(third)["choices"][0]["diffusion_draft"]["done"]


def test_what_a_client_reads():
    told = draft_stream.Speller(Letters()).told(
        draft(tokens=[0, 1, 2, 3], guess=[1, 1, 2, 3], entropy=[0.12345, 1, 2, 3])
    )
    assert told["tokens"] == ["a", "b", "c", "d"] and told["guess"] == ["b", "b", "c", "d"]
    assert (told["text"], told["length"], told["entropy"][0]) == ("bb", 2, 0.123)


def test_the_first_chunk_names_every_choice():
    """The OpenAI client's accumulator takes the first chunk's choices for all there are."""
    opening, first = merged([draft(index=2)], opens=3)
    assert [choice["index"] for choice in read(opening)["choices"]] == [0, 1, 2]
    assert "diffusion_draft" not in opening and read(first)["choices"][0]["index"] == 2
    assert "usage" not in opening
    assert len(merged(["data: role\n\n", draft()], opens=1)) == 2


def test_the_first_chunk_says_how_long_the_prompt_is():
    """Where each chunk of vLLM's counts tokens: Anthropic's message_start is made of the first."""
    opening, first = merged([draft()], opens=1, counts=True)
    assert read(opening)["usage"] == {
        "prompt_tokens": 6, "completion_tokens": 0, "total_tokens": 6
    }
    assert "usage" not in first


def test_choices_of_several_prompts():
    (event,) = merged([draft(index=1, request_id="cmpl-a-b-3")], several=2)
    assert read(event)["choices"][0]["index"] == 7


def test_an_error_of_the_stream_is_its_own():
    with pytest.raises(RuntimeError, match="broken"):
        merged([draft(), RuntimeError("broken")])


def test_a_client_that_leaves_ends_the_request():
    left = []

    async def run():
        async def stream():
            try:
                yield "data: 1\n\n"
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                left.append(True)
                raise

        answer = draft_stream.Mail().merged(stream(), shape(), 1)
        await anext(answer)
        await answer.aclose()
        await asyncio.sleep(0)

    asyncio.run(run())
    assert left == [True]


def test_a_consumer_that_lags_has_the_newest_report(processor):
    """vLLM merges the outputs that nobody fetched yet."""
    from diffusiongemma_vllm.runner import answers

    answers.mark_outputs()
    heard = []
    added(processor, heard)
    made = [
        processor.process_outputs(
            [EngineCoreOutput("r-1", [n], kv_transfer_params={"diffusion": {"forwards": n}})]
        ).request_outputs[0]
        for n in (3, 4)
    ]
    made[0].add(made[1], aggregate=True)
    assert made[0].outputs[0].token_ids == [3, 4]
    assert made[0].outputs[0].diffusion == {"forwards": 4}


def test_a_stream_that_is_cancelled_ends_the_one_with_drafts():
    """Which would wait for its next event for ever."""
    import asyncio

    from diffusiongemma_vllm.runner.draft_stream import Mail, Shape

    async def stream():
        yield "data: first\n\n"
        raise asyncio.CancelledError

    async def read():
        mail, seen = Mail(), []
        with pytest.raises(asyncio.CancelledError):
            async for event in mail.merged(stream(), Shape({}, {}, None), 1):
                seen.append(event)
        return seen

    assert asyncio.run(asyncio.wait_for(read(), timeout=5)) == ["data: first\n\n"]
