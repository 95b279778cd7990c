"""Probabilities of rows of logits whose sums are known."""

from diffusiongemma_kernels.row_probs.op import row_probs, row_probs_torch, row_probs_triton

__all__ = ["row_probs", "row_probs_torch", "row_probs_triton"]
