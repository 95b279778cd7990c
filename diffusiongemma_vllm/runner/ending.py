"""A server whose engine died ends with an error that says so; vLLM's ends as if all were well."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Any

from diffusiongemma_vllm.compat import ours, patch

ENTRY = "vllm.entrypoints.launchers.api_server.entry"
# The coroutine that ``serve_http`` returns where the server stopped by itself, not by a signal.
BY_ITSELF = "dummy_shutdown"


def install() -> None:
    """In the process of an API server; there is nothing to do in any other.

    Removal: when ``vllm serve`` exits with an error after its engine died.
    """
    entry = sys.modules.get(ENTRY)
    if entry is not None:
        patch(entry, "build_and_serve", _make)


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
