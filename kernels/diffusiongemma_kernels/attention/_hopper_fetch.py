"""The warps of `_hopper` that fetch keys and values, piece by piece, into its ring."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from diffusiongemma_kernels.attention import hopper
from diffusiongemma_kernels.gluon_names import load_async, reinterpret

KEYS = gl.constexpr(hopper.KEYS)
WIDTH = gl.constexpr(hopper.WIDTH)
UNIT = gl.constexpr(hopper.UNIT)
STAGED = gl.constexpr(2)  # pieces of fp8 on their way
STAGE = gl.constexpr(gl.SwizzledSharedLayout(4, 1, 8, [1, 0]))
PIECE_WORDS = gl.constexpr(gl.NVMMASharedLayout(128, 32, 2))


@gluon.jit
def key_rows(source, tile, LAYOUT: gl.constexpr, PAGE: gl.constexpr):
    """Where the keys of a tile lie in the cache, in units, and which of them anyone may read."""
    table_ptr, _, end, key_low, key_high, stride_b, stride_s = source
    keys = tile * KEYS + gl.arange(0, KEYS, gl.SliceLayout(1, LAYOUT))  # [KEYS]
    # Outside this range a page may be foreign or hold NaN.
    seen = (keys >= key_low) & (keys < key_high) & (tile < end)
    page = gl.load(table_ptr + keys // PAGE, mask=seen, other=0)
    return page * stride_b + (keys % PAGE) * stride_s, seen


@gluon.jit
def widen(words):
    """[KEYS, N] words of four e4m3 -> [KEYS, 2 N] of two f16."""
    low, high = gl.inline_asm_elementwise(
        "{.reg .b16 a, b; mov.b32 {a, b}, $2;"
        "cvt.rn.f16x2.e4m3x2 $0, a; cvt.rn.f16x2.e4m3x2 $1, b;}",
        "=r,=r,r",
        [words],
        dtype=(gl.int32, gl.int32),
        is_pure=True,
        pack=1,
    )
    return gl.reshape(gl.join(low, high), [KEYS, 2 * words.shape[1]])


@gluon.jit
def store_wide(it, staged, ring, LAYOUT: gl.constexpr, STAGES: gl.constexpr):
    """The `it`th piece, which has come, as f16 into the ring; a quarter at a time for registers."""
    pieces, full, empty = ring
    slot = it % STAGES
    wide = reinterpret(pieces.index(slot), gl.int32, [KEYS, WIDTH // 2], PIECE_WORDS)
    mbarrier.wait(empty.index(slot), ((it // STAGES) & 1) ^ 1)
    for j in gl.static_range(4):
        words = staged.index(it % STAGED).slice(j * (WIDTH // 16), WIDTH // 16, dim=1)
        wide.slice(j * (WIDTH // 8), WIDTH // 8, dim=1).store(widen(words.load(LAYOUT)))
    fence_async_shared()
    mbarrier.arrive(full.index(slot), count=1)


@gluon.jit
def fetch_piece(
    it, ptrs, seen, staged, ring,
    LAYOUT: gl.constexpr, NARROW: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The `it`th piece into the ring; from fp8 as it is, and the one STAGED - 1 before widened."""
    if NARROW:
        load_async(staged.index(it % STAGED), ptrs, mask=seen[:, None])
        async_copy.commit_group()
        if it + 1 >= STAGED:
            async_copy.wait_group(STAGED - 1)
            store_wide(it + 1 - STAGED, staged, ring, LAYOUT, STAGES)
    else:
        pieces, full, empty = ring
        slot = it % STAGES
        mbarrier.wait(empty.index(slot), ((it // STAGES) & 1) ^ 1)
        load_async(pieces.index(slot), ptrs, mask=seen[:, None])
        async_copy.mbarrier_arrive(full.index(slot), increment_count=False)


@gluon.jit
def fetch(
    k_ptr, v_ptr, source, ring, staged,
    D: gl.constexpr, PAGE: gl.constexpr, NARROW: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The pieces in the order of `attend_rows`: a tile's keys, then values of the tile before.

    From fp8 (NARROW) by words of four numbers, through a ring of pieces as they are.
    """
    LAYOUT: gl.constexpr = (
        gl.BlockedLayout([1, 4], [8, 4], [gl.num_warps(), 1], [1, 0])
        if NARROW
        else gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    )
    PACKED: gl.constexpr = 4 if NARROW else 1  # elements of what is loaded
    column = gl.arange(0, WIDTH // PACKED, gl.SliceLayout(0, LAYOUT))
    begin, end = source[1], source[2]
    row, seen = key_rows(source, begin, LAYOUT, PAGE)
    # Triton takes a name for one that a loop leaves alone where it begins as another's value.
    last_row, last_seen = row + 0, seen & True
    it = 0
    for tile in range(begin, end + 1):
        next_row, next_seen = key_rows(source, tile + 1, LAYOUT, PAGE)
        if tile < end:
            keys = k_ptr + (row.to(gl.int64)[:, None] * (UNIT // PACKED) + column[None, :])
            for j in gl.static_range(D // WIDTH):
                here = keys + j * (WIDTH // PACKED)
                fetch_piece(it, here, seen, staged, ring, LAYOUT, NARROW, STAGES)
                it += 1
        if tile > begin:
            values = v_ptr + (last_row.to(gl.int64)[:, None] * (UNIT // PACKED) + column[None, :])
            fetch_piece(it, values, last_seen, staged, ring, LAYOUT, NARROW, STAGES)
            it += 1
        last_row, last_seen = row, seen
        row, seen = next_row, next_seen
    if NARROW:
        async_copy.wait_group(0)
        for rest in range(gl.maximum(it - STAGED + 1, 0), it):
            store_wide(rest, staged, ring, LAYOUT, STAGES)
