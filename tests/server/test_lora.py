"""A LoRA adapter over HTTP: a model of its own name beside the base."""

from concurrent.futures import ThreadPoolExecutor

import pytest

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


def test_an_unknown_adapter_is_not_found(say, healthy):
    from openai import NotFoundError

    with pytest.raises(NotFoundError, match="The model `other` does not exist"):
        say("other")
    healthy()
