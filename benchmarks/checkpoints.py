"""Random checkpoints in the released layouts, at any size, written without holding them in memory.

Numbers are a block of small random ones, repeated: what a model says does not matter here, how
large its tensors are does. ``scale`` shrinks width, inner width and layers of the language model;
vision towers, image tokenizers, vocabularies and the codes of a picture stay as released.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

PIECE = 1 << 26
"""Bytes that are written at a time."""
DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def write(backend: str, folder: Path, *, scale: float) -> Path:
    """A checkpoint of ``backend`` in ``folder``, in bfloat16; the folder to open."""
    folder.mkdir(parents=True)
    return WRITERS[backend](folder, scale)


def scaled(number: int, scale: float, multiple: int) -> int:
    """``number`` times ``scale``, rounded to a multiple, at least one of it."""
    return max(multiple, round(number * scale / multiple) * multiple)


def write_random(path: Path, shapes: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """A safetensors file of small random numbers, a piece at a time: it is larger than memory."""
    header, end = {}, 0
    for name, value in shapes.items():
        kind = dtype if value.is_floating_point() else value.dtype
        size = value.numel() * kind.itemsize
        told = DTYPES.get(kind, "I64")
        offsets = [end, end + size]
        header[name] = {"dtype": told, "shape": list(value.shape), "data_offsets": offsets}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    drawn = torch.randn(PIECE // dtype.itemsize, generator=torch.Generator().manual_seed(0))
    numbers = (drawn * 0.02).to(dtype).view(torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, PIECE):
            file.write(numbers[: min(PIECE, end - start)])


def bytes_and(*specials: str, known: int = 0) -> Tokenizer:
    """A tokenizer of bytes and these tokens, and of words that nothing is read as where ``known``
    are more."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *specials]
    words += [f"filler {number}" for number in range(len(words), known)]
    whole = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens([AddedToken(it, special=True, normalized=False) for it in specials])
    return whole


def write_bagel(folder: Path, scale: float) -> Path:
    """BAGEL-7B-MoT: 28 layers of 3584."""
    from op_bagel.config import BagelConfig, DecoderConfig
    from op_bagel.model import Bagel
    from op_bagel.vae import AutoEncoder

    groups = max(1, round(4 * scale))
    llm = DecoderConfig(
        hidden_size=896 * groups,
        intermediate_size=scaled(18944, scale, 64),
        num_hidden_layers=max(1, round(28 * scale)),
        num_attention_heads=7 * groups,
        num_key_value_heads=groups,
    )
    config = replace(BagelConfig(), llm=llm)
    with torch.device("meta"):
        bagel, vae = Bagel(config), AutoEncoder(config.vae)
    write_random(folder / "ema.safetensors", bagel.state_dict(), torch.bfloat16)
    write_random(folder / "ae.safetensors", vae.state_dict(), torch.float32)
    heads = {"num_attention_heads": 7 * groups, "num_key_value_heads": groups, "rope_theta": 1e6}
    (folder / "llm_config.json").write_text(json.dumps(heads))
    tower = {"num_attention_heads": 16, "patch_size": 14}
    (folder / "vit_config.json").write_text(json.dumps(tower))
    ends = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
    bytes_and(*ends).save(str(folder / "tokenizer.json"))
    return folder


def write_lance(folder: Path, scale: float) -> Path:
    """Lance-3B: 36 layers of 2048, in float32; the autoencoder is a pickle."""
    from op_bagel.model import Bagel
    from op_lance.config import LanceConfig
    from op_lance.tower import build_tower
    from op_lance.vae import AutoEncoder

    whole = LanceConfig()
    groups = max(1, round(2 * scale))
    width = 1024 * groups
    llm = replace(
        whole.llm,
        hidden_size=width,
        intermediate_size=scaled(11008, scale, 64),
        num_hidden_layers=max(1, round(36 * scale)),
        num_attention_heads=8 * groups,
        num_key_value_heads=groups,
    )
    config = replace(whole, llm=llm, tower=replace(whole.tower, out_hidden_size=width))
    with torch.device("meta"):
        mixture, tower = Bagel(config.mixture), build_tower(config.tower)
    inner, sight = folder / "Lance_3B", folder / "Qwen2.5-VL-ViT"
    inner.mkdir()
    sight.mkdir()
    write_random(inner / "model.safetensors", mixture.state_dict(), torch.float32)
    write_random(sight / "vit.safetensors", tower.state_dict(), torch.bfloat16)
    (inner / "llm_config.json").write_text("{}")
    (sight / "config.json").write_text("{}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(for_videos(AutoEncoder(config.vae)), folder / "Wan2.2_VAE.pth")
    ends = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
    words = bytes_and(*ends, known=llm.tokenizer_length)
    words.save(str(inner / "tokenizer.json"))
    return folder


def for_videos(autoencoder: nn.Module) -> dict[str, Tensor]:
    """Wan2.2's autoencoder as released, from what single pictures use of it: kernels over three
    frames, and two convolutions over time on either side."""
    found = {}
    for name, value in autoencoder.state_dict().items():
        in_space = any(part in name for part in (".resample.", ".middle.1."))
        folded = value.ndim == 4 and not in_space
        frames = 3 if value.shape[-1] == 3 else 1
        found[name] = value[:, :, None].repeat(1, 1, frames, 1, 1) if folded else value
        if ".resample." in name and value.ndim == 4:
            level = int(name.split(".")[2])
            if level in ((1, 2) if name.startswith("encoder") else (0, 1)):
                wide = len(value) * (1 if name.startswith("encoder") else 2)
                time = name.replace("resample.1", "time_conv")
                found[time] = torch.zeros(wide, len(value), 3, 1, 1)
                found[time.replace("weight", "bias")] = torch.zeros(wide)
        if name.endswith(".gamma"):
            found[name] = value if ".middle.1." in name else value[..., None]
    return found


def write_janus(folder: Path, scale: float) -> Path:
    """Janus-Pro-1B: 24 layers of 2048."""
    from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

    heads = max(1, round(16 * scale))
    width = 128 * heads
    config: Any = JanusConfig(
        tie_word_embeddings=False,
        text_config={
            "model_type": "llama", "vocab_size": 102_400, "hidden_size": width,
            "intermediate_size": scaled(5632, scale, 64),
            "num_hidden_layers": max(1, round(24 * scale)), "num_attention_heads": heads,
            "num_key_value_heads": heads, "max_position_embeddings": 16384,
        },
        vision_config={"projection_dim": width},
        vq_config={"projection_dim": width, "image_token_embed_dim": width},
    )  # fmt: skip
    with torch.device("meta"):
        janus = JanusForConditionalGeneration(config)
    write_random(folder / "model.safetensors", janus.state_dict(), torch.bfloat16)
    config.save_pretrained(folder)
    ends = ("<bos>", "<eos>", "<pad>", "<image_placeholder>")
    marks = ("<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>")
    PreTrainedTokenizerFast(
        tokenizer_object=bytes_and(*ends, *marks),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
    ).save_pretrained(folder)
    return folder


def write_showo(folder: Path, scale: float) -> Path:
    """show-o-512x512: 24 layers of 2048, with the image tokenizer and phi's tokenizer beside."""
    from op_showo.config import ShowoConfig, TokenizerConfig, decoder_config
    from op_showo.magvit import Magvit
    from op_showo.model import Showo

    heads = max(1, round(32 * scale))
    phi = {
        "hidden_size": 64 * heads, "intermediate_size": scaled(8192, scale, 64),
        "num_hidden_layers": max(1, round(24 * scale)), "num_attention_heads": heads,
    }  # fmt: skip
    about = {
        "w_clip_vit": False, "vocab_size": 58498, "llm_vocab_size": 50295, "codebook_size": 8192,
        "num_vq_tokens": 1024, "max_seq_length": 128,
    }  # fmt: skip
    config = ShowoConfig.from_released(about, llm=decoder_config(phi))
    with torch.device("meta"):
        net = Showo(config)
    whole, picture, words = folder / "show-o", folder / "magvitv2", folder / "phi-1_5"
    for place in (whole, picture, words):
        place.mkdir()
    write_random(whole / "model.safetensors", net.state_dict(), torch.bfloat16)
    # its codes are counted with numbers that are no weights
    save_file(Magvit(TokenizerConfig()).state_dict(), picture / "model.safetensors")
    (whole / "config.json").write_text(json.dumps(about))
    (words / "config.json").write_text(json.dumps(phi))
    fillers = (f"<filler{number}>" for number in range(50295 - 256 - 1))
    bytes_and("<|endoftext|>", *fillers).save(str(words / "tokenizer.json"))
    return whole


def write_emu3(folder: Path, scale: float) -> Path:
    """Emu3-Gen: 32 layers of 4096; it answers and paints, as its name says neither."""
    from transformers import (
        Emu3Config,
        Emu3ForConditionalGeneration,
        Emu3ImageProcessor,
        Emu3TextConfig,
        PreTrainedTokenizerFast,
    )

    groups = max(1, round(8 * scale))
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    specials += [f"<|extra_{number}|>" for number in range(1, 205)]
    specials += ["<|image token|>", "<|image start|>", "<|image end|>"]
    specials += [f"<|visual token {number:06d}|>" for number in range(32768)]
    fillers = [f"<filler{number}>" for number in range(184_622 - 256 - len(specials))]
    words = bytes_and(*fillers, *specials)
    text = Emu3TextConfig(
        vocab_size=184_622, hidden_size=512 * groups, num_attention_heads=4 * groups,
        num_key_value_heads=groups, intermediate_size=scaled(14336, scale, 64),
        num_hidden_layers=max(1, round(32 * scale)), max_position_embeddings=9216,
    )  # fmt: skip
    config = Emu3Config(text_config=text, vocabulary_map=words.get_vocab())
    with torch.device("meta"):
        emu3 = Emu3ForConditionalGeneration(config)
    write_random(folder / "model.safetensors", emu3.state_dict(), torch.bfloat16)
    config.save_pretrained(folder)
    pixels = {"min_pixels": 512 * 512, "max_pixels": 720 * 720, "spatial_factor": 8}
    ends = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    Emu3ImageProcessor(**pixels, **ends).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<|extra_203|>",
        eos_token="<|extra_204|>",
        pad_token="<|endoftext|>",
    ).save_pretrained(folder)
    return folder


WRITERS: Mapping[str, Callable[[Path, float], Path]] = {
    "bagel": write_bagel,
    "emu3": write_emu3,
    "lance": write_lance,
    "janus": write_janus,
    "showo": write_showo,
}
"""Every backend whose weights are no part of its package."""
