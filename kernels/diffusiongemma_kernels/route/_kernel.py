import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T"])  # one compilation for every batch
def route(
    scores_ptr,  # [T, stride_t]
    scale_ptr,  # [E]
    weights_ptr,  # [T, K] f32
    ids_ptr,  # [T, K] i32
    T,
    E,
    stride_t,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    there = t < T
    score = tl.load(
        scores_ptr + t[:, None].to(tl.int64) * stride_t + e[None, :],
        mask=there[:, None] & (e < E)[None, :],
        other=0.0,
    ).to(tl.float32)
    score = tl.where((e < E)[None, :], score, float("-inf"))
    # The softmax's sum cancels when the weights of the best are made to add to one.
    top = tl.max(score, 1)
    k = tl.arange(0, BLOCK_K)[None, :]
    weights = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    ids = tl.zeros([BLOCK_T, BLOCK_K], tl.int32)
    for place in tl.static_range(K):
        best, expert = tl.max(score, 1, return_indices=True)
        weights = tl.where(k == place, tl.exp(best - top)[:, None], weights)
        ids = tl.where(k == place, expert[:, None], ids)
        score = tl.where(e[None, :] == expert[:, None], float("-inf"), score)
    mask = there[:, None] & (k < K)
    scale = tl.load(scale_ptr + ids, mask=mask, other=0.0).to(tl.float32)
    weights = weights / tl.sum(weights, 1)[:, None] * scale
    at = t[:, None] * K + k
    tl.store(weights_ptr + at, weights, mask=mask)
    tl.store(ids_ptr + at, ids, mask=mask)
