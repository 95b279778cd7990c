"""What a run came to."""

from collections import Counter
from dataclasses import dataclass
from statistics import median

from record import Outcome, Record

BAD = (Outcome.WRONG, Outcome.LOST)
NOTHING = "no request, no slot, no KV block, no picture"
FLAT = 1.05  # memory of the last quarter over that of the second


@dataclass(frozen=True)
class Report:
    """memory: (seconds since the start, bytes).  left: what was not zero at rest.  where: the
    machine and versions."""

    where: str
    records: list[Record]
    seconds: float
    memory: list[tuple[float, int]]
    left: dict[str, float]
    preemptions: float
    checks: list[tuple[str, bool, str]]

    @property
    def growth(self) -> float:
        """Median memory of the last quarter of the run over that of its second quarter."""
        sizes = [size for _, size in self.memory]
        quarter = max(1, len(sizes) // 4)
        return median(sizes[-quarter:]) / median(sizes[quarter : 2 * quarter] or sizes)

    def failures(self) -> list[str]:
        """Sentences; none where all is well."""
        found = [
            f"{one.kind}: {one.outcome}: {one.detail}"
            for one in self.records if one.outcome in BAD
        ]
        found += [f"left over: {name} = {value:g}" for name, value in self.left.items()]
        found += [f"{name}: {seen}" for name, good, seen in self.checks if not good]
        if not self.preemptions:
            found.append("nothing was preempted: the KV cache is too large for this test")
        if self.seconds > 600 and self.growth > FLAT:
            found.append(f"memory grew to {self.growth:.3f} times what it was")
        return found

    def __str__(self) -> str:
        lines = [f"{len(self.records)} requests in {self.seconds:.0f} s, "
                 f"{self.preemptions:.0f} preemptions", "", self.where, ""]
        head = ("kind", "requests", *(str(one) for one in Outcome), "p50 s", "p99 s")
        rows = [head, tuple("---" for _ in head)]
        for kind in [*dict.fromkeys(one.kind for one in self.records), "all"]:
            rows.append(self._row(kind))
        lines += [f"| {' | '.join(row)} |" for row in rows]
        sizes = [size >> 20 for _, size in self.memory]
        lines += [
            "",
            f"memory: {sizes[0]} MiB at first, {sizes[-1]} MiB at the end, {max(sizes)} MiB at "
            f"most; last quarter {self.growth:.3f} times the second",
            "",
            f"left over at rest: {self.left or NOTHING}",
            "",
            *(f"- {'ok' if good else 'FAIL'}: {name} {' '.join(seen.split())[:80]}".rstrip()
              for name, good, seen in self.checks),
        ]
        return "\n".join(lines)

    def _row(self, kind: str) -> tuple[str, ...]:
        mine = [one for one in self.records if kind in (one.kind, "all")]
        counts = Counter(one.outcome for one in mine)
        times = sorted(one.seconds for one in mine if one.outcome is not Outcome.LEFT)
        ends = [
            f"{times[min(len(times) - 1, int(share * len(times)))]:.2f}" if times else ""
            for share in (0.5, 0.99)
        ]
        return (kind, str(len(mine)), *(str(counts[one]) for one in Outcome), *ends)
