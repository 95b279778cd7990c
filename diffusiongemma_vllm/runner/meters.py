"""Prometheus metrics beside vLLM's own, in the process that answers ``/metrics``."""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from diffusiongemma_vllm.compat import ours, patch

PREFIX = "vllm:diffusion_"  # vLLM's own are vllm:diffusion_num_*
LABELS = ["model_name", "engine"]
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 128, 256, 512, 1024)
RATES = (0.5, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SKEWS = (1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 8, 16, 32, 64, 128)


class Meters:
    """The metrics of every engine that this process hears of.

    seats: requests that run at once.
    """

    def __init__(self, model: str, engines: list[int], seats: int) -> None:
        self.model = model
        self.steps = _histogram("canvas_steps", "Denoise steps of a canvas.", STEPS)
        self.rates = _histogram(
            "tokens_per_forward", "Tokens of a request's text to its forwards.", RATES
        )
        self.batches = _histogram("batch_canvases", "Canvases denoised by a forward.", BATCHES)
        self.skews = _histogram(
            "expert_skew", "Rows of a layer's busiest expert to the mean, in sampled forwards.",
            SKEWS,
        )
        self.canvases = _counter(
            "canvases", "Canvases that gave text, by why denoising stopped and by the finish "
            "reason of a request that ended in it.", "stopped", "ended",
        )
        self.forwards = _counter(
            "request_forwards", "Forwards of a request, by what they did.", "kind"
        )
        self.tokens = _counter("text_tokens", "Tokens of text, up to where it ends.")
        self.rerolls = _counter("rerolls", "Canvases drawn again.")
        self.fused = _counter(
            "fused_commits", "Commits that ran in the next canvas's first forward."
        )
        seat = Gauge(f"{PREFIX}seats", "Requests that run at once.", LABELS,
                     multiprocess_mode="mostrecent")
        for engine in engines:
            own = model, str(engine)
            seat.labels(*own).set(seats)
            for metric in (self.steps, self.rates, self.batches, self.skews, self.tokens,
                           self.rerolls, self.fused):
                metric.labels(*own)
            for kind in ("prompt", "denoise", "commit"):
                self.forwards.labels(*own, kind)

    def record(self, told: dict[str, Any]) -> None:
        """Add what an engine's ``Tally`` tells."""
        own = self.model, str(told["engine"])
        for kind, count in told.get("forwards", {}).items():
            self.forwards.labels(*own, kind).inc(count)
        for steps, stopped, ended in told.get("canvases", ()):
            self.steps.labels(*own).observe(steps)
            self.canvases.labels(*own, stopped, ended).inc()
        for name in ("rates", "batches", "skews"):
            metric = getattr(self, name).labels(*own)
            for value in told.get(name, ()):
                metric.observe(value)
        for name in ("tokens", "rerolls", "fused"):
            getattr(self, name).labels(*own).inc(told.get(name, 0))


def _histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(PREFIX + name, what, LABELS, buckets=buckets)


def _counter(name: str, what: str, *labels: str) -> Counter:
    return Counter(PREFIX + name, what, [*LABELS, *labels])


_METERS: list[Meters] = []  # of the process's engine client; vLLM's logger has one too


def record(told: dict[str, Any]) -> None:
    for meters in _METERS:
        meters.record(told)


def install() -> None:
    """Start with vLLM's own metrics, which first forgets all of an earlier engine's.

    Removal: when ``SchedulerStats`` has room for a model's numbers, for a stat logger of our own.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    def make(original: Any) -> Any:
        def __init__(
            self: Any, vllm_config: Any, engine_indexes: list[int] | None = None
        ) -> None:
            original(self, vllm_config, engine_indexes)
            _METERS.clear()
            if ours(vllm_config.model_config):
                _METERS.append(Meters(
                    vllm_config.model_config.served_model_name, self.engine_indexes,
                    vllm_config.scheduler_config.max_num_seqs,
                ))

        return __init__

    patch(PrometheusStatLogger, "__init__", make)
