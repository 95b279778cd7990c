"""survivors.py: how many tokens `soft_mix` keeps of a row, by distribution.  Needs no GPU."""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from diffusiongemma_kernels.soft_mix._config import DROPPED, LEAST, LEVELS, LIMIT  # noqa: E402

VOCAB, ROWS, CAP = 262144, 8, 30.0


def kept(p: Tensor) -> int | None:
    """Tokens that the kernel keeps of one row; None where it needs the whole vocabulary."""
    for level in reversed([LEAST * 4**i for i in range(LEVELS)]):
        mine = p >= level
        if p[mine].sum() >= 1 - DROPPED:
            count = int(mine.sum())
            return count if count <= LIMIT else None
    return None


def distributions() -> Iterator[tuple[str, list[Tensor]]]:
    make = torch.Generator().manual_seed(0)
    for heat in (0.8, 0.4):
        for sigma in (1, 2, 3, 4, 6):
            logits = torch.randn(ROWS, VOCAB, generator=make, dtype=torch.float64) * sigma
            capped = CAP * torch.tanh(logits / CAP) / heat
            yield f"normal logits, sigma {sigma}, T {heat}", list(capped.softmax(1))
        for lead in (3, 5, 8):
            logits = torch.randn(ROWS, VOCAB, generator=make, dtype=torch.float64) * 2
            logits[:, 1000] = logits.amax(1) + lead
            yield f"sigma 2, one logit {lead} above, T {heat}", list((logits / heat).softmax(1))
    for power in (1.0, 1.5, 2.0, 2.5, 3.0):
        p = torch.arange(1, VOCAB + 1, dtype=torch.float64) ** -power
        yield f"Zipf, power {power}", [p / p.sum()]


def main() -> None:
    print("| distribution | entropy, nats | tokens kept | rows over the whole vocabulary |")
    print("|---|---|---|---|")
    for name, rows in distributions():
        entropy = sum(float(torch.special.entr(p).sum()) for p in rows) / len(rows)
        counts = [kept(p) for p in rows]
        few = sorted(count for count in counts if count is not None)
        middle = few[len(few) // 2] if few else "-"
        print(f"| {name} | {entropy:.2f} | {middle} | {counts.count(None)} of {len(rows)} |")


if __name__ == "__main__":
    main()
