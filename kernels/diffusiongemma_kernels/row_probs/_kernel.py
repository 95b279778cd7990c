import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def probs(
    logits_ptr, temperature_ptr, logsumexp_ptr, probs_ptr, V, stride,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    t = tl.load(temperature_ptr + row)
    z = tl.load(logits_ptr + row * stride + token, mask=token < V, other=0.0).to(tl.float32)
    if SOFTCAP > 0.0:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)), whose ends are exact.
        z = SOFTCAP * (1.0 - 2.0 / (1.0 + tl.exp2(z * (2.0 * LOG2E / SOFTCAP))))
    y = z / tl.where(t > 0.0, t, 1.0)
    p = tl.exp2((y - tl.load(logsumexp_ptr + row)) * LOG2E)
    tl.store(probs_ptr + row * V + token, p.to(probs_ptr.dtype.element_ty), mask=token < V)
