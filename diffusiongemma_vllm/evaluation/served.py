"""A server with the OpenAI API, as a model that lm-eval can ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from openai import OpenAIError
from tqdm import tqdm

from diffusiongemma_vllm import client
from diffusiongemma_vllm.evaluation.answers import Answer, Answers, key
from diffusiongemma_vllm.evaluation.benchmark import DRAW, Benchmark
from diffusiongemma_vllm.evaluation.threads import at_once

# Fields of the API; anything else of a request goes beside them, as vLLM reads it.
_API = ("messages", "tools", "model", "seed", "max_tokens")


@dataclass(frozen=True)
class Settings:
    """url: without /v1.  max_tokens: of an answer, thought and all; None for what fits.

    key: that the server was started with as --api-key, if any.
    """

    url: str
    model: str | None = None
    concurrency: int = 4
    seed: int = 0
    max_tokens: int | None = None
    key: str | None = None
    timeout: float = 3600.0


class NoAnswer(ValueError):
    """A reply of the server that is no chat completion."""


class Endpoint:
    """A server's address and the checkpoint behind it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = client.connect(settings.url, settings.key, settings.timeout, retries=4)
        models = client.models(self.client, settings.url)
        named = [m for m in models if settings.model in (None, m.name)]
        if not named:
            raise ValueError(
                f"--model {settings.model} is not served at {settings.url}: "
                f"{', '.join(m.name for m in models)} is"
            )
        self.model, self.checkpoint = named[0].name, named[0].checkpoint

    def request(self, body: Mapping[str, Any], draw: int) -> dict[str, Any]:
        """A chat completion with the server's own sampling defaults; its seed follows from it."""
        whole = {"model": self.model, **body}
        if self.settings.max_tokens is not None:
            whole["max_tokens"] = self.settings.max_tokens
        name = key({"seed": self.settings.seed, "draw": draw, **body})
        return whole | {"seed": int(name[:8], 16) >> 1}

    def ask(self, request: Mapping[str, Any]) -> tuple[Mapping[str, Any], str, int]:
        """Message, finish reason and output tokens of one chat completion.

        Raises:
            NoAnswer: for a reply without one, or with a part of one.
            OpenAIError: as the client does.
        """
        fields = {name: request[name] for name in _API if name in request}
        beside = {name: request[name] for name in request if name not in _API}
        try:
            reply = self.client.chat.completions.create(**fields, extra_body=beside)
        except ValueError as error:  # JSON that is none
            raise NoAnswer(f"the reply cannot be read: {error}") from None
        choices = getattr(reply, "choices", None)
        if not choices or choices[0].message is None:
            raise NoAnswer("the reply holds no message: no choices in it")
        choice = choices[0]
        if choice.finish_reason == "abort":  # the server was stopped in the middle
            raise NoAnswer("the server broke the answer off")
        tokens = reply.usage.completion_tokens if reply.usage else 0
        return choice.message.model_dump(), choice.finish_reason, tokens


class Served(LM):
    """Asks one benchmark's questions; answers that are kept already are not asked for again."""

    def __init__(self, endpoint: Endpoint, benchmark: Benchmark, answers: Answers) -> None:
        super().__init__()
        self.endpoint, self.benchmark, self.answers = endpoint, benchmark, answers
        self.cut = 0  # answers that ran into the limit on tokens
        self.tokens = 0

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Raises ValueError where the server refuses a question or does not answer any more."""
        bodies = [self._request(one) for one in requests]
        names = [key({"checkpoint": self.endpoint.checkpoint, **body}) for body in bodies]
        missing = {
            name: body for name, body in zip(names, bodies, strict=True)
            if self.answers.get(name) is None
        }
        with tqdm(total=len(set(names)), initial=len(set(names)) - len(missing),
                  desc=self.benchmark.title, unit="answer") as bar:
            try:
                for _ in at_once(self._ask, missing.items(), self.endpoint.settings.concurrency):
                    bar.update()
            except (OpenAIError, NoAnswer) as error:
                raise ValueError(
                    f"{self.benchmark.title}: a question has no answer ({error}); the others' are "
                    "kept: the same command goes on"
                ) from None
        kept = [self.answers.get(name) for name in names]
        self.cut = sum(answer.finish == "length" for answer in kept if answer)
        self.tokens = sum(answer.tokens for answer in kept if answer)
        return [answer.text for answer in kept if answer]

    def _request(self, one: Instance) -> dict[str, Any]:
        body = self.benchmark.chat.request(one.doc, one.args[0])
        return self.endpoint.request(body, one.doc[DRAW])

    def _ask(self, item: tuple[str, Mapping[str, Any]]) -> None:
        name, request = item
        message, finish, tokens = self.endpoint.ask(request)
        self.answers.put(name, Answer(self.benchmark.chat.answer(message), finish, tokens))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("a diffusion model has no likelihood of a text")

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError("a diffusion model has no likelihood of a text")

