"""What lies between a layer's products, at the model's shape, against the same in eager torch."""

from collections.abc import Iterator

import torch
from timed import Timed

from diffusiongemma_kernels.moe_gemm.routed import summed
from diffusiongemma_kernels.moe_gemm.types import Unsummed
from diffusiongemma_kernels.moe_sort.op import moe_sort
from diffusiongemma_kernels.norms import op as norm_op
from diffusiongemma_kernels.norms import reference as norm_reference
from diffusiongemma_kernels.norms.types import Entry, Exit
from diffusiongemma_kernels.paged import FP8, PagedKV
from diffusiongemma_kernels.qkv import op as qkv_op
from diffusiongemma_kernels.qkv import reference as qkv_reference
from diffusiongemma_kernels.route import op as route_op
from diffusiongemma_kernels.route import reference as route_reference

HIDDEN, EXPERTS, TOP_K, EPS = 2816, 128, 8, 1e-6
BF16 = torch.bfloat16
TOKENS = (256, 2048, 8192)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=BF16)


def norms(_sweep: bool) -> Iterator[Timed]:
    weights = [numbers(HIDDEN) for _ in range(4)]
    for count in TOKENS:
        x, y, z = (numbers(count, HIDDEN) for _ in range(3))
        entry, behind, scalar = Entry(*weights), Exit(*weights), numbers(1)
        row = 2 * x.numel()
        args = (x, y, entry, EPS)
        yield Timed(
            f"enter, {count} rows", lambda args=args: norm_op.enter_triton(*args, lane=2),
            bytes=6 * row,
            baseline=lambda args=args: norm_reference.enter(*args),
        )  # fmt: skip
        more = (x, y, z, behind, scalar, EPS)
        yield Timed(
            f"leave, {count} rows", lambda args=more: norm_op.leave_triton(*args), bytes=5 * row,
            baseline=lambda args=more: norm_reference.leave(*args),
        )  # fmt: skip
        ids = torch.randn(count, EXPERTS, device="cuda").topk(TOP_K).indices.int()
        slots = Unsummed(numbers(count * TOP_K, HIDDEN), ids, EXPERTS)
        yield Timed(
            f"leave, {count} rows, {TOP_K} slots each",
            lambda x=x, y=y, slots=slots, rest=more[3:]: norm_op.leave_triton(x, y, slots, *rest),
            bytes=(4 + TOP_K) * row,
            baseline=lambda x=x, y=y, slots=slots, rest=more[3:]: norm_op.leave_triton(
                x, y, summed(slots), *rest
            ),
        )


def heads(_sweep: bool) -> Iterator[Timed]:
    for name, kv, dim, kind in (
        ("local", 8, 256, BF16), ("global", 2, 512, BF16), ("local to fp8", 8, 256, FP8)
    ):  # fmt: skip
        for count in TOKENS:
            width, pages = (16 + 2 * kv) * dim, count // 64
            cache = torch.zeros(pages, kv, 64, 2 * dim, device="cuda", dtype=kind)
            paged = PagedKV(*cache.transpose(1, 2).split(dim, -1))
            args = (
                numbers(count, width), numbers(count, 2, dim // 2), numbers(dim), numbers(dim),
                paged, torch.randperm(count, device="cuda"), EPS,
            )  # fmt: skip
            kept = 2 * kv * dim
            yield Timed(
                f"{name}, {count} rows",
                lambda args=args: qkv_op.turned_into_cache(*args),
                bytes=count * (2 * (2 * width - kept + dim) + kept * kind.itemsize),
                baseline=lambda args=args: eager(*args),
            )


def eager(qkv, angles, q_weight, k_weight, kv, slots, eps) -> None:
    """The reference's heads, and indexed copies."""
    parts = qkv_reference.normed_and_turned(
        qkv, angles, q_weight, k_weight, kv.key.shape[2], eps
    )  # fmt: skip
    for rows, cache in zip(parts[1:], (kv.key, kv.value), strict=True):
        cache[slots // 64, slots % 64] = rows.unflatten(1, cache.shape[2:]).to(cache.dtype)


def routes(_sweep: bool) -> Iterator[Timed]:
    scale = numbers(EXPERTS)
    for count in TOKENS:
        scores = numbers(count, EXPERTS)
        yield Timed(
            f"{count} rows",
            lambda scores=scores: route_op.route_triton(scores, TOP_K, scale),
            bytes=count * (2 * EXPERTS + 8 * TOP_K),
            baseline=lambda scores=scores: route_reference.route(scores, TOP_K, scale),
        )


def sorts(_sweep: bool) -> Iterator[Timed]:
    for count in TOKENS:
        ids = torch.randn(count, EXPERTS, device="cuda").topk(TOP_K).indices.int()
        for tiles, block in (("Hopper's", 160), ("others'", 32)):
            yield Timed(
                f"{count} rows, {tiles} tiles",
                lambda ids=ids, block=block: moe_sort(
                    ids, experts=EXPERTS, block=block, fullest_first=block == 160
                ),
                bytes=8 * ids.numel(),
            )
