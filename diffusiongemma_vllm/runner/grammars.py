"""Compiled grammars of structured outputs, by vLLM's own back ends and in its own threads."""

from __future__ import annotations

import re
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
from vllm.v1.structured_output.request import StructuredOutputRequest

from diffusiongemma_vllm.markers import marker_tokens

NO_TEXT = "<0xFF>"  # a byte that UTF-8 does not use: named by its id in a grammar, never by text
BYTE = re.compile("<0x([0-9A-F]{2})>")  # a token for a byte that has no other


class BackEnd(StructuredOutputManager):
    """A manager whose requests are only compiled; not the engine's own."""


class Grammars:
    """One manager of vLLM's for each back end that requests chose: a manager keeps to its first."""

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config
        self.managers: dict[str, BackEnd] = {}

    def compile(self, params: Any) -> Future[StructuredOutputGrammar]:
        """Start on a request's ``SamplingParams``; an error is the future's."""
        name = params.structured_outputs._backend
        asked = StructuredOutputRequest(params=params.structured_outputs)
        request: Any = SimpleNamespace(
            request_id="", sampling_params=params, structured_output_request=asked
        )
        if name not in self.managers:
            self.managers[name] = self._manager(name)
        self.managers[name].grammar_init(request)
        compiled = asked._grammar
        assert isinstance(compiled, Future)
        return compiled

    def _manager(self, name: str) -> BackEnd:
        manager = BackEnd(self.vllm_config)
        if name == "xgrammar":
            vocab = self.vllm_config.model_config.get_vocab_size()
            manager.backend = XgrammarBackend(self.vllm_config, manager.tokenizer, vocab)
            manager.backend.compiler = _compiler(manager.tokenizer, vocab)
        return manager


_IN_ENGINE: WeakKeyDictionary[StructuredOutputManager, Grammars] = WeakKeyDictionary()


def compile_for(manager: StructuredOutputManager, request: Any) -> None:
    """What the engine's ``manager`` does when a ``request`` of ours comes in."""
    if manager not in _IN_ENGINE:
        _IN_ENGINE[manager] = Grammars(manager.vllm_config)
    if request.structured_output_request is not None:
        compiled = _IN_ENGINE[manager].compile(request.sampling_params)
        request.structured_output_request.grammar = compiled


def _compiler(tokenizer: Any, vocab_size: int) -> Any:
    """xgrammar's, with marker tokens that never stand for their spelling.

    A reader drops or obeys them, so what they spell would not be in the text.
    """
    import xgrammar

    plain = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
    fallback = plain.vocab_type == xgrammar.VocabType.BYTE_FALLBACK
    words = [NO_TEXT if fallback else ""] * vocab_size
    markers = marker_tokens(tokenizer)
    vocabulary = tokenizer.get_vocab()
    for word, token in vocabulary.items():
        byte = BYTE.fullmatch(word)
        spelled = byte and chr(int(byte[1], 16)) in vocabulary and int(byte[1], 16) < 128
        if token < vocab_size and token not in markers and not spelled:
            words[token] = word
    info = xgrammar.TokenizerInfo(
        words, vocab_type=plain.vocab_type, vocab_size=vocab_size,
        stop_token_ids=plain.stop_token_ids, add_prefix_space=plain.add_prefix_space,
    )
    return PythonSpacing(xgrammar.GrammarCompiler(info, max_threads=8, cache_enabled=True))


class PythonSpacing:
    """xgrammar's compiler, with JSON spaced as Python writes it.

    What is forced is pinned, and no canvas gets lost in blanks.
    """

    def __init__(self, compiler: Any) -> None:
        self._compiler = compiler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiler, name)

    def compile_json_schema(self, schema: Any, *, any_whitespace: bool, separators: Any) -> Any:
        return self._compiler.compile_json_schema(
            schema, any_whitespace=False, separators=separators or (", ", ": ")
        )
