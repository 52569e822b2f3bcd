"""A llama in plain PyTorch: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Rotary positions turn the two halves of a head against each other; llama.cpp turns neighbouring
pairs, so the exporter permutes the rows of q and k (see `export.permuted`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo_model.settings import Settings

QUERY_BLOCK = 128


def rotary_table(settings: Settings) -> tuple[Tensor, Tensor]:
    """Cosines and sines of shape (context, head_dim / 2)."""
    half = settings.n_head_dim // 2
    frequency = settings.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(settings.context, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn `x` (batch, heads, time, head_dim) by its positions; computed in float32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Grouped-query attention: `q` (batch, n_head, time, head_dim), `k`, `v` with n_head_kv heads.

    Plain matrix products over blocks of queries, each with the keys up to its end. On the CPU in
    bf16 this was five times as fast as `scaled_dot_product_attention`, forward and backward at
    512 tokens, and the wide matrices of a whole group of query heads need no copy of the keys.
    Query head h reads key-value head h // group, as in llama.cpp.
    """
    batch, n_head, time, size = q.shape
    heads = batch * k.shape[1]
    group = n_head // k.shape[1]
    k, v = k.reshape(heads, time, size), v.reshape(heads, time, size)
    mixed = []
    for start in range(0, time, QUERY_BLOCK):
        end = min(time, start + QUERY_BLOCK)
        rows = q[:, :, start:end].reshape(heads, group * (end - start), size)
        scores = torch.bmm(rows, k[:, :end].transpose(1, 2)).float() * size**-0.5
        future = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
        scores = scores.view(heads, group, end - start, end).masked_fill(future, -torch.inf)
        share = scores.softmax(-1).to(v.dtype).view(heads, group * (end - start), end)
        mixed.append(torch.bmm(share, v[:, :end]).view(batch, n_head, end - start, size))
    return torch.cat(mixed, dim=2)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Layer(nn.Module):
    """One pre-norm transformer layer on a residual stream of shape (batch, time, n_embd)."""

    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.n_head, self.n_head_kv, self.head_dim = s.n_head, s.n_head_kv, s.n_head_dim
        wide, narrow = s.n_head * s.n_head_dim, s.n_head_kv * s.n_head_dim
        self.attn_norm = RMSNorm(s.n_embd, s.rms_eps)
        self.attn_q = nn.Linear(s.n_embd, wide, bias=False)
        self.attn_k = nn.Linear(s.n_embd, narrow, bias=False)
        self.attn_v = nn.Linear(s.n_embd, narrow, bias=False)
        self.attn_output = nn.Linear(wide, s.n_embd, bias=False)
        self.ffn_norm = RMSNorm(s.n_embd, s.rms_eps)
        self.ffn_gate = nn.Linear(s.n_embd, s.n_ff, bias=False)
        self.ffn_up = nn.Linear(s.n_embd, s.n_ff, bias=False)
        self.ffn_down = nn.Linear(s.n_ff, s.n_embd, bias=False)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q = self.attn_q(x).view(batch, time, self.n_head, self.head_dim).transpose(1, 2)
        k = self.attn_k(x).view(batch, time, self.n_head_kv, self.head_dim).transpose(1, 2)
        v = self.attn_v(x).view(batch, time, self.n_head_kv, self.head_dim).transpose(1, 2)
        mixed = causal_attention(rotated(q, cos, sin), rotated(k, cos, sin), v)
        return self.attn_output(mixed.transpose(1, 2).reshape(batch, time, -1))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attn_norm(x), cos, sin)
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Llama(nn.Module):
    """Token ids (batch, time) to logits (batch, time, n_vocab); output and embedding are tied.

    Parameter names are those of the GGUF tensors, with `blk.<l>` for layer l.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(settings.n_vocab, settings.n_embd)
        self.blk = nn.ModuleList(Layer(settings) for _ in range(settings.n_layer))
        self.output_norm = RMSNorm(settings.n_embd, settings.rms_eps)
        cos, sin = rotary_table(settings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise(settings)

    def _initialise(self, settings: Settings) -> None:
        """Normal weights; what writes to the residual is scaled by 1/sqrt(2 n_layer), as GPT-2."""
        generator = torch.Generator().manual_seed(settings.seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                writes = name.endswith(("attn_output.weight", "ffn_down.weight"))
                std = settings.init_std * ((2 * settings.n_layer) ** -0.5 if writes else 1.0)
                nn.init.normal_(weight, std=std, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        cos, sin = self.cos[:time], self.sin[:time]
        x = self.token_embd(tokens)
        for layer in self.blk:
            x = layer(x, cos, sin)
        return F.linear(self.output_norm(x), self.token_embd.weight)
