"""examples/benchmark.py: how it fills weights and what it makes of times.  Engines: by hand."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

PATH = Path(__file__).resolve().parents[1] / "examples/benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_example", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 32))
        self.norm = nn.Parameter(torch.zeros(32))
        self.register_buffer("codes", torch.zeros(64, 16, dtype=torch.uint8))
        self.register_buffer("block_scale", torch.zeros(64, 2, dtype=torch.float8_e4m3fn))
        self.register_buffer("weight_scale_2", torch.zeros(8))
        self.register_buffer("positions", torch.zeros(8, dtype=torch.int64))
        self.register_buffer("passing", torch.zeros(8, 8), persistent=False)


def test_weights_are_drawn_by_a_seed_and_none_that_matters_is_left_zero(benchmark):
    layer, again = Layer(), Layer()
    benchmark.fill(None, layer, None)
    benchmark.fill(None, again, None)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor.float(), again.state_dict()[name].float()), name
    assert 0.015 < float(layer.weight.std()) < 0.025 and (layer.norm == 1).all()
    assert len(layer.codes.unique()) > 200
    scales = layer.block_scale.float()
    assert scales.min() >= 0.5 and scales.max() <= 2.0 and len(scales.unique()) > 4
    assert (layer.weight_scale_2 == 0.008).all()
    assert not layer.positions.any() and not layer.passing.any()


def test_a_line_takes_prompts_out_of_the_time(benchmark):
    """A second for the prompt, a quarter of one and five forwards a canvas."""
    bench = object.__new__(benchmark.Bench)
    bench.canvas, bench.length, bench.about = 256, 512, {"implementation": "ours"}
    bench.where = {"gpu": "none", "start_s": 9.5, "settings": {"steps": 4}}
    bench.worker = None
    bench.timed = lambda batch, canvases: (1 + 0.25 * canvases, 1 + 5 * canvases)
    line = bench.step(2)
    assert line["ms_a_canvas"] == 250 and line["forwards_a_canvas"] == 5 and line["ms"] == 50
    assert line["tokens_per_second"] == 2 * 256 * 2 / 0.5 and line["prompt_ms"] == 1000
    assert line["settings"] == {"prompt": 512, "steps": 4} and line["start_s"] == 9.5


@pytest.mark.parametrize(("given", "missing"), [
    (["MODEL", "--json", "a.jsonl", "--plot", "a.png"], "pip install matplotlib"),
    (["--json", "a.jsonl", "--plot", "a.png"], "pip install matplotlib"),
    (["MODEL", "--plot", "a.png"], "--json"),
])
def test_what_cannot_be_drawn_is_refused_before_it_is_timed(
    benchmark, monkeypatch, capsys, given, missing
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it fails
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *given])
    with pytest.raises(SystemExit):
        benchmark.arguments()
    assert missing in capsys.readouterr().err


def test_without_a_plot_matplotlib_is_not_needed(benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "MODEL", "--json", "a.jsonl"])
    assert benchmark.arguments().model == "MODEL"


def test_users_ask_again_when_they_are_answered(benchmark):
    """Two users, three answers each, from an engine that answers in two steps."""
    bench = object.__new__(benchmark.Bench)
    bench.args, bench.canvas, bench.length = SimpleNamespace(requests=3), 4, 5
    bench.vocab, bench.make = 100, torch.Generator().manual_seed(0)
    bench.about, bench.where = {}, {"settings": {}}
    inside, most = {}, []

    def reply(name, steps):
        outputs = [SimpleNamespace(token_ids=[1] * steps)]
        return SimpleNamespace(request_id=name, outputs=outputs, finished=steps == 2)

    def step():
        most.append(len(inside))
        replies = []
        for name in list(inside):
            inside[name] += 1
            replies.append(reply(name, inside[name]))
            if inside[name] == 2:
                del inside[name]
        return replies

    def add_request(name, prompt, params):
        assert len(prompt["prompt_token_ids"]) == 5
        inside[name] = 0

    bench.params = lambda canvases: None
    bench.llm = SimpleNamespace(
        llm_engine=SimpleNamespace(step=step, add_request=add_request)
    )
    line = bench.load(2)
    assert line["users"] == 2 and line["requests"] == 6 and max(most) == 2
    assert 0 <= line["first_token_ms"]["median"] <= line["answer_ms"]["median"]
