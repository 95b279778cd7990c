"""The report fails a run for everything that it is there to find."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def modules():
    """The driver's modules, which it finds beside itself."""
    before = dict(sys.modules)
    sys.path.insert(0, HERE)
    import record
    import report

    yield report, record
    sys.path.remove(HERE)
    for name in set(sys.modules) - set(before):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(HERE):
            del sys.modules[name]


@pytest.fixture
def good(modules):
    report, record = modules
    records = [record.Record("chat", record.Outcome.RIGHT, 1.0),
               record.Record("hostile", record.Outcome.REFUSED, 0.1),
               record.Record("vanishing", record.Outcome.LEFT, 9.0)]
    memory = [(float(i), (1000 + i % 3) << 20) for i in range(100)]
    return report.Report("a machine", records, 3600.0, memory, {}, 5.0, [("stops", True, "1 s")])


def test_a_good_run(good):
    assert good.failures() == []
    assert "\na machine\n" in str(good) and "no request, no slot, no KV block" in str(good)
    assert "| all | 3 | 1 | 0 | 1 | 1 | 0 | 1.00 | 1.00 |" in str(good)


@pytest.mark.parametrize("outcome", ["wrong", "lost"])
def test_bad_answers(good, modules, outcome):
    bad = modules[1].Record("tools", modules[1].Outcome(outcome), 1.0, "why")
    assert replace(good, records=[*good.records, bad]).failures() == [f"tools: {outcome}: why"]


def test_what_is_left_over_missing_or_grows(good):
    assert replace(good, left={"slots": 1}).failures() == ["left over: slots = 1"]
    assert "nothing was preempted" in replace(good, preemptions=0.0).failures()[0]
    assert replace(good, checks=[("stops", False, "hangs")]).failures() == ["stops: hangs"]
    grows = replace(good, memory=[(float(i), (1000 + 4 * i) << 20) for i in range(100)])
    assert "memory grew to 1.1" in grows.failures()[0]
    assert replace(grows, seconds=60.0).failures() == []  # it warms up
