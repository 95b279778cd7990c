"""A lean training twin of transformers' DiffusionGemmaForBlockDiffusion (text part).

Same arithmetic and the same parameter names, written for training: every expert runs on every
token and is weighted by the routing weights, so no shape depends on the data and a whole training
step can be captured as a CUDA graph. Contexts are padded on the right up to a common length.

Shapes: B examples, L context, C canvas, S = L or C queries, H hidden, V vocabulary, E experts,
I expert width, D head dimension, N query heads, G key-value heads.

Architecture after transformers' models/diffusion_gemma (Apache-2.0), reimplemented: Gemma 4's
layers; an encoder that writes keys and values causally, a decoder over the canvas that reads them,
sharing all weights; self-conditioning after arXiv 2208.04202.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """The dimensions of the miniature; `full` lists the layers with full attention."""

    vocab: int = 384
    hidden: int = 192
    layers: int = 6
    full: tuple[int, ...] = (2, 5)
    heads: int = 4
    head_dim: int = 32
    kv_heads: int = 2
    global_head_dim: int = 64
    global_kv_heads: int = 1
    dense: int = 256
    experts: int = 8
    top_k: int = 2
    expert: int = 96
    window: int = 256
    canvas: int = 256
    softcap: float = 30.0
    eps: float = 1e-6


class Norm(nn.Module):
    """RMS norm, with a scale or without; the fused kernel sums in float32."""

    def __init__(self, width: int, scaled: bool = True, start: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), start)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, x.shape[-1:], weight, 1e-6)


class Linear(nn.Module):
    """A product without bias; float32 weights, computed in the type of the input."""

    def __init__(self, inputs: int, outputs: int, std: float | None = None):
        super().__init__()
        std = inputs**-0.5 if std is None else std
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * std)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.gate_proj = Linear(hidden, width)
        self.up_proj = Linear(hidden, width)
        self.down_proj = Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(_gelu(self.gate_proj(x)) * self.up_proj(x))


class SelfConditioning(GatedMLP):
    """Adds what the last step believed, as a mean embedding, to the canvas' embeddings."""

    def __init__(self, hidden: int, width: int):
        super().__init__(hidden, width)
        self.pre_norm, self.post_norm = Norm(hidden), Norm(hidden, scaled=False)

    def forward(self, x: Tensor, belief: Tensor) -> Tensor:
        return self.post_norm(x + super().forward(self.pre_norm(belief)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, S, heads, D] by cos, sin [B or 1, S, 1, D]."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    """Grouped-query attention without scaling; full layers use their keys as values."""

    def __init__(self, sizes: Sizes, full: bool):
        super().__init__()
        self.dim = sizes.global_head_dim if full else sizes.head_dim
        self.heads = sizes.heads
        self.kv_heads = sizes.global_kv_heads if full else sizes.kv_heads
        self.q_proj = Linear(sizes.hidden, self.heads * self.dim)
        self.k_proj = Linear(sizes.hidden, self.kv_heads * self.dim)
        self.v_proj = None if full else Linear(sizes.hidden, self.kv_heads * self.dim)
        self.o_proj = Linear(self.heads * self.dim, sizes.hidden)
        # sharp enough from the start to copy single letters
        self.q_norm, self.k_norm = (Norm(self.dim, start=0.7) for _ in "qk")
        self.v_norm = Norm(self.dim, scaled=False)

    def forward(self, x: Tensor, rope: tuple, past: tuple | None, bias: Tensor | None):
        """x [B, S, H], bias [B or 1, 1, S, keys] or None for causal -> y, (k, v) [B, G, S, D]."""
        B, S, _ = x.shape
        q = rotate(self.q_norm(self.q_proj(x).view(B, S, self.heads, self.dim)), *rope)
        raw = self.k_proj(x).view(B, S, self.kv_heads, self.dim)
        v = raw if self.v_proj is None else self.v_proj(x).view_as(raw)
        q = q.transpose(1, 2)
        k = rotate(self.k_norm(raw), *rope).transpose(1, 2)
        v = self.v_norm(v).transpose(1, 2)
        own = (k, v)
        if past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(past, own, strict=True))
        k, v = (self._repeat(t) for t in (k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=bias is None, scale=1.0
        )
        return self.o_proj(y.transpose(1, 2).reshape(B, S, self.heads * self.dim)), own

    def _repeat(self, x: Tensor) -> Tensor:
        B, G, S, D = x.shape
        spread = x[:, :, None].expand(B, G, self.heads // G, S, D)
        return spread.reshape(B, self.heads, S, D)


class Router(nn.Module):
    """Softmax over all experts, the best k renormalised to one, times a scale per expert."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.top_k = sizes.top_k
        self.norm = Norm(sizes.hidden, scaled=False)
        self.proj = Linear(sizes.hidden, sizes.experts, std=0.5)
        self.scale = nn.Parameter(torch.ones(sizes.hidden))
        self.per_expert_scale = nn.Parameter(torch.ones(sizes.experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, S, H] -> weights [B, S, E] with k nonzero each, balance loss []."""
        x = self.norm(x) * self.scale.to(x.dtype) * x.shape[-1] ** -0.5
        p = self.proj(x).float().softmax(-1)
        best, index = p.topk(self.top_k, -1)
        chosen = torch.zeros_like(p).scatter(-1, index, 1.0)
        weights = p * chosen / best.sum(-1, keepdim=True)
        # Switch Transformer's load balance (arXiv 2101.03961): 1 when all experts are equal
        load = chosen.flatten(0, -2).mean(0) / self.top_k
        balance = (load * p.flatten(0, -2).mean(0)).sum() * p.shape[-1]
        return weights * self.per_expert_scale, balance


class Experts(nn.Module):
    """All experts on all tokens: two matrix products."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        E, I, H = sizes.experts, sizes.expert, sizes.hidden  # noqa: E741
        self.gate_up_proj = nn.Parameter(torch.randn(E, 2 * I, H) * H**-0.5)
        self.down_proj = nn.Parameter(torch.randn(E, H, I) * I**-0.5)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [B, S, H], weights [B, S, E] -> [B, S, H]."""
        E, wide, H = self.gate_up_proj.shape
        both = F.linear(x, self.gate_up_proj.to(x.dtype).view(E * wide, H))
        gate, up = both.unflatten(-1, (E, wide)).chunk(2, -1)
        inner = _gelu(gate) * up * weights.to(x.dtype)[..., None]
        down = self.down_proj.to(x.dtype).transpose(1, 2).reshape(-1, H)
        return inner.flatten(-2) @ down


class Layer(nn.Module):
    """Attention, then a dense MLP beside the experts; used by encoder and decoder alike."""

    def __init__(self, sizes: Sizes, full: bool):
        super().__init__()
        H = sizes.hidden
        self.self_attn = Attention(sizes, full)
        self.mlp = GatedMLP(H, sizes.dense)
        self.router, self.experts = Router(sizes), Experts(sizes)
        self.input_layernorm, self.post_attention_layernorm = Norm(H), Norm(H)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = Norm(H), Norm(H)
        self.pre_feedforward_layernorm_2 = Norm(H)
        self.post_feedforward_layernorm_1, self.post_feedforward_layernorm_2 = Norm(H), Norm(H)
        self.register_buffer("layer_scalar", torch.ones(1))

    def forward(self, x: Tensor, rope: tuple, past: tuple | None, bias: Tensor | None):
        """x [B, S, H] -> x [B, S, H], this layer's (k, v), balance loss []."""
        y, own = self.self_attn(self.input_layernorm(x), rope, past, bias)
        x = x + self.post_attention_layernorm(y)
        weights, balance = self.router(x)
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        mixed = self.experts(self.pre_feedforward_layernorm_2(x), weights)
        y = self.post_feedforward_layernorm(dense + self.post_feedforward_layernorm_2(mixed))
        return (x + y) * self.layer_scalar.to(x.dtype), own, balance


def rope_table(sizes: Sizes, full: bool, length: int) -> tuple[Tensor, Tensor]:
    """cos, sin [length, D]; full layers turn a quarter of their dimensions only."""
    dim = sizes.global_head_dim if full else sizes.head_dim
    turned = int(0.25 * dim // 2) if full else dim // 2
    theta = 1_000_000.0 if full else 10_000.0
    frequency = torch.zeros(dim // 2)
    frequency[:turned] = 1.0 / theta ** (torch.arange(0, 2 * turned, 2).float() / dim)
    angle = torch.arange(length).float()[:, None] * frequency
    angle = torch.cat((angle, angle), -1)
    return angle.cos(), angle.sin()


class Decoder(nn.Module):
    """Everything that carries weights, named as in the checkpoint under `model.decoder`."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocab, sizes.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=sizes.hidden**-0.5)
        self.layers = nn.ModuleList(Layer(sizes, i in sizes.full) for i in range(sizes.layers))
        self.norm = Norm(sizes.hidden)
        self.self_conditioning = SelfConditioning(sizes.hidden, sizes.dense)


class Miniature(nn.Module):
    """encode() a context once, then call the model on canvases."""

    def __init__(self, sizes: Sizes | None = None, max_length: int = 4096):
        super().__init__()
        self.sizes = sizes or Sizes()
        self.model = nn.ModuleDict({"decoder": Decoder(self.sizes)})
        self.dtype = torch.float32
        for kind in ("sliding", "full"):
            for part, table in zip(
                ("cos", "sin"), rope_table(self.sizes, kind == "full", max_length), strict=True
            ):
                self.register_buffer(f"{kind}_{part}", table, persistent=False)

    @property
    def decoder(self) -> Decoder:
        return self.model["decoder"]

    def _kind(self, layer: int) -> str:
        return "full" if layer in self.sizes.full else "sliding"

    def _rope(self, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """positions [B or 1, S] -> per kind cos, sin [B or 1, S, 1, D]."""
        return {
            kind: tuple(
                getattr(self, f"{kind}_{part}")[positions][:, :, None].to(self.dtype)
                for part in ("cos", "sin")
            )
            for kind in ("sliding", "full")
        }

    def _embed(self, ids: Tensor) -> Tensor:
        # a product, not a lookup: its gradient is one too, free of sorting and of atomics
        table = self.decoder.embed_tokens.weight.to(self.dtype)
        one_hot = ids[..., None] == torch.arange(len(table), device=ids.device)
        return one_hot.to(self.dtype) @ table * self.sizes.hidden**0.5

    def _bias(self, allowed: Tensor) -> Tensor:
        bias = torch.zeros(allowed.shape, dtype=self.dtype, device=allowed.device)
        return bias.masked_fill_(~allowed, float("-inf"))

    def encode(self, context: Tensor) -> tuple[list, Tensor]:
        """context [B, L] -> per layer (k, v) [B, G, L, D], balance loss []."""
        L = context.shape[1]
        at = torch.arange(L, device=context.device)
        rope, bias = self._rope(at[None]), {"full": None, "sliding": None}
        if self.sizes.window < L:
            behind = at[:, None] - at
            near = (behind >= 0) & (behind < self.sizes.window)
            bias["sliding"] = self._bias(near)[None, None]
        return self._through(self._embed(context), rope, bias)

    def _through(self, x: Tensor, rope: dict, bias: dict):
        """The encoder's layers over embedded rows: keys and values by layer, and the balance."""
        cache, balance = [], 0.0
        for i, layer in enumerate(self.decoder.layers):
            kind = self._kind(i)
            x, own, extra = layer(x, rope[kind], None, bias[kind])
            cache.append(own)
            balance = balance + extra
        return cache, balance

    def forward(self, canvas: Tensor, lengths: Tensor, cache: list, belief: Tensor | None):
        """One decoder pass.

        canvas [B, C] ids, lengths [B] of the contexts, cache from encode(), belief [B, C, V]
        the last step's logits divided by their temperature -> logits [B, C, V] f32, balance [].
        """
        (B, C), L, device = canvas.shape, cache[0][0].shape[2], canvas.device
        x = self._embed(canvas)
        soft = torch.zeros_like(x)
        if belief is not None:
            soft = belief.float().softmax(-1).to(x.dtype) @ self.decoder.embed_tokens.weight.to(
                x.dtype
            )
            soft = soft * self.sizes.hidden**0.5
        x = self.decoder.self_conditioning(x, soft)
        rope = self._rope(lengths[:, None] + torch.arange(C, device=device))
        at = torch.arange(L + C, device=device)
        seen = (at < lengths[:, None]) | (at >= L)
        near = seen & ((at > (lengths - self.sizes.window)[:, None]) | (at >= L))
        bias = {
            kind: self._bias(keys)[:, None, None].expand(B, 1, C, L + C).contiguous()
            for kind, keys in (("full", seen), ("sliding", near))
        }
        balance = 0.0
        for i, layer in enumerate(self.decoder.layers):
            kind = self._kind(i)
            x, _, extra = layer(x, rope[kind], cache[i], bias[kind])
            balance = balance + extra
        return self.logits(self.decoder.norm(x)), balance

    def logits(self, x: Tensor) -> Tensor:
        scores = F.linear(x, self.decoder.embed_tokens.weight.to(x.dtype)).float()
        return torch.tanh(scores / self.sizes.softcap) * self.sizes.softcap
