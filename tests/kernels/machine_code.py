"""What a compiled kernel's machine code does where it multiplies."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton

# What writes no ordinary register, or nothing but predicates.
WRITES_NOTHING = re.compile(
    r"ST|BRA|BAR|SYNCS|EXIT|RET|WARP|FENCE|MEMBAR|NOP|BS|RED|U[A-Z]|LDGSTS|LDGDEPBAR|DEPBAR|"
    r"ARRIVES|ISETP|FSETP|PLOP3"
)


def disassembled(compiled) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run([tool, "-c", file.name], capture_output=True, text=True).stdout


def instruction_of(line: str) -> str | None:
    found = re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line)
    return found[1] if found else None


def multiplying_loops(text: str) -> list[list[str]]:
    """The instructions of every innermost loop with products."""
    starts: dict[str, int] = {}
    code: list[str] = []
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            starts[label[1]] = len(code)
        elif instruction := instruction_of(line):
            code.append(instruction)
            back = re.search(r"BRA.*(\.L_x_\d+)", instruction)
            if back and back[1] in starts:
                loops.append((starts[back[1]], len(code)))
    taken: list[tuple[int, int]] = []
    for begin, end in sorted(loops, key=lambda loop: loop[1] - loop[0]):
        multiplies = any("MMA" in each for each in code[begin:end])
        if multiplies and all(end <= b or e <= begin for b, e in taken):
            taken.append((begin, end))
    return [code[begin:end] for begin, end in taken]


def count(loops: list[list[str]], pattern: str) -> int:
    return sum(bool(re.search(rf"\b({pattern})\b", each)) for loop in loops for each in loop)


def registers(operand: str, count: int) -> set[int]:
    found = re.match(r"R(\d+)$", operand.removesuffix(".reuse"))
    return set(range(int(found[1]), int(found[1]) + count)) if found else set()


def written(op: str, operands: list[str]) -> set[int]:
    if WRITES_NOTHING.match(op):
        return set()
    wide = ".64" in op or "WIDE" in op or op.startswith("CS2R")
    place = 1 if op.startswith("SHFL") else 0
    return registers(operands[place], 4 if ".128" in op else 2 if wide else 1)


def touched_in_flight(text: str) -> list[str]:
    """The instructions, in the order of the text, that should have waited for a product on sm_90.

    ptxas before CUDA 13.3 may give a product's left operand to other numbers before the product is
    waited for (triton issue 9433), and a sum may not be read before.
    """
    groups: list[tuple[set[int], set[int]]] = []  # left operands and sums, until waited for
    group: tuple[set[int], set[int]] = (set(), set())
    bad = []
    for instruction in filter(None, map(instruction_of, text.splitlines())):
        op, _, rest = re.sub(r"^@!?U?P\w+\s+", "", instruction).partition(" ")
        operands = [each.strip() for each in rest.split(",")]
        if product := re.match(r"HGMMA\.64x(\d+)x", op):
            group[0].update(registers(operands[1], 4))
            group[1].update(registers(operands[0], int(product[1]) // 2))
            if "gsb0" in rest:
                groups.append(group)
                group = (set(), set())
        elif op == "WARPGROUP.DEPBAR.LE":
            left = int(operands[1], 16)
            groups = groups[len(groups) - left :] if left else []
        else:
            lefts = set[int]().union(*(each[0] for each in groups))
            sums = set[int]().union(*(each[1] for each in groups))
            read = {int(n) for n in re.findall(r"\bR(\d+)", ",".join(operands[1:]))}
            if written(op, operands) & (lefts | sums) or read & sums:
                bad.append(instruction)
    return bad
