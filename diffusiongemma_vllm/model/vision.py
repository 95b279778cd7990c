"""The vision tower and its projector, as the checkpoint holds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel


class Vision(nn.Module):
    """Gemma 4's tower from transformers and the projection into the text model's width."""

    def __init__(self, vision_config: Any, text_config: Any) -> None:
        super().__init__()
        self.tower = AutoModel.from_config(vision_config, dtype=torch.get_default_dtype())
        self.projector = nn.Module()
        self.projector.embedding_projection = nn.Linear(
            vision_config.hidden_size, text_config.hidden_size, bias=False
        )
