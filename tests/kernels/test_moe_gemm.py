"""The experts of a layer by Triton and on the CPU against their reference."""

import re

import numpy as np
import pytest
import torch

from diffusiongemma_kernels import target
from diffusiongemma_kernels.formats.nvfp4 import NVFP4, dequantize
from diffusiongemma_kernels.moe_decode._kernel import DECODE
from diffusiongemma_kernels.moe_gemm import _config, op, pack, reference
from diffusiongemma_kernels.moe_gemm._config import Config, Schedule
from diffusiongemma_kernels.moe_gemm.order import ORDERS, arranged
from diffusiongemma_kernels.moe_gemm.routed import summed
from diffusiongemma_kernels.moe_gemm.testing import (
    MOE,
    Case,
    exact,
    make,
    packed,
    random_nvfp4,
    route,
    worst_row,
)
from diffusiongemma_kernels.moe_gemm.types import Arranged, Dense

CASES = [
    Case(0, "empty step"),
    Case(1, "one row, experts without rows"),
    Case(17, "nothing divides", 5, 3, 144, 80),
    Case(256, "one canvas"),
    Case(300, "skewed", zipf=2.0),
]
LONG = (Schedule(128, 4, 2), Schedule(64, 4, 2))
CONFIGS = {
    "steps of 128": Config(16, 16, *LONG),
    "narrow tail": Config(32, 16, Schedule(64, 4, 2), Schedule(64, 4, 2)),
}


def dense(gate_up, down) -> tuple[torch.Tensor, torch.Tensor]:
    return dequantize(gate_up), dequantize(down)


@pytest.mark.parametrize("lane", [2, 8])
def test_an_order_gives_a_lane_the_columns_of_one_scale(lane: int) -> None:
    for q in range(4):
        at = [s + lane * q + i for s in range(0, 64, 4 * lane) for i in range(lane)]
        assert ORDERS[lane][at].tolist() == list(range(16 * q, 16 * q + 16))
    x = torch.randn(3, 100)
    got = arranged(x, lane)
    assert got.shape == (3, 128)
    assert torch.equal(got[:, ORDERS[lane].argsort()], x[:, :64])
    assert torch.equal(got[:, 64 + ORDERS[lane].argsort()][:, :36], x[:, 64:])
    assert arranged(Arranged(got, lane), lane) is got
    with pytest.raises(AssertionError, match="lanes"):
        arranged(Arranged(got, lane), 10 - lane)


def test_arranged_rows_are_read_as_they_are(device: str) -> None:
    (x, ids, share), gate_up, down = make(Case(17, "", 5, 3, 128, 80), device)
    if device == "cuda":
        x = x.bfloat16()
    weights = packed(gate_up, down)
    lane = op.lane(target.of(x.device).capability) if device == "cuda" else _config.LANE
    run = op.moe_unsummed if device == "cuda" else op.moe_triton
    got = summed(run(Arranged(arranged(x, lane), lane), ids, share, *weights))
    assert torch.equal(got, summed(run(x, ids, share, *weights)))


@pytest.mark.parametrize("format", ["nvfp4", "dense"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_triton(case: Case, format: str, device: str) -> None:
    if device == "cuda":
        pytest.skip("float32 is for the interpreter")
    routed, gate_up, down = make(case)
    weights = packed(gate_up, down) if format == "nvfp4" else map(Dense, dense(gate_up, down))
    got = summed(op.moe_triton(*routed, *weights))
    assert worst_row(got, exact(routed, gate_up, down)) < MOE[torch.float32]


@pytest.mark.parametrize("format", ["nvfp4", "dense"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tiles(config: Config, format: str, device: str) -> None:
    if device == "cuda":
        pytest.skip("float32 is for the interpreter")
    routed, gate_up, down = make(Case(40, "", 3, 2, 208, 80))
    weights = packed(gate_up, down) if format == "nvfp4" else map(Dense, dense(gate_up, down))
    got = summed(op.moe_triton(*routed, *weights, config=config))
    assert worst_row(got, exact(routed, gate_up, down)) < MOE[torch.float32]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_torch(case: Case) -> None:
    routed, gate_up, down = make(case)
    want = exact(routed, gate_up, down)
    for weights in (packed(gate_up, down), map(Dense, dense(gate_up, down))):
        assert worst_row(op.moe(*routed, *weights), want) < MOE[torch.float32]


def test_one_expert_takes_all(device: str) -> None:
    if device == "cuda":
        pytest.skip("float32 is for the interpreter")
    (x, ids, share), gate_up, down = make(Case(40, ""))
    ids = torch.full_like(ids, 3)
    got = summed(op.moe_triton(x, ids, share, *packed(gate_up, down)))
    assert worst_row(got, exact((x, ids, share), gate_up, down)) < MOE[torch.float32]


@pytest.mark.parametrize("function", [op.moe_triton, op.moe_torch])
def test_experts_of_other_ranks_add_nothing(function, device: str) -> None:
    if device == "cuda":
        pytest.skip("float32 is for the interpreter")
    (x, ids, share), gate_up, down = make(Case(17, ""))
    ids = ids - 2  # -2 and -1 are nobody's; 4 and 5 stay unused
    ids[3] = 6
    want = exact((x, ids, share), gate_up, down)
    assert want[3].abs().sum() == 0
    got = summed(function(x, ids, share, *packed(gate_up, down)))
    assert worst_row(got, want) < MOE[torch.float32]


def test_a_row_is_independent_of_its_batch(device: str, monkeypatch) -> None:
    if device == "cuda":
        pytest.skip("float32 is for the interpreter")
    # NumPy's product rounds a column by its place in the matrix, which no GPU does.
    monkeypatch.setattr(
        np, "matmul", lambda a, b, dtype: (a[:, None, :] * b.T[None]).sum(-1, dtype=dtype)
    )
    (x, ids, share), gate_up, down = make(Case(40, ""))
    weights = packed(gate_up, down)
    whole = summed(op.moe_triton(x, ids, share, *weights, batch_invariant=True))
    for r in (0, 7, 39):
        one = [part[r : r + 1].contiguous() for part in (x, ids, share)]
        assert torch.equal(summed(op.moe_triton(*one, *weights, batch_invariant=True))[0], whole[r])


def test_batch_invariant_choice_is_one() -> None:
    for nvfp4, gpu in ((False, (9, 0)), (True, (8, 0)), (False, (12, 0))):
        chosen = {_config.choose(r, nvfp4, gpu, True) for r in (0.1, 1, 20, 50, 300, 4000)}
        assert len(chosen) == 1
        assert chosen.pop().tail_n == _config.choose(1, nvfp4, gpu, True).block_n


@pytest.mark.parametrize("gate_up", [True, False])
def test_pack_and_unpack(gate_up: bool) -> None:
    original = random_nvfp4(2, 160, 80, scales=(1, 0x7F))
    back = pack.unpack(pack.pack(*original, gate_up=gate_up), gate_up=gate_up)
    for before, after in zip(original, back, strict=True):
        view = torch.uint8 if before.dtype == torch.float8_e4m3fn else before.dtype
        assert torch.equal(before.view(view), after.view(view))


def test_pack_keeps_every_scale() -> None:
    """Each e4m3 number above zero, subnormals too, as a bf16's bits."""
    bits = torch.arange(1, 0x7F, dtype=torch.uint8)
    stored = pack.SCALE_BYTES[bits.int()]
    assert stored.min() >= 0 and stored.max() < 256
    as_bf16 = ((stored << 4) | 0x7000).to(torch.int16).view(torch.bfloat16).float()
    assert torch.equal(as_bf16 * 2.0**-118, bits.view(torch.float8_e4m3fn).float())


def test_pack_turns_a_zero_scale_into_zeros() -> None:
    codes, scales, factor = random_nvfp4(1, 128, 64)
    scales[0, 3, 1] = 0
    weights = pack.pack(codes, scales, factor, gate_up=False)
    back = dequantize(NVFP4(*pack.unpack(weights, gate_up=False)))
    assert torch.equal(back, dequantize(NVFP4(codes, scales, factor)))


@pytest.mark.parametrize("bits", [0x7F, 0xB8], ids=["NaN", "negative"])
def test_pack_refuses_a_scale(bits: int) -> None:
    codes, scales, factor = random_nvfp4(1, 128, 64)
    scales.view(torch.uint8)[0, 5, 2] = bits
    with pytest.raises(ValueError, match="negative or NaN"):
        pack.pack(codes, scales, factor, gate_up=False)


def test_pack_refuses_shapes() -> None:
    codes, scales, factor = random_nvfp4(1, 128, 64)
    with pytest.raises(ValueError, match="a scale for 16 columns"):
        pack.pack(codes[:, :, :28], scales, factor, gate_up=False)
    with pytest.raises(ValueError, match="as many"):
        pack.pack(codes[:, :127], scales[:, :127], factor, gate_up=True)
    with pytest.raises(ValueError, match="u8"):
        pack.pack(codes.char(), scales, factor, gate_up=False)


def run_ptx(text: str, codes: np.ndarray, scales: np.ndarray) -> list[np.ndarray]:
    """The handful of instructions in `DECODE`, on arrays of u32 with two halves each."""

    def halves(word: np.ndarray) -> np.ndarray:
        bits = np.stack((word & 0xFFFF, word >> 16)).astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64)

    def value(name: str) -> np.ndarray | int:
        return registers[name] if name in registers else int(name, 0)

    registers = {"$4": codes, "$5": scales}
    for line in text.splitlines()[2:-1]:
        name, target, *sources = re.findall(r"[\w.$]+", line)
        a, b, c = ([value(s) for s in sources] + [0, 0])[:3]
        match name:
            case "shl.b32":
                result = a << b
            case "shr.u32":
                result = a >> b
            case "and.b32":
                result = a & b
            case "lop3.b32":
                assert sources[3] == "0xEA"
                result = (a & b) | c
            case "mov.b32":
                result = np.full_like(codes, a)
            case "fma.rn.bf16x2":
                wide = (halves(a) * halves(b)).astype(np.float32)  # + -0 changes nothing
                result = wide.view(np.uint32)[0] >> 16 | wide.view(np.uint32)[1]
                assert not (wide.view(np.uint32) & 0xFFFF).any(), "the product is exact"
            case _:
                raise AssertionError(line)
        registers[target] = result if name == "mov.b32" else result & np.uint32(0xFFFFFFFF)
    return [registers[f"${i}"] for i in range(4)]


def test_the_instructions_decode_every_half() -> None:
    E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float64)
    half = np.arange(65536, dtype=np.uint32)
    other = (half * 40503) & 0xFFFF
    byte = half % (int(pack.SCALE_BYTES.max()) + 1)
    byte2 = byte[::-1]
    scales = (byte << 4 | 0x7000) | (byte2 << 4 | 0x7000) << 16
    outputs = run_ptx(DECODE.value, half | other << 16, scales.astype(np.uint32))
    for j, got in enumerate(outputs):
        for part, word, b in ((got & 0xFFFF, half, byte), (got >> 16, other, byte2)):
            magnitude = E2M1[(word >> pack.MAGNITUDE[j]) & 7]
            sign = 1.0 - 2.0 * ((word >> pack.SIGN[j]) & 1)
            scale = (1 + (b & 7) / 8) * 2.0 ** ((b >> 3).astype(np.int32) + 224 - 127)
            want = sign * magnitude * 2.0**-126 * scale
            bits = part.astype(np.uint32) << 16
            np.testing.assert_array_equal(bits.view(np.float32).astype(np.float64), want)


REAL = Case(256, "one canvas", 128, 8, 2816, 704)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 17, 256, 300, 2048])
@pytest.mark.parametrize("format", ["nvfp4", "dense"])
def test_real_shape(tokens: int, format: str) -> None:
    (x, ids, share), gate_up, down = make(REAL._replace(tokens=tokens), "cuda")
    x = x.bfloat16()
    if format == "nvfp4":
        weights = packed(gate_up, down)
        plain = dense(gate_up, down)
    else:
        plain = [w.bfloat16() for w in dense(gate_up, down)]
        weights = [Dense(w) for w in plain]
    got = op.moe(x, ids, share, *weights)
    some = slice(0, tokens, max(1, tokens // 16))
    want = reference.moe(x[some], ids[some], share[some], *(w.double() for w in plain))
    assert worst_row(got[some], want) < MOE[torch.bfloat16]
    assert got.isfinite().all()


@pytest.mark.gpu
def test_every_code_and_scale() -> None:
    """Identity activations read the decoded weights back, bit for bit."""
    E, H, F = 1, 256, 128
    codes, scales, _ = random_nvfp4(E, H, F, scales=(1, 0x7F), device="cuda")
    down = pack.pack(codes, scales, torch.ones(1, device="cuda"), gate_up=False)
    ids = torch.zeros(F, 1, dtype=torch.int32, device="cuda")
    ones = torch.ones(F, 1, device="cuda")
    ordered = op.moe_sort(ids, experts=1, block=32)
    h = arranged(torch.eye(F, device="cuda", dtype=torch.bfloat16), 8)
    cfg = _config.choose(1.0, True, (9, 0))._replace(block_n=32, tail_n=32)
    got = op.launch_down(ordered, h, ones, down, cfg)
    want = dequantize(NVFP4(codes, scales, torch.ones(1, device="cuda")))[0].T
    assert torch.equal(got.float(), want)


@pytest.mark.gpu
def test_batch_invariant_on_the_gpu() -> None:
    (x, ids, share), gate_up, down = make(REAL._replace(tokens=300), "cuda")
    x, weights = x.bfloat16(), packed(gate_up, down)
    whole = op.moe(x, ids, share, *weights, batch_invariant=True)
    for rows in (1, 17, 256):
        part = [p[:rows].contiguous() for p in (x, ids, share)]
        assert torch.equal(op.moe(*part, *weights, batch_invariant=True), whole[:rows])


@pytest.mark.gpu
def test_a_graph_replays_with_other_routing() -> None:
    (x, ids, share), gate_up, down = make(REAL, "cuda")
    x, weights = x.bfloat16(), packed(gate_up, down)
    op.moe(x, ids, share, *weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = op.moe(x, ids, share, *weights)
    ids.copy_(route(256, 128, 8, zipf=1.5, device="cuda")[0])
    want = op.moe(x, ids, share, *weights)
    graph.replay()
    assert torch.equal(y, want)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("tokens", [256, 512, 2048])
def test_beside_products_of_another_stream(tokens: int, batch_invariant: bool) -> None:
    """They keep the tensor cores busy, so that a product is late for the step that follows it."""
    (x, ids, share), gate_up, down = make(REAL._replace(tokens=tokens), "cuda")
    x, weights = x.bfloat16(), packed(gate_up, down)
    alone = op.moe(x, ids, share, *weights, batch_invariant=batch_invariant)
    wide = torch.randn(2816, 4224, device="cuda", dtype=torch.bfloat16)
    main, other = torch.cuda.current_stream(), torch.cuda.Stream()
    for _ in range(20):
        other.wait_stream(main)
        with torch.cuda.stream(other):
            for _ in range(8):
                torch.mm(x, wide)
        got = op.moe(x, ids, share, *weights, batch_invariant=batch_invariant)
        assert torch.equal(got, alone)
        main.wait_stream(other)
