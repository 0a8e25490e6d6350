"""A tiny random Janus, written to disk in the layout of the released checkpoints."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessor,
    JanusProcessor,
    PreTrainedTokenizerFast,
)

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"  # noqa: RUF001
IMAGE, BOI, EOI = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"


def tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = Tokenizer(models.BPE(vocab={it: i for i, it in enumerate(letters)}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE, "boi_token": BOI, "eoi_token": EOI},
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|User|>", "<|Assistant|>"]})
    fast.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, fast.bos_token_id)]
    )
    return fast


def write(folder: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2) -> Path:
    """Saves model, tokenizer and processor with `save_pretrained`."""
    words = tokenizer()
    config = JanusConfig(
        tie_word_embeddings=False,
        image_token_id=words.convert_tokens_to_ids(IMAGE),
        text_config={
            "model_type": "llama", "vocab_size": len(words) + 16, "hidden_size": hidden,
            "intermediate_size": 2 * hidden, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024,
            "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
        },
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
            "patch_size": 16, "mlp_ratio": 2.0, "projection_dim": hidden, "depth": 2,
            "num_image_tokens": 16,
        },
        vq_config={
            "embed_dim": 8, "num_embeddings": 64, "latent_channels": 16, "base_channels": 32,
            "channel_multiplier": [1] * 5, "num_res_blocks": 1, "projection_dim": hidden,
            "image_token_embed_dim": hidden, "num_hidden_layers": 2,
        },
    )  # fmt: skip
    torch.manual_seed(seed)
    model = JanusForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 2 and not name.startswith(("model.vision_model", "model.vqmodel")):
                value.normal_(0, 0.3)
            elif value.ndim >= 2:
                value.mul_(3.0)
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.bos_token_id = words.bos_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.guidance_scale = 5
    model.generation_config.generation_kwargs = {"boi_token_id": words.convert_tokens_to_ids(BOI)}
    model.save_pretrained(folder)
    JanusProcessor(
        JanusImageProcessor(
            size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        words,
        chat_template="{{ messages }}",
        num_image_tokens=16,
    ).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
