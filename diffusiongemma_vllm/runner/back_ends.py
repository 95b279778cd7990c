"""xgrammar and guidance as this package needs them: JSON spaced as Python writes it, and no marker
token that stands for its spelling, which a reader would drop or obey.

What is spaced one way is forced more often, and what is forced is pinned; no canvas gets lost in
blanks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from vllm import envs
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.backend_types import (
    StructuredOutputGrammar,
    StructuredOutputOptions,
)
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from diffusiongemma_vllm.markers import marker_tokens

ENFORCING = ("xgrammar", "guidance")  # the others leave parts of a schema out in silence
COMMA, COLON = ", ", ": "
SPACING = {"whitespace_flexible": False, "item_separator": COMMA, "key_separator": COLON}
ASCII = {"d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]"}
DATA = ("const", "enum", "default", "examples")  # of a schema, and no schemas themselves
WORD = 32  # bits of a mask's words
NO_TEXT = "<0xFF>"  # a byte that UTF-8 does not use: named by its id in a grammar, never by text
BYTE = re.compile("<0x([0-9A-F]{2})>")  # a token for a byte that has no other
# A JSON string of bounded length as xgrammar 0.2.8 has it, and without what JSON in UTF-8 does not
# know: raw control characters, and halves of characters beyond 16 bits.
LOOSE, STRICT = r"[^\"\\\r\n]", r"[^\0-\x1f\ud800-\udfff\"\\\r\n]"


def xgrammar_back_end(vllm_config: Any, tokenizer: Any, vocab_size: int) -> XgrammarBackend:
    back_end = XgrammarBackend(vllm_config, tokenizer, vocab_size)
    back_end.compiler = StrictCompiler(compiler(tokenizer, vocab_size))
    return back_end


def compiler(tokenizer: Any, vocab_size: int) -> Any:
    """xgrammar's, without the markers."""
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
    limit = envs.VLLM_XGRAMMAR_CACHE_MB << 20
    return xgrammar.GrammarCompiler(
        info, max_threads=8, cache_enabled=True, cache_limit_bytes=limit
    )


class StrictCompiler:
    """xgrammar's compiler, with JSON as Python writes it and no raw control characters in it."""

    def __init__(self, compiler: Any) -> None:
        self._compiler = compiler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiler, name)

    def compile_json_schema(self, schema: Any, *, any_whitespace: bool, separators: Any) -> Any:
        return self._strict(self._compiler.compile_json_schema(
            schema, any_whitespace=False, separators=separators or (COMMA, COLON)
        ))

    def compile_structural_tag(self, *tag: Any) -> Any:
        return self._strict(self._compiler.compile_structural_tag(*tag))

    def _strict(self, compiled: Any) -> Any:
        """Removal: when xgrammar's strings with a maxLength take JSON's characters alone."""
        import xgrammar

        rules = str(compiled.grammar)
        if LOOSE not in rules:
            return compiled
        strict = xgrammar.Grammar.from_ebnf(rules.replace(LOOSE, STRICT))
        return self._compiler.compile_grammar(strict)


class SpacedGuidance(GuidanceBackend):
    """guidance with the same JSON, whose grammars tell what must follow."""

    def compile_grammar(
        self, request_type: StructuredOutputOptions, grammar_spec: str,
        stop_token_ids: set[int] | None = None,
    ) -> StructuredOutputGrammar:
        if request_type == StructuredOutputOptions.JSON_OBJECT:
            request_type, grammar_spec = StructuredOutputOptions.JSON, '{"type": "object"}'
        if request_type == StructuredOutputOptions.REGEX:
            grammar_spec = ascii_classes(grammar_spec)
        elif request_type == StructuredOutputOptions.JSON:
            schema = with_ascii_classes(json.loads(grammar_spec))
            spacing = {} if self.disable_any_whitespace else {"x-guidance": SPACING}
            grammar_spec = json.dumps(spacing | schema)
        grammar = super().compile_grammar(request_type, grammar_spec, stop_token_ids)
        eos = int(self.tokenizer.eos_token_id)
        return TextGrammar(
            grammar, eos=eos, ends=stop_token_ids or {eos}, markers=marker_tokens(self.tokenizer),
            vocab=self.vocab_size,
        )


def ascii_classes(pattern: str) -> str:
    r"""A regex whose \d and \w are ASCII, as JSON Schema's (ECMA 262) and xgrammar's are."""
    return re.sub(r"\\(.)", lambda found: ASCII.get(found[1], found[0]), pattern, flags=re.DOTALL)


def with_ascii_classes(schema: Any) -> Any:
    """A JSON schema with such patterns."""
    if isinstance(schema, list):
        return [with_ascii_classes(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    read = {key: part if key in DATA else with_ascii_classes(part) for key, part in schema.items()}
    if isinstance(pattern := read.get("pattern"), str):
        read["pattern"] = ascii_classes(pattern)
    if isinstance(named := read.get("patternProperties"), dict):
        read["patternProperties"] = {ascii_classes(key): part for key, part in named.items()}
    return read


class TextGrammar(StructuredOutputGrammar):
    """A grammar of guidance's in which markers are no text and every end of the request ends it."""

    def __init__(
        self, grammar: Any, *, eos: int, ends: Collection[int], markers: Collection[int], vocab: int
    ) -> None:
        """eos: the one token that guidance lets a text end with."""
        self.grammar = grammar
        self.eos = eos
        self.ends = frozenset(ends)
        self.markers = frozenset(markers)
        self._no_text = bits(markers, vocab)
        self._end_bits = bits(ends, vocab)

    def forced(self) -> str:
        """What must follow, up to the last whole character."""
        text: bytes = self.grammar.ll_matcher.compute_ff_bytes()
        return text.decode(errors="ignore")

    def allows(self, token: int) -> bool:
        """Whether it may come next: quicker than a mask of all of a large vocabulary."""
        matcher = self.grammar.ll_matcher
        if token in self.ends:
            return bool(matcher.is_accepting())
        return token not in self.markers and matcher.validate_tokens([token]) == 1

    def fill_bitmask(self, bitmask: Tensor, batch_index: int) -> None:
        self.grammar.fill_bitmask(bitmask, batch_index)
        row = bitmask[batch_index]
        over = bool(row[self.eos // WORD] >> (self.eos % WORD) & 1) and not self.dead()
        row &= ~self._no_text
        if over:
            row |= self._end_bits

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        own = [self.eos if token in self.ends else token for token in tokens]
        return not self.dead() and bool(self.grammar.accept_tokens(request_id, own))

    def dead(self) -> bool:
        """Whether nothing may come next, not even the end, which guidance then lets through."""
        matcher = self.grammar.ll_matcher
        return bool(matcher.is_stopped() and not matcher.is_accepting()
                    and not self.grammar.is_terminated())

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        found: list[int] = self.grammar.validate_tokens(tokens)
        return found

    def is_terminated(self) -> bool:
        return bool(self.grammar.is_terminated())

    def rollback(self, num_tokens: int) -> None:
        self.grammar.rollback(num_tokens)

    def reset(self) -> None:
        self.grammar.reset()


def bits(tokens: Collection[int], vocab: int) -> Tensor:
    """A mask of those tokens.   ->  [ceil(vocab / 32)] i32"""
    words = -(-vocab // WORD)
    chosen = torch.zeros(words * WORD, dtype=torch.int64)
    chosen[[token for token in tokens if token < vocab]] = 1
    packed = (chosen.view(words, WORD) << torch.arange(WORD)).sum(dim=-1)
    return packed.to(torch.int32)  # the highest bit becomes the sign


def forced_text(grammar: StructuredOutputGrammar) -> str:
    """What must follow in the text, as far as the back end tells."""
    if isinstance(grammar, TextGrammar):
        return grammar.forced()
    matcher = getattr(grammar, "matcher", None)
    try:
        text: str = matcher.find_jump_forward_string() if matcher is not None else ""
    except UnicodeDecodeError:  # in the middle of a character
        return ""
    return text
