"""The log-probabilities of a batch, in the shape in which vLLM's scheduler cuts them up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from vllm.v1.outputs import LogprobsTensors

from diffusiongemma_vllm.denoise.scores import Scores


def gather(parts: Sequence[Scores | None], requests: int, length: int) -> LogprobsTensors | None:
    """parts: what each canvas gets, for all its ``length`` positions; canvases come first among the
    ``requests`` of the batch.

    Requests ask for different numbers of tokens: shorter rows end in -inf, which vLLM leaves out.
    """
    asked = [part for part in parts if part is not None]
    if not asked:
        return None
    width = max(part.tokens.shape[1] for part in asked)

    def wide(part: Scores) -> Scores:
        more = (0, width - part.tokens.shape[1])
        return Scores(
            pad(part.tokens, more), pad(part.values, more, value=-torch.inf), part.ranks
        )

    rows = [wide(part) for part in asked]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + (0 if part is None else length))
    starts += starts[-1:] * (requests - len(parts))
    return LogprobsTensors(
        logprob_token_ids=torch.cat([row.tokens for row in rows]).to(torch.int32),
        logprobs=torch.cat([row.values for row in rows]),
        selected_token_ranks=torch.cat([row.ranks for row in rows]).to(torch.int32),
        cu_num_generated_tokens=starts,
    )
