"""A tiny random Emu3, written to disk in the layout of the released checkpoints; its lessons."""

from pathlib import Path

import torch
from PIL.Image import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    Emu3TextConfig,
    PreTrainedTokenizerFast,
)

from omnipersona_cli.backend import ConceptTokens, Lesson, Opening, Task
from omnipersona_cli.engine.tokens import copy_of, from_named_tensors, named_tensors
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import drawing
from op_emu3 import layout, pictures
from op_emu3.backend import Emu3Backend, open_backend
from op_emu3.loading import LoadedCheckpoint

BOS, EOS, EOL, EOF = "<|extra_203|>", "<|extra_204|>", "<|extra_200|>", "<|extra_201|>"
CODES = 64
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper if message['role'] != 'system' else "
    "'' }}{% if message['role'] != 'system' %}: {% endif %}{% for it in message['content'] %}"
    "{% if it['type'] == 'image' %}<image>{% endif %}{% endfor %}{% for it in message['content'] %}"
    "{% if it['type'] == 'text' %}{{ it['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""What the released template does, in our own words."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, then the family's special tokens, then one token for each visual code."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    specials += [f"<|extra_{number}|>" for number in range(1, 205)]
    specials += ["<|image token|>", "<|image start|>", "<|image end|>"]
    specials += [f"<|visual token {number:06d}|>" for number in range(CODES)]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *specials]
    whole = Tokenizer(models.BPE(vocab={it: index for index, it in enumerate(words)}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens([AddedToken(it, special=True, normalized=False) for it in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token=BOS,
        eos_token=EOS,
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={
            "image_token": "<image>",
            "boi_token": "<|image start|>",
            "eoi_token": "<|image end|>",
            "image_wrapper_token": "<|image token|>",
            "eof_token": EOF,
        },
    )


def write(
    folder: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2, pixels: int = 32 * 32
) -> Path:
    """Saves model, tokenizer and processor with `save_pretrained`; it paints ``pixels`` pixels."""
    words = tokenizer()
    text = Emu3TextConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        initializer_range=0.3,
    )
    sight = {
        "codebook_size": CODES, "embed_dim": 4, "latent_channels": 4, "z_channels": 4,
        "temporal_downsample_factor": 1, "base_channels": 32, "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1, "hidden_size": 32, "attn_resolutions": [],
    }  # fmt: skip
    torch.manual_seed(seed)
    config = Emu3Config(text_config=text, vq_config=sight, vocabulary_map=words.get_vocab())
    model = Emu3ForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.bos_token_id = words.bos_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    Emu3Processor(
        Emu3ImageProcessor(
            min_pixels=pixels,
            max_pixels=4 * pixels,
            spatial_factor=8,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        words,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def opened(folder: Path | str, dtype: str | None = None) -> Emu3Backend:
    backend = open_backend(Opening(model=str(folder), device="cpu", dtype=dtype))
    assert isinstance(backend, Emu3Backend)
    return backend


def photos() -> list[Image]:
    return [drawing("red", seed) for seed in range(4)]


def taught(backend: Emu3Backend, name: str = "bo") -> ConceptTokens:
    return backend.new_tokens(name, understand=4, generate=3, photos=photos(), seed=0)


def with_experts(backend: Emu3Backend) -> ConceptTokens:
    named = named_tensors(copy_of(taught(backend))) | backend.new_experts(seed=0)
    return copy_of(from_named_tensors("bo", named), trainable=True)


def lesson(task: Task, image: Image | None = None, target: Image | None = None) -> Lesson:
    text = {"understand": "is <bo> here?", "generate": "a picture of <bo>", "edit": "add <bo>"}
    return Lesson(
        task=task,
        kind="recognise",
        request=to_turn(text[task]),
        image=image,
        target=target,
        answer="yes",
    )


def codes_of(model: LoadedCheckpoint, image: Image) -> Tensor:
    grid = layout.grid_for(image.size, min(model.source.areas))
    return pictures.encode(model.emu3, pictures.to_tensor(image, grid, model.processor))
