"""The released BAGEL layout, on a tiny checkpoint: what is read, what is refused, and how."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from tiny_bagel import CONFIG, tokenizer, write_tiny
from torch import Tensor

from omnipersona_cli.backend import (
    Backend,
    ConceptTokens,
    Lesson,
    Opening,
    Prompt,
    Task,
)
from omnipersona_cli.engine.checkpoint import read_checkpoint, write_checkpoint
from omnipersona_cli.engine.heldout import HeldOut
from omnipersona_cli.engine.optimise import Optimised, optimise
from omnipersona_cli.engine.settings import Hyperparameters
from omnipersona_cli.engine.tokens import named_tensors
from omnipersona_cli.errors import MissingError, UsageError
from omnipersona_cli.family.checkpoint import check_tensors, fill
from omnipersona_cli.hookspecs import Progress
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import BackendContract, drawing
from op_bagel.backend import BagelBackend
from op_bagel.loading import (
    Checkpoint,
    find_checkpoint,
    needed_for_painting,
    open_backend,
    read_config,
)
from op_bagel.model import Bagel
from op_bagel.tokenizer import QwenTokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "bagel")


def empty(checkpoint: Checkpoint) -> Bagel:
    with torch.device("meta"):
        return Bagel(read_config(checkpoint, CONFIG.special_tokens))


read = partial(fill, device="cpu", backend="bagel")


def change(path: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(path)
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, path)


def test_sizes_come_from_the_tensors_where_configurations_lie(folder: Path) -> None:
    # the ViT lists a layer too many, the decoder ties its head, config.json is no JSON
    assert read_config(find_checkpoint(folder), CONFIG.special_tokens) == CONFIG


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_tensor_lands_in_the_wanted_dtype(folder: Path, dtype: torch.dtype) -> None:
    checkpoint = find_checkpoint(folder)
    model = empty(checkpoint)
    read(model, checkpoint.weights, checkpoint.shapes, dtype=dtype)
    stored = load_file(checkpoint.weights)
    for name, value in model.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, stored[name].to(dtype))


def test_half_of_the_tensors_serve_understanding(folder: Path) -> None:
    checkpoint = find_checkpoint(folder)
    model = empty(checkpoint)
    names = [name for name in checkpoint.shapes if not needed_for_painting(name)]
    read(model, checkpoint.weights, names, dtype=torch.bfloat16)
    logits, _ = model.next_logits([5], model.empty_cache())
    assert torch.isfinite(logits).all()
    unread = {name for name, value in model.named_parameters() if value.is_meta}
    assert unread == {name for name in checkpoint.shapes if needed_for_painting(name)}
    assert all(
        "moe_gen" in name or "lat" in name or "time" in name or "vae" in name for name in unread
    )


def test_an_fp8_copy_with_the_same_names_opens(tmp_path: Path) -> None:
    folder = write_tiny(
        tmp_path / "small", dtype=torch.float8_e4m3fn, weights="ema-FP8.safetensors"
    )
    checkpoint = find_checkpoint(folder)
    model = empty(checkpoint)
    read(model, checkpoint.weights, checkpoint.shapes, dtype=torch.bfloat16)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def test_one_file_of_a_folder_can_be_named(folder: Path) -> None:
    finetuned = (folder / "ema.safetensors").rename(folder / "my-finetune.safetensors")
    assert find_checkpoint(finetuned).weights == finetuned
    with pytest.raises(MissingError, match=r"ema\.safetensors is missing"):
        find_checkpoint(folder)


def test_missing_misshapen_and_extra_tensors_are_named(folder: Path) -> None:
    change(
        folder / "ema.safetensors",
        connector__fc1__bias=None,
        llm2vae__bias=torch.zeros(5),
        rotary__inv_freq=torch.zeros(3),
    )
    checkpoint = find_checkpoint(folder)
    with pytest.raises(MissingError) as error:
        check_tensors(empty(checkpoint), checkpoint.shapes, checkpoint.weights, backend="bagel")
    said = str(error.value)
    assert "lacks connector.fc1.bias" in said
    assert "llm2vae.bias as [5] instead of [12]" in said
    assert "rotary.inv_freq, which the model does not have" in said


def test_a_download_that_was_cut_off_names_its_file(folder: Path) -> None:
    path = folder / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MissingError, match=r"ema\.safetensors is broken or cut off"):
        find_checkpoint(folder)


@pytest.mark.parametrize("name", ["ae.safetensors", "llm_config.json", "vit_config.json"])
def test_half_a_download_names_what_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(MissingError, match=f"{name} is missing"):
        read_config(find_checkpoint(folder), CONFIG.special_tokens)


def test_another_model_is_not_taken_for_bagel(folder: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(4, 4)}, folder / "ema.safetensors")
    with pytest.raises(MissingError, match="is not a BAGEL checkpoint"):
        read_config(find_checkpoint(folder), CONFIG.special_tokens)


def test_a_configuration_that_is_no_json_is_named(folder: Path) -> None:
    (folder / "llm_config.json").write_text("{")
    with pytest.raises(MissingError, match=r"llm_config\.json is not proper JSON"):
        read_config(find_checkpoint(folder), CONFIG.special_tokens)


def test_the_tokenizer_knows_the_four_special_tokens(folder: Path) -> None:
    assert QwenTokenizer(folder, backend="bagel").special_tokens() == CONFIG.special_tokens


def test_special_tokens_in_a_text_are_text(folder: Path) -> None:
    words = QwenTokenizer(folder, backend="bagel")
    ids = words.encode("<|im_start|>")
    assert CONFIG.special_tokens.bos_token_id not in ids
    assert words.decode(ids) == "<|im_start|>"


def test_vocabulary_and_merges_serve_where_the_single_file_is_absent(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    vocabulary = {k: v for k, v in tokenizer().get_vocab().items() if not k.startswith("<|")}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    specials = {
        str(number): {"content": word, "special": True}
        for word, number in tokenizer().get_vocab().items()
        if word.startswith("<|")
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": specials}))
    words = QwenTokenizer(folder, backend="bagel")
    assert words.special_tokens() == CONFIG.special_tokens
    assert words.decode(words.encode("a red ball")) == "a red ball"


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MissingError, match=r"tokenizer\.json is missing"):
        QwenTokenizer(folder, backend="bagel")


# -- opened ----------------------------------------------------------------------------------------


class TestOpenedFromTheReleasedLayout(BackendContract):
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_tiny(tmp_path_factory.mktemp("weights") / "bagel")

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, folder: Path) -> Backend:
        return open_backend(Opening(model=str(folder), device="cpu", dtype="float32"))

    @pytest.fixture
    def photos(self) -> list[Image]:
        return [drawing("red", seed) for seed in range(4)]

    @pytest.fixture
    def others(self) -> list[Image]:
        return [drawing("blue", seed) for seed in (10, 11)]

    @pytest.fixture
    def weights(self, backend: BagelBackend, photos: list[Image]) -> Mapping[str, Tensor]:
        next(
            iter(
                backend.gen(
                    Prompt(turns=(to_turn("a cat"),)), size=None, steps=1, guidance=1.0, seeds=(0,)
                )
            )
        )
        return {**backend.bagel.state_dict(), **backend.vae.state_dict()}

    @pytest.fixture
    def text_table(self, backend: BagelBackend) -> Tensor:
        return backend.bagel.language_model.model.embed_tokens.weight

    @pytest.fixture
    def again(self, folder: Path) -> Callable[[Opening], Backend]:
        return lambda opening: open_backend(replace(opening, model=str(folder)))

    @pytest.fixture
    def encoder_calls(self, backend: BagelBackend) -> Iterator[Callable[[], int]]:
        yield lambda: backend.encoded

    def test_learning_that_was_interrupted_ends_in_the_same_bits(
        self,
        backend: BagelBackend,
        tokens: ConceptTokens,
        lessons: dict[Task, list[Lesson]],
        tmp_path: Path,
        again: Callable[[Opening], Backend],
    ) -> None:
        hyper = Hyperparameters(steps=2, batch_size=3, learning_rate=0.02, seed=1)

        def optimised(model: Backend, **more: Any) -> Optimised:
            groups = {task: model.prepare(some) for task, some in lessons.items()}
            asked = groups.pop("understand")
            return optimise(
                model, tokens, {"yes": asked, **groups}, HeldOut(lessons=asked), hyper, **more
            )

        def stop(event: Progress) -> None:
            if event.phase == "learning" and event.step == 1:
                raise KeyboardInterrupt

        whole = optimised(backend)
        with pytest.raises(KeyboardInterrupt):
            optimised(backend, save=lambda one: write_checkpoint(one, tmp_path), on_progress=stop)
        left = read_checkpoint(tmp_path)
        assert left is not None and left.step == 1
        resumed = optimised(
            again(Opening(device="cpu", dtype=str(backend.bagel.dtype)[6:])), resumed=left
        )
        assert resumed.losses == whole.losses and resumed.checks == whole.checks
        found = named_tensors(resumed.tokens)
        assert all(
            torch.equal(rows, found[key]) for key, rows in named_tensors(whole.tokens).items()
        )


def unread(backend: BagelBackend) -> int:
    parameters = [*backend.bagel.parameters(), *backend.vae.parameters()]
    return sum(value.is_meta for value in parameters)


def test_a_question_reads_no_generation_expert_and_no_autoencoder(folder: Path) -> None:
    backend = open_backend(Opening(model=str(folder), device="cpu"))
    assert backend.bagel.dtype == torch.bfloat16
    prompt = Prompt(turns=(to_turn("is it red?"),))
    backend.score(prompt, ("yes", "no"), image=drawing("red", 1))
    assert unread(backend) > 100
    next(iter(backend.gen(prompt, size=None, steps=1, guidance=1.0, seeds=(0,))))
    assert unread(backend) == 0
    assert {value.dtype for value in backend.vae.parameters()} == {torch.float32}


def test_pictures_that_are_learned_from_are_smaller(folder: Path) -> None:
    backend = open_backend(Opening(model=str(folder), device="cpu"))
    photo = drawing("red", 1).resize((96, 128))
    assert backend.fit.vae(photo).size == (48, 64)
    learned_from = backend.fit.learn_vae
    assert learned_from is not None and learned_from(photo).size == (32, 40)
    backend = open_backend(Opening(model=str(folder), device="cpu", lesson_size=16))
    lesson = Lesson(
        task="edit", kind="edit", request=to_turn("add <bo>"), image=photo, target=photo
    )
    (ready,) = backend.prepare([lesson])
    assert ready.grid == (3, 2) and ready.source is not None  # 16 x 24 pixels in cells of 8
    assert ready.features is not None and len(ready.features) < len(backend._features(photo))


def test_its_name_tells_nothing_of_this_machine(folder: Path) -> None:
    for place in (folder, folder / "ema.safetensors"):
        assert open_backend(Opening(model=str(place), device="cpu")).model == place.name


def test_float16_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="bfloat16 or float32"):
        open_backend(Opening(model=str(folder), device="cpu", dtype="float16"))
