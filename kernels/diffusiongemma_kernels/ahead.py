"""Compile the kernels of ops side by side, before the ops are needed."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime._async_compile import AsyncCompileMode, FutureKernel, active_mode
from triton.runtime.jit import JITFunction

aten = torch.ops.aten
EMPTY = {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default,
    aten.new_empty.default, aten.new_empty_strided.default,
}  # fmt: skip


class Ahead:
    """Kernels that other threads compile, while this one goes on.

    Threads do: a compilation holds Python's lock for a tenth of its time.
    """

    def __init__(self) -> None:
        self.pool = Compilers()
        self.mode = AsyncCompileMode(self.pool)

    @contextmanager
    def launched(self) -> Iterator[None]:
        """A launch inside, by this thread, has its kernel compiled and runs nothing.

        So an op's output is memory as it was: zeros, where it was made inside.
        """
        launch, caller = JITFunction.run, threading.get_ident()

        def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            only = warmup or threading.get_ident() == caller
            kernel = launch(self, *args, grid=grid, warmup=only, **options)
            if isinstance(kernel, FutureKernel) and kernel.future and kernel.future.done():
                kernel.result()  # the next launch finds it in the kernel's own cache
            return kernel

        JITFunction.run = run
        token = active_mode.set(self.mode)
        try:
            with Zeroed():
                yield
        finally:
            active_mode.reset(token)
            JITFunction.run = launch

    def wait(self) -> None:
        """Until all is compiled.  Raises what a compilation raised."""
        for kernel in self.mode.future_kernels.values():
            kernel.result()
        self.pool.shutdown()


@contextmanager
def compiled_ahead() -> Iterator[None]:
    """What is launched inside is compiled when it ends, and has not run."""
    ahead = Ahead()
    with ahead.launched():
        yield
    ahead.wait()


class Compilers(ThreadPoolExecutor):
    """Threads on the device of whoever starts them."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            device = torch.cuda.current_device()
            super().__init__(initializer=torch.cuda.set_device, initargs=(device,))
        else:
            super().__init__()

    def submit(self, compile: Callable[[], Any]) -> Future[Any]:  # type: ignore[override]
        return super().submit(loaded, compile)


def loaded(compile: Callable[[], Any]) -> Any:
    """A kernel whose launcher is built too, by a C compiler in a quarter of a second."""
    kernel = compile()
    kernel.run  # noqa: B018
    return kernel


class Zeroed(TorchDispatchMode):
    """New memory is zeros, which index anything, where kernels that would fill it do not run."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out.zero_() if func in EMPTY else out
