"""Kernels compiled side by side: what is launched meanwhile, and by whom."""

import threading
from concurrent.futures import Future
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import _async_compile
from triton.runtime._async_compile import FutureKernel
from triton.runtime.jit import JITFunction

from diffusiongemma_kernels.ahead import Ahead, compiled_ahead


@pytest.fixture
def launches(monkeypatch) -> list[tuple[str, bool, bool]]:
    """(name, whether it only compiles, whether compiling happens in other threads)"""
    seen: list[tuple[str, bool, bool]] = []

    def run(self: Any, name: str, *, grid: Any, warmup: bool) -> None:
        seen.append((name, warmup, _async_compile.active_mode.get() is not None))

    monkeypatch.setattr(JITFunction, "run", run)
    return seen


def launch(name: str) -> None:
    JITFunction.run(None, name, grid=(1,), warmup=False)


def test_only_this_threads_launches_compile(launches) -> None:
    launch("before")
    with compiled_ahead():
        launch("inside")
        other = threading.Thread(target=launch, args=("another's",))
        other.start()
        other.join()
    launch("after")
    assert launches == [
        ("before", False, False), ("inside", True, True), ("another's", False, False),
        ("after", False, False),
    ]  # fmt: skip


def test_an_error_ends_it(launches) -> None:
    with pytest.raises(ZeroDivisionError), compiled_ahead():
        raise ZeroDivisionError
    launch("after")
    assert launches == [("after", False, False)]


def test_new_memory_is_zeros_inside(launches) -> None:
    """Nothing fills it there, and what is read from it may index."""
    for _ in range(4):
        torch.full((64, 64), 7.0)  # what memory that is taken again may hold
    with compiled_ahead():
        like = torch.ones(64, 64)
        made = [
            torch.empty(64, 64), torch.empty_like(like), like.new_empty(64, 64),
            torch.empty_strided((64, 64), (1, 64)), torch.empty(64, 64, dtype=torch.int64),
        ]
    assert not any(new.any() for new in made) and like.all()


def test_a_kernel_that_is_done_is_kept_once(monkeypatch) -> None:
    """Newer Triton lets go of the future of a kernel that was asked for."""
    asked: list[str] = []

    class Done(FutureKernel):
        def __init__(self, future: Future | None) -> None:
            self.future = future

        def result(self, ignore_errors: bool = False) -> None:
            asked.append("result")

    done: Future = Future()
    done.set_result(None)
    kernels = iter([Done(done), Done(None), Done(Future())])
    monkeypatch.setattr(JITFunction, "run", lambda self, name, **launch: next(kernels))
    with compiled_ahead():
        for name in ("done", "let go of", "not done"):
            launch(name)
    assert asked == ["result"]


def test_a_launcher_is_built_where_the_kernel_is_compiled() -> None:
    class Kernel:
        thread = None

        @property
        def run(self) -> None:
            self.thread = threading.current_thread().name

    ahead = Ahead()
    kernel = ahead.pool.submit(Kernel).result()
    ahead.wait()
    assert kernel.thread not in (None, threading.current_thread().name)


@triton.jit
def double(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, 2 * tl.load(x_ptr + at))


@pytest.mark.gpu
def test_what_was_compiled_ahead_runs_and_is_not_compiled_again(monkeypatch) -> None:
    compiled: list[str] = []

    def listen(*, src: Any, **rest: Any) -> None:
        compiled.append(threading.current_thread().name)

    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    x, out = torch.arange(64, device="cuda"), torch.zeros(64, dtype=torch.int64, device="cuda")
    with compiled_ahead():
        for block in (16, 32, 64):
            double[(1,)](x, out, BLOCK=block)
    assert len(compiled) == 3 and threading.current_thread().name not in compiled
    assert not out.any(), "nothing has run"
    for block in (16, 32, 64):
        double[(1,)](x, out, BLOCK=block)
    assert len(compiled) == 3
    assert torch.equal(out, 2 * x)
