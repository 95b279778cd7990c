"""Counts from the scheduler to Prometheus and to traces."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from prometheus_client import REGISTRY
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.metrics.prometheus import unregister_vllm_metrics

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.runner import meters, tally, traces
from diffusiongemma_vllm.runner.report import Report
from diffusiongemma_vllm.runner.tally import Tally

RULES = DenoiseConfig(canvas_length=8, vocab_size=9, max_steps=4, t_min=0.4, t_max=0.8,
                      entropy_bound=0.1, stability_steps=1, confidence=0.1)


@pytest.fixture
def made():
    unregister_vllm_metrics()
    yield meters.Meters("m", [0, 1], seats=4)
    unregister_vllm_metrics()


def sample(name, engine="0", **labels):
    own = {"model_name": "m", "engine": engine} | labels
    return REGISTRY.get_sample_value(f"vllm:diffusion_{name}", own)


def counted():
    """A request of two canvases, the first drawn again once, the second cut by its end."""
    report, found = Report(RULES), Tally(1)
    for rows, canvas, rolls in (
        (20, 0, 0), (8, 8, 0), (8, 8, 1), (8, 8, 1), (8, 8, 1), (8, 0, 0), (16, 8, 0),
    ):
        report.forward(denoised=canvas > 0, committed=0 < canvas < rows)
        found.forward(report, canvas=canvas, rows=rows)
        found.rerolls += report.rerolled(rolls)
        found.batch(canvas > 0)
        if found.forwards.total() == 5:
            report.emit(8, width=8)
            found.canvas(report, 8, None)
    report.emit(8, width=8)
    found.canvas(report, 3, FinishReason.STOP)
    found.finish(report, 11)
    found.look([[1, 3, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    return found


def test_a_tally():
    told = counted().told()
    assert told == {
        "engine": 1, "forwards": {"prompt": 1, "denoise": 5, "commit": 1}, "batches": [1] * 5,
        "canvases": [(2, "settled", "no"), (1, "settled", "stop")], "tokens": 11,
        "rates": [11 / 7], "rerolls": 1, "fused": 1, "skews": [3.0, 1.0],
    }
    assert Tally(0).told() == {}


def test_a_tally_is_sent_to_one_front_end():
    outputs = {3: EngineCoreOutputs()}
    tally.send(outputs, counted())
    assert [one.kv_transfer_params["diffusion_tally"]["tokens"] for one in outputs[3].outputs] == [
        11
    ]
    tally.send(outputs, Tally(0))
    assert len(outputs[3].outputs) == 1


def test_every_metric_is_there_from_the_start(made):
    for name in ("canvas_steps_count", "tokens_per_forward_count", "batch_canvases_count",
                 "expert_skew_count", "text_tokens_total", "rerolls_total", "fused_commits_total"):
        assert sample(name) == 0.0 == sample(name, engine="1")
    assert sample("seats") == 4
    assert sample("request_forwards_total", kind="commit") == 0


def test_a_tally_is_recorded(made):
    made.record(counted().told())
    made.record(counted().told())
    assert sample("canvas_steps_count", "1") == 4 and sample("canvas_steps_sum", "1") == 6
    assert sample("canvases_total", "1", stopped="settled", ended="stop") == 2
    assert sample("request_forwards_total", "1", kind="denoise") == 10
    assert sample("text_tokens_total", "1") == 22
    assert sample("tokens_per_forward_sum", "1") == pytest.approx(22 / 7)
    assert sample("batch_canvases_count", "1") == 10
    assert sample("rerolls_total", "1") == 2 and sample("fused_commits_total", "1") == 2
    assert sample("expert_skew_sum", "1") == 8.0
    assert sample("text_tokens_total", "0") == 0


class Logger:
    """vLLM's, as far as ours reads it."""

    def __init__(self, vllm_config, engine_indexes=None):
        unregister_vllm_metrics()
        self.engine_indexes = engine_indexes or [0]


def test_vllms_logger_starts_ours_for_our_model_alone(monkeypatch):
    from vllm.v1.metrics import loggers

    monkeypatch.setattr(loggers, "PrometheusStatLogger", Logger)
    monkeypatch.setattr(meters, "_METERS", [])
    meters.install()
    for name, found in (("DiffusionGemmaForBlockDiffusion", 1), ("Gemma", 0)):
        config = SimpleNamespace(
            model_config=SimpleNamespace(architectures=[name], served_model_name="m"),
            scheduler_config=SimpleNamespace(max_num_seqs=4),
        )
        loggers.PrometheusStatLogger(config)
        assert len(meters._METERS) == found
        meters.record(counted().told() | {"engine": 0})
        assert sample("text_tokens_total") == (11 if found else None)
    unregister_vllm_metrics()


def test_a_trace_tells_of_canvases(monkeypatch):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.metrics.stats import IterationStats

    provider, spans = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    traces.install()
    processor = OutputProcessor(None, log_stats=True, tracing_enabled=True)
    report = {"forwards": 9, "canvases": [
        {"steps": 4, "tokens": 8, "stopped": "settled"},
        {"steps": 3, "tokens": 2, "stopped": "constraint", "rerolls": 1},
    ]}
    for name, told in (("a", {"diffusion": report}), ("b", None)):
        request = EngineCoreRequest(
            request_id=name, external_req_id=name, prompt_token_ids=[1], mm_features=None,
            sampling_params=SamplingParams(
                detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
            ),
            pooling_params=None, arrival_time=1.0, lora_request=None, cache_salt=None,
            data_parallel_rank=None,
        )
        processor.add_request(request, None)
        done = EngineCoreOutput(name, [3], finish_reason=FinishReason.STOP, kv_transfer_params=told)
        processor.process_outputs([done], 2.0, IterationStats())
    ours, plain = (dict(span.attributes) for span in spans.get_finished_spans())
    assert ours["gen_ai.diffusion.steps"] == (4, 3)
    assert ours["gen_ai.diffusion.stopped"] == ("settled", "constraint")
    assert (ours["gen_ai.diffusion.forwards"], ours["gen_ai.diffusion.rerolls"]) == (9, 1)
    assert ours["gen_ai.request.id"] == "a"
    assert not any("diffusion" in name for name in plain)
