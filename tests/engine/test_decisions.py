"""vLLM's structured decisions (/v1/systemone), its DiffusionGemma strategy, on our engine."""

import asyncio

import pytest
from vllm.entrypoints.generate.structured_decisions import question_types, strategies
from vllm.entrypoints.generate.structured_decisions.protocol import StructuredDecisionRequest
from vllm.entrypoints.generate.structured_decisions.serving import parse_questions
from vllm.renderers.online_renderer import OnlineRenderer

pytestmark = pytest.mark.engine

QUESTIONS = {
    "color": {"type": "choice", "criteria": {"grey": "like ash", "red": None, "blue": None}},
    "loud": {"type": "noul", "instructions": "Is it loud?"},
    "size": {"type": "score", "criteria": ["small", "middle", "large"]},
}


class Client:
    """As much of vLLM's engine client as a read needs, over an ``LLM``."""

    def __init__(self, llm):
        self.llm = llm
        self.vllm_config = llm.llm_engine.vllm_config
        self.model_config = self.vllm_config.model_config

    async def generate(self, engine_input, params, request_id, **_):
        prompt = {"prompt_token_ids": engine_input["prompt_token_ids"]}
        yield self.llm.generate(prompt, params, use_tqdm=False)[0]


@pytest.fixture(scope="module")
def strategy(miniature):
    llm = miniature(async_scheduling=False)
    client = Client(llm)
    renderer = OnlineRenderer(
        client.model_config, llm.llm_engine.renderer, request_logger=None, chat_template=None,
        chat_template_content_format="auto",
    )
    context = strategies.ReadContext(client, renderer, None, "auto", {})
    with pytest.MonkeyPatch.context() as patch:
        # The miniature has a token for a letter, and none for yes.
        patch.setattr(question_types.NoulQuestion, "label_set", ("y", "n"))
        chosen = strategies.select_read_strategy(client.model_config, ("generate",))
        yield chosen(context)


def test_a_decision_reads_every_label(strategy):
    def ask(state):
        questions = parse_questions(
            StructuredDecisionRequest(state=state, questions=QUESTIONS), strategy.limits()
        )
        reads = asyncio.run(strategy.read(
            questions, None, strategy.render_state(state), request_id="a", lora_request=None,
            chat_template_kwargs=None, priority=0,
        ))
        for question, read in zip(questions, reads, strict=True):
            assert len(read.probs) == len(question.labels) and sum(read.probs) == pytest.approx(1)
            assert 0 < read.label_mass <= 1.0001 and read.output_tokens == 2
            answer = question.type.answer(question, read.probs, read.label_mass)
            assert answer["type"] == QUESTIONS[question.id]["type"]
        return [read.probs for read in reads]

    assert type(strategy).__name__ == "DiffusionGemmaCanvasStrategy"
    wolf = ask("a grey wolf howls")
    assert ask("a grey wolf howls") == wolf
    assert all(a != b for a, b in zip(wolf, ask({"animal": "bear"}), strict=True))
