"""The picture encoder: SigLIP shapes, patches of several pictures packed into one tensor.

Source: BAGEL release, NaViT-style SigLIP; penultimate features, no pooling head, no rotary
positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from op_bagel.config import ViTConfig


def activate(x: Tensor, name: str) -> Tensor:
    if name == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_pytorch_tanh" else "none")


class TwoLinears(nn.Module):
    """fc1, activation, fc2, biased: the ViT's MLP and the connector."""

    def __init__(self, width_in: int, width: int, width_out: int, act: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_in, width)
        self.fc2 = nn.Linear(width, width_out)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(activate(self.fc1(x), self.act))
        return out


class ViTAttention(nn.Module):
    """Full attention inside each picture: [I, n, D] -> the same."""

    def __init__(self, c: ViTConfig) -> None:
        super().__init__()
        self.heads = c.num_attention_heads
        self.k_proj = nn.Linear(c.hidden_size, c.hidden_size)
        self.v_proj = nn.Linear(c.hidden_size, c.hidden_size)
        self.q_proj = nn.Linear(c.hidden_size, c.hidden_size)
        self.out_proj = nn.Linear(c.hidden_size, c.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class ViTLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, c: ViTConfig) -> None:
        super().__init__()
        self.self_attn = ViTAttention(c)
        self.layer_norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.mlp = TwoLinears(c.hidden_size, c.intermediate_size, c.hidden_size, c.hidden_act)
        self.layer_norm2 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class ViTEmbeddings(nn.Module):
    """A linear on each patch, plus its learned absolute position."""

    def __init__(self, c: ViTConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(c.patch_width, c.hidden_size)
        self.position_embedding = nn.Embedding(c.side**2, c.hidden_size)

    def forward(self, patches: Tensor, ids: Tensor) -> Tensor:
        out: Tensor = self.patch_embedding(patches) + self.position_embedding(ids)
        return out


class ViTEncoder(nn.Module):
    """The layers, under their released name."""

    def __init__(self, c: ViTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ViTLayer(c) for _ in range(c.num_hidden_layers))


class VisionTransformer(nn.Module):
    """Patches of several pictures -> one row each; no picture attends to another."""

    def __init__(self, c: ViTConfig) -> None:
        super().__init__()
        self.embeddings = ViTEmbeddings(c)
        self.encoder = ViTEncoder(c)
        self.post_layernorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def forward(self, patches: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """[n, patch width], position ids [n], patches per picture -> [n, hidden]."""
        x: Tensor = self.embeddings(patches, ids)
        longest = max(counts)
        real = torch.arange(longest, device=x.device) < torch.tensor(
            list(counts), device=x.device
        ).unsqueeze(1)
        even = min(counts) == longest
        if even:
            x = x.view(len(counts), longest, -1)
        else:
            padded = x.new_zeros(len(counts), longest, x.shape[-1])
            x = padded.masked_scatter(real.unsqueeze(-1), x)
        for layer in self.encoder.layers:
            x = layer(x, None if even else real[:, None, None, :])
        x = x.flatten(0, 1) if even else x[real]
        out: Tensor = self.post_layernorm(x)
        return out


class VisionModel(nn.Module):
    """The transformer, under its released name."""

    def __init__(self, c: ViTConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(c)
