"""What /metrics tells of a mixed load, against what the load's answers tell of themselves."""

import asyncio
import json
import re
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

DASHBOARD = Path(__file__).parents[2] / "examples" / "container" / "grafana.json"
COUNT = "Count from 001 to 170."
SERIES = re.compile(r"(\S+?)(?:\{(.*)\})? (\S+)$")


def scrape(server):
    """(name, labels but for the model's and the engine's) -> value"""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    found = Counter()
    for line in lines:
        if not line.startswith("#") and (match := SERIES.match(line)):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            own = tuple(sorted(
                pair for pair in labels.items() if pair[0] not in ("model_name", "engine")
            ))
            found[match[1].removeprefix("vllm:diffusion_"), own] += float(match[3])
    return found


def load(client, model, chat):
    """Answers of every kind, four at a time."""
    end = client.post(
        "/../tokenize", cast_to=object,
        body={"model": model, "prompt": "<turn|>", "add_special_tokens": False},
    )["tokens"][0]

    def knobs(**values):
        return {"vllm_xargs": {f"diffusion_{name}": value for name, value in values.items()}}

    asks = [
        lambda: chat(COUNT),
        lambda: chat("Reverse these words: boat lamp salt", max_tokens=3),
        lambda: chat("What is 27 + 38?", thinking=True),
        lambda: chat(COUNT, extra=knobs(max_steps=1), max_tokens=256),
        lambda: chat("Hello", extra=knobs(rerolls=2), logit_bias={str(end): 100}),
        lambda: chat("Make a JSON object of this: kate, paris.", response_format={
            "type": "json_schema", "json_schema": {"name": "fact", "schema": {
                "type": "object", "properties": {"name": {"enum": ["kate", "anna"]}},
                "required": ["name"], "additionalProperties": False,
            }},
        }),
        lambda: chat("Reverse these words: boat lamp salt", n=2, seed=1, temperature=1),
    ]
    with ThreadPoolExecutor(4) as pool:
        return [one.result() for one in [pool.submit(ask) for ask in asks]]


@pytest.fixture(scope="module")
def moved(server, client, model, chat, at_rest):
    """The load's answers, and by how much each metric moved."""
    at_rest()
    before = scrape(server)
    replies = load(client, model, chat)
    at_rest()
    after = scrape(server)
    after.subtract(before)
    return replies, after


def test_every_metric_moves_as_the_answers_say(moved):
    replies, by = moved
    choices = [choice for reply in replies for choice in reply.choices]
    reports = [choice.model_extra["diffusion"] for choice in choices]
    canvases = [canvas for report in reports for canvas in report["canvases"]]
    tokens = sum(reply.usage.completion_tokens for reply in replies)

    def moves(name, **labels):
        wanted = labels.items()
        return sum(
            value for (found, own), value in by.items() if found == name and wanted <= {*own}
        )

    assert moves("canvas_steps_count") == len(canvases)
    assert moves("canvas_steps_sum") == sum(canvas["steps"] for canvas in canvases)
    stopped = Counter(canvas["stopped"] for canvas in canvases)
    assert {"settled", "step_limit"} <= {*stopped}
    for why in ("settled", "step_limit", "constraint"):
        assert moves("canvases_total", stopped=why) == stopped[why]
    ended = Counter(choice.finish_reason for choice in choices)
    assert {*ended} == {"stop", "length"}
    for why, count in ended.items():
        assert moves("canvases_total", ended=why) == count
    assert moves("canvases_total", ended="no") == len(canvases) - len(choices)
    assert moves("text_tokens_total") == tokens
    assert moves("tokens_per_forward_count") == len(choices)
    assert moves("request_forwards_total") == sum(report["forwards"] for report in reports)
    rerolls = sum(canvas.get("rerolls", 0) for canvas in canvases)
    assert moves("rerolls_total") == rerolls == 2
    steps = moves("request_forwards_total", kind="denoise")
    assert steps == moves("num_denoising_steps_total") == moves("batch_canvases_sum")
    assert steps > moves("canvas_steps_sum")  # those of canvases drawn again
    assert steps > moves("batch_canvases_count") > 0  # several in a forward
    assert moves("request_forwards_total", kind="prompt") >= len(replies)
    commits = moves("request_forwards_total", kind="commit") + moves("fused_commits_total")
    assert commits == moves("canvases_total", ended="no")
    assert moves("expert_skew_count") % 6 == 0 < moves("expert_skew_count")  # 6 layers
    assert moves("expert_skew_sum") >= moves("expert_skew_count")
    assert moves("seats") == 0


def test_seats(server):
    assert scrape(server)["seats", ()] == 4


def test_vllms_benchmark_reads_its_own(server):
    import aiohttp
    from vllm.benchmarks.serve import fetch_diffusion_metrics

    async def fetch():
        async with aiohttp.ClientSession() as session:
            return await fetch_diffusion_metrics(server.url, session)

    found, own = asyncio.run(fetch()), scrape(server)
    assert found.num_denoising_steps == own["num_denoising_steps_total", ()] > 0
    assert found.num_committed_tokens == own["num_committed_tokens_total", ()] > 0


def test_the_dashboards_metrics_exist(server):
    expressions = [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", ())
    ]
    named = {name for one in expressions for name in re.findall(r"vllm:\w+", one)}
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as page:
        served = {SERIES.match(line)[1] for line in page.read().decode().splitlines()
                  if line.startswith("vllm:")}
    assert len(named) > 10 and named <= served
