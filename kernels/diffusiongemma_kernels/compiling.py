"""Compile a kernel for a GPU that is not here, and read what it uses."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource


class Resources(NamedTuple):
    shared: int  # bytes a program
    registers: int  # a thread
    stack: int  # bytes a thread: spills and local arrays


def compile_for(fn, pointers: dict[str, str], scalars: dict, constants: dict, **launch):
    """`pointers` name -> element type; `scalars` name -> type; `fn` Triton's or Gluon's.

    A scalar written "i32*16" is marked divisible by 16, as Triton marks such arguments.
    """
    launch = dict(launch)
    capability = launch.pop("capability")
    kinds = {name: f"*{kind}" for name, kind in pointers.items()} | scalars
    signature = {n: kinds.get(n, "constexpr") for n in fn.arg_names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(fn.arg_names)
        if n in pointers or str(signature[n]).endswith("*16")
    }
    signature = {n: kind.removesuffix("*16") for n, kind in signature.items()}
    source_of = GluonASTSource if fn.is_gluon() else ASTSource
    source = source_of(fn, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)


def resources(compiled) -> Resources:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = dict(re.findall(r"(REG|STACK):(\d+)", text))
    return Resources(compiled.metadata.shared, int(found["REG"]), int(found["STACK"]))
