"""The sizes of nano, and the concept encoder, whose output `op learn` starts from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from op_bagel.config import BagelConfig, DecoderConfig, SpecialTokens, ViTConfig
from op_bagel.vae import VAEConfig
from op_nano.tokenizer import VOCABULARY

SIZE = 64
SLOTS = 16
REFERENCES = 4

VAE = VAEConfig(
    ch=16,
    ch_mult=(1, 2, 4, 4),
    num_res_blocks=1,
    z_channels=12,
    groupnorm_groups=8,
    scale_factor=1.0,
    shift_factor=0.0,
)
HEAD = 32
"""Width of an attention head."""


def decoder(width: int, layers: int) -> DecoderConfig:
    """A decoder ``width`` wide: heads of `HEAD`, two of them for keys and values."""
    return DecoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=2,
        head_dim=HEAD,
        rope_theta=1e4,
        tie_word_embeddings=True,
    )


CONFIG = BagelConfig(
    llm=decoder(128, 6),
    vit=ViTConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=16,
    ),
    vae=VAE,
    special_tokens=SpecialTokens(bos_token_id=0, eos_token_id=1, start_of_image=2, end_of_image=3),
    max_latent_size=SIZE // 16,
    timestep_shift_train=1.0,
)


class ConceptEncoder(nn.Module):
    """Reference pictures -> identifier, 16 und and 16 gen slots, by attention pooling.

    Pretrained together with the backbone, so that the frozen model can use concept tokens in its
    context; in `op learn` it only gives them their start. Input: ViT features
    [C, R, n, d_vit] and latent tokens [C, R, n, d_latent] of R pictures of each of C concepts;
    output [C, 1 + 2 * SLOTS, D].
    """

    def __init__(self, config: BagelConfig = CONFIG, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        width = config.llm.hidden_size
        self.from_vit = nn.Linear(config.vit.hidden_size, width)
        self.from_latent = nn.Linear(config.latent_width, width)
        cells = (SIZE // config.stride) ** 2
        self.place = nn.Parameter(torch.randn(2, cells, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(1 + 2 * SLOTS, width) * 0.3)
        self.layers = nn.ModuleList(_Pool(width, heads) for _ in range(layers))
        self.out = nn.Linear(width, width)

    def forward(self, vit: Tensor, latents: Tensor) -> Tensor:
        features = torch.cat(
            (self.from_vit(vit) + self.place[0], self.from_latent(latents) + self.place[1]), dim=2
        ).flatten(1, 2)
        slots = self.queries.expand(len(features), -1, -1)
        for layer in self.layers:
            slots = layer(slots, features)
        out: Tensor = self.out(nn.functional.layer_norm(slots, slots.shape[-1:]))
        return out


class _Pool(nn.Module):
    """Cross-attention to the pictures, self-attention among the queries, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.look = nn.MultiheadAttention(width, heads, batch_first=True)
        self.share = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.think = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, slots: Tensor, features: Tensor) -> Tensor:
        features = self.norms[3](features)
        slots = slots + self.look(self.norms[0](slots), features, features, need_weights=False)[0]
        own = self.norms[1](slots)
        slots = slots + self.share(own, own, own, need_weights=False)[0]
        out: Tensor = slots + self.think(self.norms[2](slots))
        return out
