"""A Show-o of a few thousand weights, written to disk in the released layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from op_showo.config import ShowoConfig, decoder_config, tokenizer_config
from op_showo.magvit import Magvit
from op_showo.model import Showo

PHI = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
}
HALF = {"ch": 8, "ch_mult": [1, 1, 1, 2, 2], "num_res_blocks": [1, 1, 1, 1, 1]}
VQ = {"codebook_bits": 6, "group_norm_groups": 4, "encoder": HALF, "decoder": HALF}
END = "<|endoftext|>"


def released_config(clip: bool = False) -> dict[str, Any]:
    """What stands in config.json."""
    return {
        "w_clip_vit": clip,
        "vocab_size": 257 + 10 + 64 + 1,
        "llm_vocab_size": 257,
        "codebook_size": 64,
        "num_vq_tokens": 16,
        "num_new_special_tokens": 10,
        "mask_token_id": 257 + 10 + 64,
        "max_seq_length": 64,
    }


def write_tiny(folder: Path, *, clip: bool = False, kind: str = "safetensors") -> Path:
    """Write the checkpoint; ``kind`` is safetensors, bin or sharded."""
    folder.mkdir(parents=True)
    about = released_config(clip)
    config = ShowoConfig.from_released(
        about, llm=decoder_config(PHI), vq=tokenizer_config(VQ), clip_width=12
    )
    (folder / "config.json").write_text(json.dumps(about))
    write_tensors(random_weights(Showo(config), 1), folder, kind)
    vq = folder / "magvitv2"
    vq.mkdir()
    (vq / "config.json").write_text(json.dumps(VQ))
    torch.save(random_weights(Magvit(tokenizer_config(VQ)), 2), vq / "pytorch_model.bin")
    phi = folder / "phi-1_5"
    phi.mkdir()
    (phi / "config.json").write_text(json.dumps(PHI))
    tokenizer().save(str(phi / "tokenizer.json"))
    if clip:
        write_clip(folder / "clip-vit-large-patch14-336")
    return folder


def write_clip(folder: Path) -> None:
    """A vision tower of 12 channels and 4 patches."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder.mkdir()
    sizes = {
        "hidden_size": 12,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes))
    (folder / "config.json").write_text(json.dumps({"vision_config": sizes}))
    tensors = {name.removeprefix("vision_model."): it for name, it in tower.state_dict().items()}
    whole = {f"vision_model.{name}": it.contiguous() for name, it in tensors.items()}
    save_file({**whole, "logit_scale": torch.zeros(())}, folder / "model.safetensors")


def write_tensors(tensors: dict[str, Tensor], folder: Path, kind: str) -> None:
    """One file, or two with an index."""
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    if kind == "safetensors":
        save_file(tensors, folder / "pytorch_model.safetensors")
        return
    names = sorted(tensors)
    halves = (names[::2], names[1::2])
    weight_map = {}
    for number, half in enumerate(halves):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / file)
        weight_map |= dict.fromkeys(half, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def random_weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Strong enough to tell prompts apart; norms stay near one, buffers as they are."""
    generator = torch.Generator().manual_seed(seed)
    trained = {name for name, _ in module.named_parameters()}
    tensors = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name not in trained:
            tensors[name] = value.clone()
        elif "norm" in name:
            tensors[name] = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        elif "embed_tokens" in name:
            tensors[name] = noise
        else:
            fan = value[0].numel() if value.ndim > 1 else 100
            tensors[name] = 1.5 * noise / fan**0.5
    return tensors


def tokenizer() -> Tokenizer:
    """Bytes, and phi's end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={it: n for n, it in enumerate(alphabet)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens([END])
    return words


def write_unictokens(folder: Path, *, rows: int, epoch: int = 15) -> Path:
    """What UniCTokens saves of a concept, as wide as the tiny model."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = torch.Generator().manual_seed(epoch)
    for part, shape in (
        ("embed", (rows, PHI["hidden_size"])),
        ("lm_head_weight", (rows, PHI["hidden_size"])),
        ("lm_head_bias", (rows,)),
    ):
        torch.save(torch.randn(shape, generator=chance), folder / f"epoch_{epoch}_{part}.pt")
    return folder
