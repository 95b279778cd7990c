"""Paged attention by Triton and on the CPU against its reference."""

import pytest
import torch

from diffusiongemma_kernels.attention import _config, op, reference
from diffusiongemma_kernels.attention._config import Config
from diffusiongemma_kernels.attention.testing import Case, attend, check, make, rows_of
from diffusiongemma_kernels.paged import FP8
from diffusiongemma_kernels.testing import Heads, Paged, Request, paged_case

HALF = torch.float16  # the interpreter has no bfloat16 products


MIXED = (
    Request(9, 13),
    Request(5, 0, canvas=False),
    Request(7, 40, canvas=False),
    Request(12, 0),
)
SMALL = Heads(4, 2, 32)
CASES = [
    Case(MIXED, SMALL, "mixed modes, nothing divides"),
    Case(MIXED, SMALL, "window smaller than a canvas", window=6),
    Case(MIXED, SMALL, "window longer than some prefixes", window=20),
    Case(MIXED, SMALL, "window of one key", window=1),
    Case(MIXED, SMALL, "padded rows and requests", window=20, padding=(3, 2)),
    Case(MIXED, SMALL, "pages of two tiles and padded requests", page=32, padding=(0, 3)),
    Case((Request(1, 0, False),), SMALL, "one row"),
    Case((Request(1, 30, False),), SMALL, "one row after a prefix", window=8),
    Case((Request(16, 16),), SMALL, "everything divides"),
    Case((Request(20, 45, False),), SMALL, "a later chunk of a prompt", window=30),
    Case((Request(33, 70),), Heads(2, 2, 64), "no grouping, page longer than a tile", page=64),
    Case((Request(3, 21), Request(2, 5, False)), Heads(8, 1, 64), "group of eight"),
    Case((Request(6, 19),), Heads(8, 4, 256), "head of 256", window=12),
    Case((Request(3, 19),), Heads(8, 1, 512), "head of 512 in two value chunks"),
    Case((Request(3, 7),), Heads(3, 1, 32), "group of three"),
    Case(MIXED, SMALL, "images", images=((1, 0, 4), (2, 41, 44), (2, 45, 47))),
    Case(MIXED, SMALL, "images longer than the window", window=3, images=((1, 0, 5), (2, 40, 46))),
    Case(MIXED, SMALL, "the rest of an image", window=4, images=((2, 30, 45),), padding=(3, 2)),
    Case((Request(60, 20, False),), SMALL, "an image over many tiles", images=((0, 22, 78),)),
    Case((Request(9, 13, False),), Heads(8, 1, 64), "image, group of eight", images=((0, 14, 21),)),
    Case(MIXED, SMALL, "f16", dtype=HALF),
    Case(MIXED, SMALL, "f16 over fp8", window=20, dtype=HALF, kv_dtype=FP8),
    Case(MIXED, SMALL, "f32 over fp8", kv_dtype=FP8),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_triton(case: Case, device: str) -> None:
    paged = make(case, device)
    want = attend(reference.paged_attention, paged, case.window)
    check(attend(op.paged_attention_triton, paged, case.window), want, rows_of(case))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_torch(case: Case) -> None:
    paged = make(case)
    want = attend(reference.paged_attention, paged, case.window)
    check(attend(op.paged_attention, paged, case.window), want, rows_of(case))


@pytest.mark.parametrize("splits", [2, 8])
@pytest.mark.parametrize("block_n", [16, 32], ids=["tile of a page", "tile over pages"])
def test_splits_add_up(splits: int, block_n: int, device: str) -> None:
    case = Case(MIXED, SMALL, "", window=20, padding=(3, 2))
    paged = make(case, device)
    want = attend(reference.paged_attention, paged, case.window)
    config = Config(16, block_n, 32, 4, 1, splits, 1)
    check(attend(op.paged_attention_triton, paged, 20, config=config), want, rows_of(case))


def test_splits_of_an_image(device: str) -> None:
    case = Case((Request(40, 70, False), Request(5, 3)), SMALL, "", 8, images=((0, 66, 100),))
    paged = make(case, device)
    want = attend(reference.paged_attention, paged, 8)
    config = Config(16, 16, 32, 4, 1, 4, 1)
    check(attend(op.paged_attention_triton, paged, 8, config=config), want, rows_of(case))


def test_an_image_is_seen_whole_and_text_is_not() -> None:
    """Change one key at a time and look which rows notice."""
    request = Request(10, 4, canvas=False)
    case = Case((request,), SMALL, "", window=3, images=((0, 6, 11),))
    paged = make(case)
    plain = attend(op.paged_attention, paged, 3)
    for key in range(14):
        value = paged.kv.value.clone()
        value[paged.batch.block_table[0, key // 16].long(), key % 16] += 1
        other = attend(op.paged_attention, paged._replace(kv=paged.kv._replace(value=value)), 3)
        noticed = {4 + t for t in (other != plain).flatten(1).any(1).nonzero().flatten().tolist()}
        window = {p for p in range(4, 14) if p - 3 < key <= p}
        image = set(range(6, 11)) if key in range(6, 11) else set()
        assert noticed == window | image, key


def test_splits_of_a_head_in_chunks(device: str) -> None:
    case = Case((Request(5, 50),), Heads(4, 2, 64), "")
    paged = make(case, device)
    want = attend(reference.paged_attention, paged, 0)
    config = Config(16, 16, 32, 4, 1, 4, 1)
    check(attend(op.paged_attention_triton, paged, 0, config=config), want, rows_of(case))


def test_a_lower_bound_on_tiles_leaves_splits_idle(device: str) -> None:
    case = Case((Request(5, 20), Request(4, 90)), SMALL, "")
    paged = make(case, device)
    want = attend(reference.paged_attention, paged, 0)
    config = Config(16, 16, 32, 4, 1, 4, 3)
    check(attend(op.paged_attention_triton, paged, 0, config=config), want, rows_of(case))


@pytest.mark.parametrize("function", [op.paged_attention_triton, op.paged_attention_torch])
def test_empty_steps(function, device: str) -> None:
    where = device if function is op.paged_attention_triton else "cpu"
    none = paged_case((), SMALL, device=where)
    assert attend(function, none, 0).shape == (0, 4, 32)
    padded = paged_case((), SMALL, device=where, padding=(4, 2))
    assert attend(function, padded, 0).isnan().all()


def test_a_bool_canvas_is_the_same(device: str) -> None:
    paged = make(CASES[0], device)
    as_bool = paged._replace(batch=paged.batch._replace(canvas=paged.batch.canvas.bool()))
    for function in (op.paged_attention_triton, op.paged_attention_torch):
        if function is op.paged_attention_triton or device == "cpu":
            assert torch.equal(attend(function, paged, 0), attend(function, as_bool, 0))


def in_parts(paged: Paged, cuts: list[int]) -> Paged:
    """Of every request, the first ``cut`` rows causal and the rest a canvas behind them."""
    starts, lengths = paged.batch.query_start_loc.tolist(), paged.batch.seq_lens.tolist()
    bounds, ends = [], []
    for start, stop, length, cut in zip(starts[:-1], starts[1:], lengths, cuts, strict=True):
        bounds += [start, start + cut]
        ends += [length - (stop - start) + cut, length]
    batch = paged.batch._replace(
        query_start_loc=paged.batch.query_start_loc.new_tensor([*bounds, starts[-1]]),
        seq_lens=paged.batch.seq_lens.new_tensor(ends),
        canvas=paged.batch.canvas.new_tensor([0, 1] * len(cuts)),
        parts=2,
    )
    return paged._replace(batch=batch)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("window", [0, 20])
def test_text_and_canvas_of_one_request(window: int, splits: int, device: str) -> None:
    """They share a line of the block table; as requests with lines of their own they say the same.

    Padded requests are empty in both parts.
    """
    case = Case(MIXED, SMALL, "", padding=(3, 1))
    paged = in_parts(make(case, device), [4, 5, 0, 9, 0])
    table = paged.batch.block_table.repeat_interleave(2, dim=0)
    apart = paged._replace(batch=paged.batch._replace(block_table=table, parts=1))
    want = attend(reference.paged_attention, apart, window)
    check(attend(reference.paged_attention, paged, window), want, rows_of(case))
    config = Config(16, 16, 32, 4, 1, splits, 1)
    check(attend(op.paged_attention_triton, paged, window, config=config), want, rows_of(case))
    if device == "cpu":
        check(attend(op.paged_attention, paged, window), want, rows_of(case))


def each_alone(function, paged: Paged, window: int, **options) -> torch.Tensor:
    """The rows of every request, asked for in a batch of its own."""
    starts, rows = paged.batch.query_start_loc, []
    lengths = starts.diff().tolist()
    for i, length in enumerate(lengths):
        batch = paged.batch._replace(
            query_start_loc=starts[i : i + 2] - starts[i],
            seq_lens=paged.batch.seq_lens[i : i + 1],
            block_table=paged.batch.block_table[i : i + 1],
            canvas=paged.batch.canvas[i : i + 1],
            max_query_len=length,
            max_seq_len=int(paged.batch.seq_lens[i]),
        )
        own = paged.q[starts[i] : starts[i + 1]]
        rows.append(attend(function, Paged(own, paged.kv, batch), window, **options))
    return torch.cat(rows)


def test_a_request_on_the_cpu_is_independent_of_its_batch() -> None:
    paged = make(CASES[2])
    whole = attend(op.paged_attention_torch, paged, 20)
    assert torch.equal(each_alone(op.paged_attention_torch, paged, 20), whole)


@pytest.mark.parametrize("window", [0, 20])
def test_batch_invariant(window: int, device: str) -> None:
    paged = make(Case(MIXED, SMALL, ""), device)
    invariant = {"batch_invariant": True}
    whole = attend(op.paged_attention_triton, paged, window, **invariant)
    assert torch.equal(each_alone(op.paged_attention_triton, paged, window, **invariant), whole)


def test_every_row_tile_has_a_program() -> None:
    for block_m, group in ((16, 2), (64, 8), (16, 3)):
        for lengths in ([1], [16, 1, 1], [256] * 4, [7, 0, 0, 129]):
            need = sum(-(-n * group // block_m) for n in lengths)
            assert need <= _config.row_tiles(sum(lengths), len(lengths), group, block_m)


def test_config_of_the_model() -> None:
    local = _config.Shape(256, 1, 8, 2, 256, 2, 768)
    assert _config.choose(local, (9, 0), 132).splits == 4, "two programs a processor"
    wide = local._replace(kv_heads=2, group=8, head_dim=512)
    assert _config.choose(wide, (9, 0), 132).splits == 1, "one program a processor"
    many = local._replace(tokens=8192, requests=32)
    assert _config.choose(many, (9, 0), 132).splits == 1
    one_row = local._replace(tokens=1, keys=262144)
    assert _config.choose(one_row, (9, 0), 132).splits == 16
    tiles = {_config.choose(one, (9, 0), 132)[:5] for one in (local, many, one_row)}
    assert len(tiles) == 1, "one compilation for every batch"
    alike = {_config.choose(one, (9, 0), 132, batch_invariant=True) for one in (local, many)}
    assert len(alike) == 1 and alike.pop().splits == 1
    with pytest.raises(ValueError, match="head_dim must be one of"):
        _config.choose(local._replace(head_dim=96), (9, 0), 132)
    with pytest.raises(ValueError, match="8.0 or newer"):
        _config.choose(local, (7, 5), 72)


LOCAL, GLOBAL = Heads(16, 8, 256), Heads(16, 2, 512)
CANVAS = (Request(256, 512),)
BATCH = tuple(Request(256, 100 + 37 * i) for i in range(4)) + (Request(700, 300, False),)
BF16 = torch.bfloat16
REAL = [
    Case(CANVAS, LOCAL, "local, one canvas", 1024, 64, BF16),
    Case(CANVAS, GLOBAL, "global, one canvas", 0, 64, BF16),
    Case((Request(256, 3000),), LOCAL, "local, past the window", 1024, 64, BF16),
    Case((Request(256, 20000),), GLOBAL, "global, long prefix", 0, 64, BF16),
    Case(BATCH, LOCAL, "local, mixed", 1024, 16, BF16, padding=(64, 3)),
    Case(BATCH, GLOBAL, "global, mixed", 0, 16, BF16, padding=(64, 3)),
    Case(CANVAS, LOCAL, "local over fp8", 1024, 64, BF16, FP8),
    Case(CANVAS, GLOBAL, "global over fp8", 0, 32, BF16, FP8),
    Case((Request(2, 5000, False),), GLOBAL, "two rows, many splits", 0, 64, BF16),
    Case((Request(130, 70),), Heads(8, 2, 128), "f16, head of 128", 64, 16, HALF),
    Case((Request(130, 70),), Heads(8, 2, 256), "f32, head of 256", 64, 16, torch.float32),
]


@pytest.mark.gpu
@pytest.mark.parametrize("case", REAL, ids=lambda c: c.why)
def test_real_shapes(case: Case) -> None:
    paged = make(case, "cuda")
    cpu = make(case)
    if case.kv_dtype is None:
        # A row's exact answer: the CPU path in fp32 on the same rounded numbers.
        exact = cpu._replace(
            q=cpu.q.float(),
            kv=cpu.kv._replace(key=cpu.kv.key.float(), value=cpu.kv.value.float()),
        )
    else:
        exact = cpu._replace(q=cpu.q.float())
    want = attend(op.paged_attention_torch, exact, case.window)
    got = attend(op.paged_attention, paged, case.window).cpu()
    check(got, want, rows_of(case))


@pytest.mark.gpu
@pytest.mark.parametrize("heads, window", [(LOCAL, 1024), (GLOBAL, 0)], ids=["local", "global"])
def test_batch_invariant_at_the_real_shapes(heads: Heads, window: int) -> None:
    paged = make(Case(BATCH, heads, "", window, 16, BF16), "cuda")
    whole = attend(op.paged_attention, paged, window, batch_invariant=True)
    alone = each_alone(op.paged_attention, paged, window, batch_invariant=True)
    assert torch.equal(alone, whole)


@pytest.mark.gpu
def test_one_graph_serves_other_lengths() -> None:
    """A captured launch must read lengths and pages from the device, not from its capture."""
    paged = paged_case(
        (Request(256, 900), Request(256, 30)), LOCAL, page=64, dtype=BF16, device="cuda"
    )
    out = torch.full_like(paged.q, float("nan"))
    batch = paged.batch._replace(max_seq_len=262144)

    def step() -> None:
        op.paged_attention(paged.q, paged.kv, batch, out, window=1024, scale=1.0)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    batch.seq_lens.copy_(torch.tensor([256 + 500, 256], dtype=torch.int32))
    out.fill_(float("nan"))
    graph.replay()
    want = torch.full_like(out, float("nan"))
    op.paged_attention(paged.q, paged.kv, batch, want, window=1024, scale=1.0)
    assert torch.equal(out, want)
    assert not out.isnan().any()
