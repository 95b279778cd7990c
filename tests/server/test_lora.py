"""A LoRA adapter over HTTP: a model of its own name beside the base."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from adapters import skeleton, write

from diffusiongemma_vllm.cli.main import MINIATURE

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def say(client):
    def ask(model):
        return client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "What is 27 + 38?"}],
            temperature=0, max_tokens=32,
            extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        ).choices[0].message.content

    return ask


def test_an_adapter_is_listed_and_answers_beside_the_base(client, model, say):
    assert [one.id for one in client.models.list().data] == [model, "adapted"]
    alone = {name: say(name) for name in (model, "adapted")}
    assert alone[model] == "65" and alone["adapted"] != "65"
    names = [model, "adapted"] * 2
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(say, names)) == [alone[name] for name in names]


def test_an_adapter_is_loaded_at_run_time(client, adapter, say, tmp_path):
    """A good one, one that is not there, and one that cannot be served."""
    import openai

    def load(name, path):
        body = {"lora_name": name, "lora_path": str(path)}
        client.post("/load_lora_adapter", body=body, cast_to=str)

    folder = adapter[-1].partition("=")[2]
    load("later", folder)
    assert say("later") == say("adapted")
    client.post("/unload_lora_adapter", body={"lora_name": "later"}, cast_to=str)
    with pytest.raises(openai.NotFoundError):
        load("gone", "/nope")
    wrong = write(tmp_path / "wrong", skeleton(MINIATURE), seed=0, rank=64)
    with pytest.raises(openai.BadRequestError, match="LoRA adapter 'wrong'.* rank"):
        load("wrong", wrong)


def test_an_unknown_adapter_is_not_found(say, healthy):
    from openai import NotFoundError

    with pytest.raises(NotFoundError, match="The model `other` does not exist"):
        say("other")
    healthy()
