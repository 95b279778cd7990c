"""The training twin with eyes: Gemma 4's vision tower, written lean, and a context that shows it.

Same arithmetic and parameter names as transformers' tower for pictures of one size; no shape
depends on the data. The tokens of one picture see each other in both directions.

Shapes: B examples, S pictures of each, P patches, F = soft tokens of a picture, W tower's width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from drawings import GRID
from export import VISION
from model import GatedMLP, Linear, Miniature, Norm, rotate
from torch import Tensor, nn

from diffusiongemma_vllm.media.pixels import positions

POOL, WIDTH, HEADS = 3, VISION["hidden_size"], VISION["num_attention_heads"]
HEAD = VISION["head_dim"]
SOFT = GRID[0] * GRID[1]


@dataclass(frozen=True)
class Scene:
    """A context with pictures, in place of its ids.

    ids: [B, L].  patches: [B, S, P, 768] u8.  seen: [B, L], 0 for text, n for the n-th soft token.
    """

    ids: Tensor
    patches: Tensor
    seen: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        return self.ids.device


class Wrapped(nn.Module):
    """A product under the name that Gemma 4's towers give it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            Wrapped(WIDTH, WIDTH) for _ in "qkvo"
        )
        self.q_norm, self.k_norm = Norm(HEAD), Norm(HEAD)
        self.v_norm = Norm(HEAD, scaled=False)

    def forward(self, x: Tensor, turns: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
        N, P, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(N, P, HEADS, HEAD)

        def turned(y: Tensor) -> Tensor:
            parts = zip(y.chunk(2, -1), turns, strict=True)
            return torch.cat([rotate(part, *turn) for part, turn in parts], -1).transpose(1, 2)

        q, k = self.q_norm(heads(self.q_proj(x))), self.k_norm(heads(self.k_proj(x)))
        v = self.v_norm(heads(self.v_proj(x))).transpose(1, 2)
        y = F.scaled_dot_product_attention(turned(q), turned(k), v, scale=1.0)
        return self.o_proj(y.transpose(1, 2).reshape(N, P, WIDTH))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), GatedMLP(WIDTH, VISION["intermediate_size"])
        for name in ("gate_proj", "up_proj", "down_proj"):
            inner = getattr(self.mlp, name)
            wrapped = Wrapped(*inner.weight.shape[::-1])
            setattr(self.mlp, name, wrapped)
        self.input_layernorm, self.post_attention_layernorm = Norm(WIDTH), Norm(WIDTH)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = Norm(WIDTH), Norm(WIDTH)

    def forward(self, x: Tensor, turns: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), turns))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Patcher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_proj = Linear(3 * VISION["patch_size"] ** 2, WIDTH)
        table = torch.randn(2, VISION["position_embedding_size"], WIDTH) * 0.02
        self.position_embedding_table = nn.Parameter(table)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embedder = Patcher()
        layers = nn.ModuleList(Layer() for _ in range(VISION["num_hidden_layers"]))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.register_buffer("std_bias", torch.zeros(WIDTH))
        self.register_buffer("std_scale", torch.ones(WIDTH))
        where = torch.from_numpy(positions(*GRID, POOL))
        self.register_buffer("where", where, persistent=False)
        theta = VISION["rope_parameters"]["rope_theta"]
        rates = theta ** (-torch.arange(0, HEAD // 2, 2).float() / (HEAD // 2))
        angles = (where[:, :, None].float() * rates).repeat(1, 1, 2)  # [P, 2, HEAD // 2]
        self.register_buffer("angles", angles, persistent=False)

    def forward(self, patches: Tensor, dtype: torch.dtype) -> Tensor:
        """patches [N, P, 768] u8 -> [N, F, W]."""
        x = self.patch_embedder.input_proj((2 * (patches.float() / 255 - 0.5)).to(dtype))
        table = self.patch_embedder.position_embedding_table.to(dtype)
        x = x + table[0, self.where[:, 0]] + table[1, self.where[:, 1]]
        turns = tuple(
            (self.angles[:, i].cos()[None, :, None].to(dtype),
             self.angles[:, i].sin()[None, :, None].to(dtype))
            for i in range(2)
        )
        for layer in self.encoder["layers"]:
            x = layer(x, turns)
        rows, columns = GRID
        pooled = x.float().view(-1, rows, POOL, columns, POOL, WIDTH).mean((2, 4)).flatten(1, 2)
        return ((pooled * WIDTH**0.5 - self.std_bias) * self.std_scale).to(dtype)


class Seeing(Miniature):
    """The twin whose ``encode`` takes a Scene as well."""

    def __init__(self) -> None:
        super().__init__()
        projection = nn.ModuleDict({"embedding_projection": Linear(WIDTH, self.sizes.hidden)})
        self.model["encoder"] = nn.ModuleDict({"vision_tower": Tower(), "embed_vision": projection})
        self.unscaled = Norm(WIDTH, scaled=False)

    def look(self, patches: Tensor) -> Tensor:
        """[B, S, P, 768] u8 -> soft tokens [B, S * F, H]."""
        B, S = patches.shape[:2]
        found = self.model["encoder"]["vision_tower"](patches.flatten(0, 1), self.dtype)
        project = self.model["encoder"]["embed_vision"]["embedding_projection"]
        return project(self.unscaled(found)).view(B, S * SOFT, -1)

    def encode(self, context: Tensor | Scene) -> tuple[list, Tensor]:
        if isinstance(context, Tensor):
            return super().encode(context)
        ids, seen = context.ids, context.seen
        L = ids.shape[1]
        at = torch.arange(L, device=ids.device)
        soft = self.look(context.patches)
        places = (seen - 1).clamp(min=0)[..., None].expand(-1, -1, soft.shape[-1])
        x = torch.where(seen[..., None] > 0, soft.gather(1, places), self._embed(ids))
        behind, picture = at[:, None] - at, (seen - 1) // SOFT
        same = (picture[:, :, None] == picture[:, None]) & (seen > 0)[:, :, None]
        full = (behind >= 0) | same
        near = ((behind >= 0) & (behind < self.sizes.window)) | same
        bias = {"full": self._bias(full)[:, None], "sliding": self._bias(near)[:, None]}
        return self._through(x, self._rope(at[None]), bias)
