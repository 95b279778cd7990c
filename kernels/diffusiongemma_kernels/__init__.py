"""Triton kernels for DiffusionGemma, each beside a reference in plain torch.  Never imports vLLM."""
