"""A tiny random Lance, written to disk in the layout of the released checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_bagel import LETTERS, ROWS, VOCABULARY, tokenizer
from torch import Tensor

from omnipersona_cli.backend import ConceptTokens, Opening, Prompt
from omnipersona_cli.language.mentions import to_turn
from op_bagel.config import DecoderConfig, SpecialTokens
from op_bagel.model import Bagel, initialise
from op_lance.backend import LanceBackend
from op_lance.config import LanceConfig, TowerConfig
from op_lance.loading import open_backend
from op_lance.tower import build_tower
from op_lance.vae import AutoEncoder, WanConfig

PLAIN: Any = {"size": None, "steps": 1, "guidance": None, "seeds": (0,)}
"""How to paint one picture."""

MANIFEST = Path(__file__).parent.parent / "goldens" / "lance" / "lance-3b-vae.json"

CONFIG = LanceConfig(
    llm=DecoderConfig(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        mrope_section=(2, 3, 3),
        tokenizer_length=VOCABULARY,
    ),
    tower=TowerConfig(
        depth=2,
        hidden_size=16,
        intermediate_size=24,
        num_heads=2,
        window_size=56,
        fullatt_block_indexes=(1,),
        out_hidden_size=32,
    ),
    vae=WanConfig(dim=4, dec_dim=4),
    special_tokens=SpecialTokens(
        bos_token_id=len(LETTERS) + 1,
        eos_token_id=len(LETTERS) + 2,
        start_of_image=len(LETTERS) + 3,
        end_of_image=len(LETTERS) + 4,
    ),
    max_latent_size=8,
)


def write_tiny(folder: Path, *, config: LanceConfig = CONFIG) -> Path:
    """Write two folders and a file, with a configuration that lies as the released one does."""
    (folder / "Lance_3B").mkdir(parents=True)
    (folder / "Qwen2.5-VL-ViT").mkdir()
    mixture = Bagel(config.mixture)
    initialise(mixture, 0)
    with torch.no_grad():  # a model whose velocity is zero would paint nothing
        generator = torch.Generator().manual_seed(1)
        mixture.llm2vae.weight.copy_(torch.randn(mixture.llm2vae.weight.shape, generator=generator))
    torch.manual_seed(2)
    tower, vae = build_tower(config.tower), AutoEncoder(config.vae)
    save_file(dict(mixture.state_dict()), folder / "Lance_3B" / "model.safetensors")
    features = {name: value.bfloat16() for name, value in tower.state_dict().items()}
    save_file(features, folder / "Qwen2.5-VL-ViT" / "vit.safetensors")
    torch.save(released(vae), folder / "Wan2.2_VAE.pth")
    write_configurations(folder, config)
    tokenizer().save(str(folder / "Lance_3B" / "tokenizer.json"))
    return folder


def write_configurations(folder: Path, config: LanceConfig) -> None:
    """A stock one of Qwen2.5-VL, with sizes of another model; the tower's."""
    llm, tower = config.llm, config.tower
    decoder = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_size": 4 * llm.hidden_size,
        "num_attention_heads": 4 * llm.num_attention_heads,
        "rms_norm_eps": llm.rms_norm_eps,
        "rope_theta": llm.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(llm.mrope_section)},
        "tie_word_embeddings": True,
        "vocab_size": 7,
    }
    vision: dict[str, Any] = {
        "depth": tower.depth,
        "fullatt_block_indexes": list(tower.fullatt_block_indexes),
        "hidden_size": tower.hidden_size,
        "num_heads": tower.num_heads,
        "window_size": tower.window_size,
    }
    (folder / "Lance_3B" / "llm_config.json").write_text(json.dumps(decoder))
    (folder / "Qwen2.5-VL-ViT" / "config.json").write_text(json.dumps(vision))


def released(vae: AutoEncoder) -> dict[str, Tensor]:
    """The autoencoder's tensors as the release has them, for videos: kernels over three frames, of
    which single pictures use the last, and convolutions over time, which they never use."""
    shapes = json.loads(MANIFEST.read_text())["tensors"]
    own = vae.state_dict()
    found = {}
    for name, shape in shapes.items():
        if name not in own:
            assert ".time_conv." in name
            found[name] = torch.full((3,), 9.0)
        elif len(shape) == 5:
            value = own[name].unsqueeze(2)
            before = torch.full_like(value, 9.0).expand(-1, -1, shape[2] - 1, -1, -1)
            found[name] = torch.cat((before, value), dim=2)
        else:
            found[name] = own[name].reshape(*own[name].shape, *[1] * (len(shape) - own[name].ndim))
    return found


def opened(folder: Path, **more: Any) -> LanceBackend:
    return open_backend(Opening(model=str(folder), device="cpu", dtype="float32"), **more)


def frozen(backend: LanceBackend) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": value
        for number, part in enumerate(
            (backend.mixture, backend.encoders.tower, backend.encoders.vae)
        )
        for name, value in part.state_dict().items()
    }


def whole(backend: LanceBackend) -> LanceBackend:
    """With all weights read."""
    backend.need_expert()
    backend.encoders.need()
    return backend


def prompt(text: str, *concepts: ConceptTokens) -> Prompt:
    return Prompt(turns=(to_turn(text),), concepts=concepts)
