"""Compiled grammars of structured outputs, by vLLM's own back ends and in its own threads."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar
from vllm.v1.structured_output.request import StructuredOutputRequest

from diffusiongemma_vllm.runner.back_ends import SpacedGuidance, xgrammar_back_end


class BackEnd(StructuredOutputManager):
    """A manager whose requests are only compiled; not the engine's own."""


class Grammars:
    """One manager of vLLM's for each back end that requests chose: a manager keeps to its first."""

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config
        self.managers: dict[str, BackEnd] = {}
        ends = vllm_config.model_config.try_get_generation_config().get("eos_token_id")
        self.ends = frozenset([ends] if isinstance(ends, int) else ends or ())

    def ends_of(self, params: Any) -> frozenset[int]:
        """Tokens behind which no text comes.  A request's own stops may be part of its grammar."""
        all_stops = frozenset(params.all_stop_token_ids)
        return all_stops & (self.ends | {params.eos_token_id}) or all_stops

    def compile(self, params: Any) -> Future[StructuredOutputGrammar]:
        """Start on a request's ``SamplingParams``; an error is the future's."""
        name = params.structured_outputs._backend
        asked = StructuredOutputRequest(params=params.structured_outputs)
        stops = SimpleNamespace(
            structured_outputs=params.structured_outputs, all_stop_token_ids=self.ends_of(params)
        )
        request: Any = SimpleNamespace(
            request_id="", sampling_params=stops, structured_output_request=asked
        )
        if name not in self.managers:
            self.managers[name] = self._manager(name)
        self.managers[name].grammar_init(request)
        compiled = asked._grammar
        assert isinstance(compiled, Future)
        return compiled

    def _manager(self, name: str) -> BackEnd:
        manager = BackEnd(self.vllm_config)
        make = xgrammar_back_end if name == "xgrammar" else SpacedGuidance
        vocab = self.vllm_config.model_config.get_vocab_size()
        manager.backend = make(self.vllm_config, manager.tokenizer, vocab)
        return manager


_IN_ENGINE: WeakKeyDictionary[StructuredOutputManager, Grammars] = WeakKeyDictionary()


def compile_for(manager: StructuredOutputManager, request: Any) -> None:
    """What the engine's ``manager`` does when a ``request`` of ours comes in."""
    if manager not in _IN_ENGINE:
        _IN_ENGINE[manager] = Grammars(manager.vllm_config)
    if request.structured_output_request is not None:
        compiled = _IN_ENGINE[manager].compile(request.sampling_params)
        request.structured_output_request.grammar = compiled

