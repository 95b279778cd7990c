"""How a server ends: with an error where its engine died, and never waiting for lost requests.

vLLM's ends as if all were well in the first case.  In the second, a signal that it was sent, it
stops its engine, then the task that brings what the engine says; where that task had not yet heard
that the engine is gone, requests that run are told nothing and the server waits for them.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Any

from diffusiongemma_vllm.compat import ours, patch

ENTRY = "vllm.entrypoints.launchers.api_server.entry"
CLIENT = "vllm.v1.engine.async_llm"
# The coroutine that ``serve_http`` returns where the server stopped by itself, not by a signal.
BY_ITSELF = "dummy_shutdown"


def install() -> None:
    """In the process of an API server; there is nothing to do in any other.

    Removal: when ``vllm serve`` exits with an error after its engine died, and ends within seconds
    of SIGTERM however many requests run.
    """
    if (entry := sys.modules.get(ENTRY)) is not None:
        patch(entry, "build_and_serve", _make)
    if (client := sys.modules.get(CLIENT)) is not None:
        patch(client.AsyncLLM, "_run_output_handler", _make_handler)


def _make(original: Any) -> Any:
    async def build_and_serve(engine_client: Any, *args: Any, **kwargs: Any) -> Any:
        if not ours(engine_client.model_config):
            return await original(engine_client, *args, **kwargs)
        processes = _processes(engine_client)
        shutdown = await original(engine_client, *args, **kwargs)
        if shutdown.__name__ == BY_ITSELF and engine_client.errored:
            shutdown.close()
            raise SystemExit(sentence([process.exitcode for process in processes]))
        return shutdown

    return build_and_serve


def _make_handler(original: Any) -> Any:
    def _run_output_handler(self: Any) -> None:
        before = self.output_handler
        original(self)
        if self.output_handler is before or not ours(self.model_config):
            return
        requests = self.output_processor

        def tell(handler: Any) -> None:
            from vllm.v1.engine.exceptions import EngineDeadError

            if handler.cancelled():
                requests.propagate_error(EngineDeadError())

        self.output_handler.add_done_callback(tell)

    return _run_output_handler


def _processes(engine_client: Any) -> Sequence[Any]:
    """The engine's processes, as far as this server started them."""
    manager = engine_client.engine_core.resources.engine_manager
    return [] if manager is None else list(manager.processes)


def sentence(codes: Sequence[int | None]) -> str:
    """Why the server ends.  codes: exit codes of the engine's processes, None for a live one."""
    ends = ", ".join(_end(code) for code in codes if code is not None)
    return (
        f"diffusiongemma-vllm: the engine died ({ends or 'its process is gone'}), so the server "
        "ends; what the engine said last stands above. Requests that were running got an error."
    )


def _end(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as by the kernel out of memory" if name == "SIGKILL" else name
