"""Noise as a pure function of (seed, counter, token): Philox-4x32-7 in plain torch.

Key = the 64-bit seed; counter = (low word of `counter`, high word, index, domain).  Seven rounds
are the fewest that pass BigCrush (Salmon et al., SC 2011).  Integers decide everything, so the
Triton kernels produce the same bits.
"""

import torch
from torch import Tensor

ROUNDS = 7
# Four tokens share one call.  Token v takes word (v % 4096) // 1024 of index
# v // 4096 * 1024 + v % 1024: any 1,024 neighbours use one word, so no kernel has to interleave.
LANES = 1024
WORDS = 4
GUMBEL, TOKENS = 0, 1  # domains

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(seed: Tensor, counter: Tensor, index: Tensor, domain: int) -> list[Tensor]:
    """Four 32-bit words, as i64, of the broadcast shape of the i64 arguments."""
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    _, counter, index = torch.broadcast_tensors(seed, counter, index)
    c0, c1, c2 = counter & _MASK, (counter >> 32) & _MASK, index & _MASK
    c3 = torch.full_like(c2, domain)
    for i in range(ROUNDS):
        # i64 products wrap modulo 2^64, which leaves both halves right.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        keys = ((k0 + i * _WEYL[0]) & _MASK, (k1 + i * _WEYL[1]) & _MASK)
        c0 = (second >> 32).bitwise_and_(_MASK).bitwise_xor_(c1).bitwise_xor_(keys[0])
        c2 = (first >> 32).bitwise_and_(_MASK).bitwise_xor_(c3).bitwise_xor_(keys[1])
        c1, c3 = second.bitwise_and_(_MASK), first.bitwise_and_(_MASK)
    return [c0, c1, c2, c3]


def token_words(seed: Tensor, counter: Tensor, start: int, stop: int) -> Tensor:
    """The 32-bit words of tokens start..stop, [R, stop - start]; seed, counter [R] i64."""
    tile = LANES * WORDS
    first, last = start // tile, -(-stop // tile)
    lanes = LANES if last - first > 1 else min(LANES, stop - first * tile)
    index = torch.arange(first * LANES, (last - 1) * LANES + lanes, device=seed.device)
    words = philox(seed[:, None], counter[:, None], index[None, :], GUMBEL)
    by_tile = torch.stack([w.view(-1, last - first, lanes) for w in words], dim=2)
    return by_tile.flatten(1)[:, start - first * tile : stop - first * tile]


def uniform(words: Tensor) -> Tensor:
    """(2 k + 1) / 2^24 for the 23 high bits k: exact in fp32, never 0 and never 1."""
    return ((words >> 9) * 2 + 1).float() * 2.0**-24


def gumbel(words: Tensor) -> Tensor:
    """-log(-log u) for u = uniform(words), finite.  words: i64, any shape, 32 bits each  ->  f32"""
    return -torch.log(-torch.log(uniform(words)))


def uniform_tokens(seed: Tensor, counter: Tensor, vocab_size: int) -> Tensor:
    """floor(word * vocab_size / 2^32): no token is off by more than vocab_size / 2^32 relative."""
    word = philox(seed, counter, torch.zeros_like(counter), TOKENS)[0]
    return (word * vocab_size) >> 32
