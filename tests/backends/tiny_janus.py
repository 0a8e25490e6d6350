"""A tiny random Janus, written to disk in the layout of the released checkpoints."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
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


def write(
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    tower: int = 16,
    heads: int = 2,
) -> Path:
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
            "hidden_size": tower, "num_hidden_layers": 1, "num_attention_heads": heads,
            "image_size": 64, "patch_size": 16, "mlp_ratio": 2.0, "projection_dim": hidden,
            "depth": 2, "num_image_tokens": 16,
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


def write_original(folder: Path, *, hidden: int = 32, layers: int = 2) -> Path:
    """The same model in the authors' layout, as Janus-4o is released: other names, SigLIP's
    queries, keys and values in one tensor, a pooling head and a counter that Janus does not use."""
    write(folder, hidden=hidden, layers=layers, tower=32, heads=16)
    path = folder / "model.safetensors"
    tensors = {original_name(key): value for key, value in load_file(path).items()}
    for name in [it for it in tensors if ".attn.q." in it and "vision_tower" in it]:
        parts = [tensors.pop(name.replace(".attn.q.", f".attn.{it}.")) for it in "qkv"]
        tensors[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    spot = "vision_model.vision_tower.pos_embed"
    tensors[spot] = tensors[spot][None]
    tensors["vision_model.vision_tower.attn_pool.latent"] = torch.zeros(1, 1, 32)
    tensors["gen_vision_model.quantize.codebook_used"] = torch.zeros(8)
    save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    language = {
        key: text[key]
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    } | {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024}
    aligner = {"cls": "MlpProjector", "params": {"depth": 2, "projector_type": "mlp_gelu"}}
    original = {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "aligner_config": aligner,
        "gen_aligner_config": aligner,
        "gen_head_config": {"cls": "vision_head", "params": {"image_token_size": 64}},
        "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 64, "n_embed": 8}},
        "language_config": language | {"model_type": "llama", "torch_dtype": "bfloat16"},
        "vision_config": {
            "cls": "CLIPVisionTower",
            "params": {
                "image_size": 64, "model_name": "siglip_large_patch16_384",
                "select_feature": "same", "select_layer": -1,
            },
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(original))
    return folder


def original_name(key: str) -> str:
    """What the authors call one of transformers' tensors; q, k and v of SigLIP still apart."""
    tower = "vision_model.vision_tower"
    for new, old in (
        ("model.vision_model.embeddings.patch_embedding.", f"{tower}.patch_embed.proj."),
        ("model.vision_model.embeddings.position_embedding.weight", f"{tower}.pos_embed"),
        ("model.vision_model.post_layernorm.", f"{tower}.norm."),
        ("model.vision_model.encoder.layers.", f"{tower}.blocks."),
        ("model.vqmodel.", "gen_vision_model."),
        ("model.generation_embeddings.", "gen_embed."),
        ("model.generation_aligner.fc1.", "gen_aligner.layers.0."),
        ("model.generation_aligner.hidden_layers.0.", "gen_aligner.layers.2."),
        ("model.generation_head.proj_out.", "gen_head.output_mlp_projector."),
        ("model.generation_head.", "gen_head."),
        ("model.aligner.fc1.", "aligner.layers.0."),
        ("model.aligner.hidden_layers.0.", "aligner.layers.2."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ):  # fmt: skip
        if key.startswith(new):
            key = old + key.removeprefix(new)
            break
    if key.startswith("vision_model"):
        for it in "qkv":
            key = key.replace(f".self_attn.{it}_proj.", f".attn.{it}.")
        key = key.replace(".self_attn.projection_layer.", ".attn.proj.")
        return key.replace(".layer_norm", ".norm")
    if key.startswith("gen_vision_model"):
        for new, old in (
            (".encoder.down.", ".encoder.conv_blocks."), (".decoder.up.", ".decoder.conv_blocks."),
            (".block.", ".res."), (".mid.block_1.", ".mid.0."), (".mid.attn_1.", ".mid.1."),
            (".mid.block_2.", ".mid.2."),
        ):  # fmt: skip
            key = key.replace(new, old)
    return key
