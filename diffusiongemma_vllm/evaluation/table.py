"""Results as a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffusiongemma_vllm.evaluation import interval
from diffusiongemma_vllm.evaluation.benchmark import Benchmark
from diffusiongemma_vllm.evaluation.interval import Interval, Points
from diffusiongemma_vllm.evaluation.result import Result


@dataclass(frozen=True)
class Table:
    """Cells of text; every row as long as the head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        lines = [self.head, tuple("---" for _ in self.head), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def card(
    rows: Sequence[tuple[Benchmark, Result]], beside: Mapping[str, Result]
) -> Table:
    """Each benchmark: the card's two numbers, ours, and ours minus the card's.

    beside: results of another run, by benchmark; where there are any, a column has the
    difference to them, question by question.
    """
    head = ["benchmark", "questions", "BF16 (card)", "NVFP4 (card)", "ours", "ours - BF16",
            "ours - NVFP4", "cut off"]
    if beside:
        head.append("ours - the other run")
    cells = []
    for benchmark, result in rows:
        ours = interval.share(result.points)
        row = [benchmark.title, _count(result, benchmark.draws)]
        published = benchmark.card
        if published is None:
            row += ["", "", _share(ours), "", ""]
        else:
            row += [f"{published.bf16:.2f}", f"{published.nvfp4:.2f}", _share(ours)]
            row += [
                _difference(interval.against(result.points, percent / 100))
                for percent in (published.bf16, published.nvfp4)
            ]
        row.append(str(result.cut))
        if beside:
            other = beside.get(benchmark.name)
            apart = other and _difference(interval.difference(result.points, other.points))
            row.append(apart or "")
        cells.append(tuple(row))
    return Table(tuple(head), tuple(cells))


def beside(
    kinds: Sequence[str], results: Mapping[str, Result], pairs: Sequence[tuple[str, str]]
) -> Table:
    """Runs over the same questions beside each other, by kind of question and in all.

    kinds: the kind of each question.  results: by the run's name, in the order of the columns.
    pairs: runs whose difference is a column, as (this, minus that).
    """
    head = ["task", "questions", *results, *(f"{this} - {that}" for this, that in pairs)]
    groups = {kind: [i for i, one in enumerate(kinds) if one == kind] for kind in kinds}
    groups["all"] = list(range(len(kinds)))
    rows = []
    for kind, places in groups.items():
        points: dict[str, Points] = {
            name: result.pick(places) for name, result in results.items()
        }
        row = [kind, str(len(places)), *(_share(interval.share(p)) for p in points.values())]
        row += [
            _difference(interval.difference(points[this], points[that])) for this, that in pairs
        ]
        rows.append(tuple(row))
    return Table(tuple(head), tuple(rows))


def check_paired(benchmark: Benchmark, asked: list[int], other: Result) -> None:
    """Raises ValueError where another run has not asked those questions."""
    if asked != other.questions:
        raise ValueError(
            f"{benchmark.name}: the other run asked {len(other.questions)} question(s), not these "
            f"{len(asked)}; give both the same --limit"
        )


def _count(result: Result, draws: int) -> str:
    count = str(len(result.questions))
    return count if draws == 1 else f"{count} x {draws}"


def _share(found: Interval) -> str:
    return f"{_percent(found.estimate)} ({_percent(found.low)} to {_percent(found.high)})"


def _difference(found: Interval) -> str:
    low, high = (f"{100 * end:+.1f}" for end in (found.low, found.high))
    return f"{100 * found.estimate:+.1f} ({low} to {high})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
