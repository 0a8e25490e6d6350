"""The understanding expert in 8 and 4 bits: what is quantised, what is refused, what is told."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import tiny_bagel
import tiny_lance
import torch

from omnipersona_cli.backend import Lesson, Opening, Prompt, Quantize
from omnipersona_cli.concepts.pack import Pack
from omnipersona_cli.engine.precision import (
    agreement,
    checked_gradients,
    format_of,
    precision_notes,
    quantized_by,
)
from omnipersona_cli.engine.tokens import copy_of, slot_name, to_slot
from omnipersona_cli.errors import MissingError, TaskError, UsageError
from omnipersona_cli.family import quantize as quantizing
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import drawing
from op_bagel import loading as bagel
from op_bagel.backend import BagelBackend
from op_bagel.model import Bagel
from op_lance import loading as lance
from op_lance.backend import LanceBackend

Writer = Callable[[Path], Path]
FAMILIES: Mapping[str, tuple[Writer, Callable[[Opening], BagelBackend | LanceBackend]]] = {
    "bagel": (tiny_bagel.write_tiny, bagel.open_backend),
    "lance": (tiny_lance.write_tiny, lance.open_backend),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_bagel.write_tiny(tmp_path_factory.mktemp("bagel") / "tiny"))


def opened(model: str, kind: Quantize = "", family: str = "bagel") -> BagelBackend | LanceBackend:
    return FAMILIES[family][1](Opening(model=model, device="cpu", quantize=kind))


def mixture(backend: BagelBackend | LanceBackend) -> Bagel:
    return backend.bagel if isinstance(backend, BagelBackend) else backend.mixture


def lessons() -> list[Lesson]:
    one, other = drawing("red", 1), drawing("blue", 2)
    ask, paint = to_turn("is <bo> here?"), to_turn("<bo>")
    return [
        Lesson(task="understand", kind="recognise", request=ask, image=one, answer="yes"),
        Lesson(task="generate", kind="depict", request=paint, target=other),
    ]


def test_without_the_library_the_command_that_brings_it_is_named(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="bitsandbytes") as caught:
        opened(tiny, "nf4")
    assert caught.value.hint == "pip install 'omnipersona[quantize]'"


def test_two_ways_to_the_same_end_are_refused(tiny: str) -> None:
    with pytest.raises(UsageError, match="two ways"):
        bagel.open_backend(Opening(model=tiny, device="cpu", quantize="int8", offload=True))


def test_a_backend_without_an_expert_that_only_understands_refuses() -> None:
    from op_nano.backend import open_backend as open_nano

    with pytest.raises(UsageError, match="nano has no large expert") as caught:
        open_nano(Opening(quantize="nf4"))
    assert "op backends show nano" in caught.value.hint


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_only_the_understanding_expert_is_quantised_and_can_be_undone(
    kind: Quantize, family: str, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    tiny = str(FAMILIES[family][0](tmp_path / "tiny"))
    plain, backend = opened(tiny, family=family), opened(tiny, kind, family)
    changed = {
        name
        for name, module in mixture(backend).named_modules()
        if type(module).__module__.startswith("bitsandbytes")
    }
    layers = mixture(backend).config.llm.num_hidden_layers
    assert len(changed) == 7 * layers and not [name for name in changed if "moe_gen" in name]
    photos = [drawing("red", 1)]
    start = plain.new_tokens("bo", understand=3, generate=3, photos=photos, seed=0)
    found = quantized_by(backend)
    assert found is not None and format_of(backend) == kind and format_of(plain) == ""
    kept = [linear.weight for linear in backend.quantized.plain] if backend.quantized else []
    assert not any(it.untyped_storage().resizable() for it in kept), "mapped, and no copies"
    ready = backend.prepare(lessons())
    (told,) = checked_gradients(
        backend, {"yes": ready[:1], "generate": ready[1:]}, start, force=True
    )
    assert 0.5 < agreement(backend, found, ready, start) < 1
    assert f"{kind} and unquantised" in told and "on 2 lessons" in told
    with found.undone():
        undone = backend.loss(ready, start, seed=0)
    exact = plain.loss(plain.prepare(lessons()), start, seed=0)
    assert all(torch.equal(undone[task], exact[task]) for task in exact)
    assert not torch.equal(backend.loss(ready, start, seed=0)["understand"], exact["understand"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_answer_takes_no_gradients_away(kind: Quantize, family: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    backend = opened(str(FAMILIES[family][0](tmp_path / "tiny")), kind, family)
    photo = drawing("red", 1)
    start = backend.new_tokens("bo", understand=3, generate=3, photos=[photo], seed=0)
    prompt = Prompt(turns=(to_turn("is <bo> here?"),), concepts=(start,))
    batch = backend.prepare(lessons())

    def gradients() -> list[torch.Tensor | None]:
        own = copy_of(start, trainable=True)
        losses = backend.loss(batch, own, seed=0)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        return [value.grad for value in own.parameters()]

    list(backend.say(prompt, image=photo, max_tokens=3))
    backend.score(prompt, ("yes", "no"), image=photo)
    backend.answer_losses(batch[:1], start)
    after, untouched = gradients(), gradients()
    for one, other in zip(after, untouched, strict=True):
        assert one is not None and other is not None and bool(one.any())
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("sizes", [(32, 48), (63, 64), (64, 63), (33, 7), (128, 64)])
def test_any_sizes_can_be_quantised(kind: Quantize, sizes: tuple[int, int]) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    whole = torch.nn.Sequential(torch.nn.Linear(*sizes))
    rows = torch.randn(3, sizes[0])
    exact = whole(rows).detach()
    quantizing.quantize(whole, ["0"], kind, device="cpu", dtype=torch.float32)
    with torch.inference_mode():
        answered = whole.eval()(rows)
    assert float((answered - exact).norm()) < 0.2 * float(exact.norm())
    rows.requires_grad_()
    whole(rows).sum().backward()
    assert rows.grad is not None and bool(rows.grad.any())


def test_gradients_that_do_not_agree_are_refused_unless_forced(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    backend = opened(tiny, "nf4")
    start = backend.new_tokens("bo", understand=3, generate=3, photos=[drawing("red", 1)], seed=0)
    groups = {"yes": backend.prepare(lessons())}
    monkeypatch.setattr("omnipersona_cli.engine.precision.agreement", lambda *_: float("nan"))
    with pytest.raises(TaskError, match="cosine nan"):
        checked_gradients(backend, groups, start, force=False)
    monkeypatch.setattr("omnipersona_cli.engine.precision.agreement", lambda *_: 0.9)
    with pytest.raises(TaskError, match=r"cosine 0.900 .* below 0.95") as caught:
        checked_gradients(backend, groups, start, force=False)
    assert caught.value.hint == "--quantize int8, or --force learns all the same"
    assert "0.900" in checked_gradients(backend, groups, start, force=True)[0]


def test_a_concept_of_another_precision_brings_a_note(tiny: str) -> None:
    backend = opened(tiny)
    start = backend.new_tokens("bo", understand=3, generate=3, photos=[drawing("red", 1)], seed=0)

    def packs(recipe: dict[str, str]) -> dict[str, Pack]:
        slot = to_slot(start, backend, {"recipe": recipe})
        return {"bo": Pack(name="bo", slots={slot_name(backend): slot})}

    assert precision_notes(packs({}), backend) == []
    (note,) = precision_notes(packs({"quantize": "nf4"}), backend)
    assert note.startswith("<bo> was learned with nf4 weights, and bagel runs with unquantised")
