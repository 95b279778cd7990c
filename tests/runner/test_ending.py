"""How a server ends once its engine is gone."""

import asyncio
import inspect
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")
from diffusiongemma_vllm.compat import ARCHITECTURE  # noqa: E402
from diffusiongemma_vllm.runner import ending  # noqa: E402


class Ends:
    """vLLM's function: how it ended, and what it returns."""

    def __init__(self, name):
        async def shutdown():
            return name

        shutdown.__name__ = name
        self.shutdown = shutdown

    async def __call__(self, engine_client, *args, **kwargs):
        assert args == ("address",) and kwargs == {"port": 1}
        made = self.shutdown()
        made.__name__ = self.shutdown.__name__
        return made


def serve(architecture, name, *, errored, code=-9):
    manager = SimpleNamespace(processes=[SimpleNamespace(exitcode=code)])
    client = SimpleNamespace(
        model_config=SimpleNamespace(architectures=[architecture]), errored=errored,
        engine_core=SimpleNamespace(resources=SimpleNamespace(engine_manager=manager)),
    )

    async def run():
        return await (await ending._make(Ends(name))(client, "address", port=1))

    return asyncio.run(run())


def test_a_dead_engine_ends_with_an_error():
    with pytest.raises(SystemExit, match=r"the engine died \(SIGKILL"):
        serve(ARCHITECTURE, ending.BY_ITSELF, errored=True)
    with pytest.raises(SystemExit, match=r"the engine died \(exit code 1\)"):
        serve(ARCHITECTURE, ending.BY_ITSELF, errored=True, code=1)


@pytest.mark.parametrize("architecture, name, errored", [
    (ARCHITECTURE, "shutdown", True),  # SIGTERM: the engine was stopped on purpose
    (ARCHITECTURE, ending.BY_ITSELF, False),
    ("Gemma4ForCausalLM", ending.BY_ITSELF, True),
])
def test_every_other_end_is_vllms(architecture, name, errored):
    assert serve(architecture, name, errored=errored) == name


class Client:
    """What ``AsyncLLM`` has of its output handler, which here waits without an end."""

    def __init__(self, architecture, told):
        self.model_config = SimpleNamespace(architectures=[architecture])
        self.output_handler = None
        self.output_processor = SimpleNamespace(propagate_error=told.append)

    def run(self):
        if self.output_handler is None:
            self.output_handler = asyncio.create_task(asyncio.sleep(60))


@pytest.mark.parametrize("architecture, errors", [(ARCHITECTURE, 1), ("Gemma4ForCausalLM", 0)])
def test_running_requests_hear_that_nothing_more_comes(architecture, errors):
    from vllm.v1.engine.exceptions import EngineDeadError

    told = []
    start = ending._make_handler(Client.run)

    async def stopped():
        client = Client(architecture, told)
        start(client)
        start(client)  # once a request, as vLLM does
        await asyncio.sleep(0)
        client.output_handler.cancel()
        await asyncio.sleep(0.01)

    asyncio.run(stopped())
    assert [type(error) for error in told] == [EngineDeadError] * errors


def test_vllm_still_stops_its_handler_so():
    from vllm.v1.engine.async_llm import AsyncLLM

    assert "cancel_task_threadsafe(handler)" in inspect.getsource(AsyncLLM.shutdown)
    handler = inspect.getsource(inspect.unwrap(AsyncLLM._run_output_handler))
    assert "except Exception as e" in handler and "propagate_error(e)" in handler


def test_vllm_still_ends_that_way():
    from vllm.entrypoints.launchers import launcher
    from vllm.entrypoints.launchers.api_server import entry

    serving = inspect.getsource(launcher.serve_http)
    assert f"return {ending.BY_ITSELF}()" in serving and "return server.shutdown()" in serving
    assert "await build_and_serve(" in inspect.getsource(entry.run_server_worker)
    ending.install()
    patched = entry.build_and_serve
    ending.install()
    assert entry.build_and_serve is patched and patched.__wrapped__ is not patched
