"""What `op backends show janus` says of memory follows from the released models' shapes."""

from typing import Any

import pytest
import torch
from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig, LlamaModel

from omnipersona_cli.family.footprint import gated_layers
from op_janus import INFO
from op_janus.loading import painting_gb

SHAPES = {"1B": (2048, 5632, 24, 16), "7B": (4096, 11008, 30, 32)}


def released(shape: str) -> JanusForConditionalGeneration:
    """A model of the released shape, without memory for its numbers."""
    width, inner, layers, heads = SHAPES[shape]
    made: Any = JanusConfig(
        tie_word_embeddings=False,
        text_config={
            "model_type": "llama", "vocab_size": 102_400, "hidden_size": width,
            "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": heads,
        },
        vision_config={"projection_dim": width},
        vq_config={"projection_dim": width, "image_token_embed_dim": width},
    )  # fmt: skip
    with torch.device("meta"):
        return JanusForConditionalGeneration(made)


@pytest.mark.parametrize(("shape", "billions"), [("1B", 2.077), ("7B", 7.408)])
def test_the_shapes_are_the_released_ones(shape: str, billions: float) -> None:
    found = sum(it.numel() for it in released(shape).parameters()) / 1e9
    assert found == pytest.approx(billions, abs=0.001)


def test_memory_is_that_of_the_shapes() -> None:
    small, large = released("1B"), released("7B")
    assert INFO.memory_gb == painting_gb(small, native=False)
    assert INFO.memory_by_model == {
        "deepseek-community/Janus-Pro-7B": painting_gb(large, native=False),
        "FreedomIntelligence/Janus-4o-7B": painting_gb(large, native=True),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_backward_pass_keeps_what_is_counted(dtype: torch.dtype) -> None:
    width, layers, positions = 256, 4, 64
    shape = gated_layers(count=layers, width=width, inner=704, queries=width, keys=width)
    config = LlamaConfig(
        vocab_size=100, hidden_size=width, intermediate_size=704, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip
    model = LlamaModel(config).to(dtype).requires_grad_(False)
    own = {it.untyped_storage().data_ptr() for it in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value
        return value

    rows = torch.randn(1, positions, width, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(inputs_embeds=rows, use_cache=False)
    whole = sum(it.untyped_storage().nbytes() for it in kept.values())
    counted = shape.kept_bytes(dtype.itemsize) * layers * positions
    assert whole == pytest.approx(counted, rel=0.08)
