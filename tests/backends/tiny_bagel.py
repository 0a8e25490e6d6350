"""A tiny random BAGEL, written to disk in the layout of the released checkpoint."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from op_bagel.config import BagelConfig, DecoderConfig, SpecialTokens, ViTConfig
from op_bagel.model import Bagel, initialise
from op_bagel.vae import AutoEncoder, VAEConfig

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = len(LETTERS) + len(SPECIALS)
ROWS = 272
"""Rows of the embedding table: more than the tokenizer has words, as in the release."""

VAE = VAEConfig(ch=32, ch_mult=(1, 2, 1), z_channels=3, num_res_blocks=1)
CONFIG = BagelConfig(
    llm=DecoderConfig(
        vocab_size=ROWS,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
    ),
    vit=ViTConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
    ),
    vae=VAE,
    special_tokens=SpecialTokens(
        bos_token_id=len(LETTERS) + 1,
        eos_token_id=len(LETTERS) + 2,
        start_of_image=len(LETTERS) + 3,
        end_of_image=len(LETTERS) + 4,
    ),
    max_latent_size=8,
)


def tokenizer() -> Tokenizer:
    """Bytes, then the special tokens."""
    words = [*LETTERS, *SPECIALS]
    vocab = {word: number for number, word in enumerate(words)}
    whole = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens([AddedToken(word, special=True) for word in SPECIALS])
    return whole


def write_tiny(
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    weights: str = "ema.safetensors",
    config: BagelConfig = CONFIG,
) -> Path:
    """Write both files, the two configurations that are right, and the one that is no JSON."""
    folder.mkdir(parents=True)
    bagel = Bagel(config)
    initialise(bagel, 0)
    with torch.no_grad():  # a model whose velocity is zero would paint nothing
        generator = torch.Generator().manual_seed(1)
        bagel.llm2vae.weight.copy_(torch.randn(bagel.llm2vae.weight.shape, generator=generator))
    torch.manual_seed(2)
    vae = AutoEncoder(config.vae)
    save_file(
        {name: value.to(dtype).contiguous() for name, value in bagel.state_dict().items()},
        folder / weights,
    )
    save_file(dict(vae.state_dict()), folder / "ae.safetensors")
    llm, vit = config.llm, config.vit
    decoder = {  # no head_dim, no qk_norm: as released
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": llm.hidden_size,
        "intermediate_size": llm.intermediate_size,
        "num_hidden_layers": llm.num_hidden_layers,
        "num_attention_heads": llm.num_attention_heads,
        "num_key_value_heads": llm.num_key_value_heads,
        "rms_norm_eps": llm.rms_norm_eps,
        "rope_theta": llm.rope_theta,
        "tie_word_embeddings": True,
        "vocab_size": llm.vocab_size,
    }
    tower = {
        "hidden_size": vit.hidden_size,
        "image_size": vit.image_size,
        "intermediate_size": vit.intermediate_size,
        "num_attention_heads": vit.num_attention_heads,
        "num_hidden_layers": vit.num_hidden_layers + 1,
        "patch_size": vit.patch_size,
    }
    (folder / "llm_config.json").write_text(json.dumps(decoder))
    (folder / "vit_config.json").write_text(json.dumps(tower))
    (folder / "config.json").write_text('{"model_type": "bagel",}')
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder
