"""On a CPU, a process that waits for another one leaves it the cores.

vLLM's processes look for messages without a pause for a second after each: right beside a GPU, but
here engine and worker take each other's time, step after step.
"""

from __future__ import annotations

from typing import Any

from diffusiongemma_vllm.compat import patch

LONGEST = 20  # milliseconds until a message is looked for although nobody told of one


def install() -> None:
    """For the processes that serve our model.  Removal: when vLLM waits so on CPUs."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    def make_wait(original: Any) -> Any:
        def wait(self: Any, timeout_ms: int | None = None) -> None:
            self.busy_loop_s = 0
            original(self, LONGEST if timeout_ms is None else min(timeout_ms, LONGEST))

        return wait

    patch(SpinCondition, "wait", make_wait)
