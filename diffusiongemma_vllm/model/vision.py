"""The vision tower and its projector, as the checkpoint holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers import AutoModel

from diffusiongemma_vllm.media.pixels import positions

PATCHES = 1 << 14  # of one call on a GPU: a picture of 1,120 tokens, or two dozen frames


class Picture(NamedTuple):
    """values: [P, patch * patch * 3] u8.  rows, columns: of soft tokens."""

    values: Tensor
    rows: int
    columns: int


class Vision(nn.Module):
    """Gemma 4's tower from transformers and the projection into the text model's width.

    Pictures of one grid run together, without padding, so that none needs a mask.  On CPU each
    runs alone: the last bits of a GEMM's row depend on how many rows there are.
    """

    def __init__(self, vision_config: Any, text_config: Any) -> None:
        super().__init__()
        self.tower = AutoModel.from_config(vision_config, dtype=torch.get_default_dtype())
        self.projector = nn.Module()
        self.projector.embedding_projection = nn.Linear(
            vision_config.hidden_size, text_config.hidden_size, bias=False
        )
        self.pool = vision_config.pooling_kernel_size
        self.eps = vision_config.rms_norm_eps

    def forward(self, pictures: list[Picture]) -> list[Tensor]:
        """Soft tokens of every picture, row by row.   ->  [rows * columns, H] each"""
        features: list[Tensor | None] = [None] * len(pictures)
        for places in self._batches(pictures):
            values = torch.stack([pictures[i].values for i in places])
            _, rows, columns = pictures[places[0]]
            for i, one in zip(places, self.encode(values, rows, columns), strict=True):
                features[i] = one
        return [one for one in features if one is not None]

    def _batches(self, pictures: list[Picture]) -> Iterator[list[int]]:
        """Places of pictures that run together."""
        alike: dict[tuple[int, int], list[int]] = {}
        for i, one in enumerate(pictures):
            alike.setdefault((one.rows, one.columns), []).append(i)
        for places in alike.values():
            values = pictures[places[0]].values
            count = max(1, PATCHES // values.shape[0]) if values.is_cuda else 1
            for start in range(0, len(places), count):
                yield places[start : start + count]

    def encode(self, values: Tensor, rows: int, columns: int) -> Tensor:
        """values: [B, P, patch * patch * 3] u8  ->  [B, rows * columns, H]

        Source: transformers' ``DiffusionGemmaEncoderModel.get_image_features``.
        """
        where = torch.from_numpy(positions(rows, columns, self.pool)).to(values.device)
        found = self.tower(
            pixel_values=values.float() / 255, pixel_position_ids=where.expand(len(values), -1, -1)
        ).last_hidden_state
        normed = rms_norm(found.float(), found.shape[-1:], eps=self.eps).to(found.dtype)
        projection: Any = self.projector.embedding_projection
        features: Tensor = projection(normed)
        return features.view(len(values), rows * columns, -1)
