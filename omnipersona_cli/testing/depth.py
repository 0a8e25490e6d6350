"""Rules of deep tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL.Image import Image

from omnipersona_cli.backend import Backend, ConceptTokens, FastBackend, Lesson, Part, Task
from omnipersona_cli.concepts.pack import Pack, read_pack, write_pack
from omnipersona_cli.engine.tokens import (
    from_slot,
    named_tensors,
    slot_name,
    to_slot,
    with_depth,
)
from omnipersona_cli.errors import PackError
from omnipersona_cli.testing.given import Given
from omnipersona_cli.testing.uses import (
    answers_without_concept,
    check_answer_losses,
    check_pieces,
    moved_parts,
    prepared,
    uses,
)


class DepthRules(Given):
    """What deep tokens do, in a backend that takes some; one that takes none refuses them."""

    def test_deep_tokens_that_add_nothing_change_nothing(
        self,
        backend: Backend,
        tokens: ConceptTokens,
        deep: ConceptTokens | None,
        photos: list[Image],
    ) -> None:
        if deep is None:
            return
        nothing = with_depth(tokens, deep.depth)
        assert nothing.depth == deep.depth > 0
        assert uses(backend, nothing, photos[0]) == uses(backend, tokens, photos[0])

    def test_deep_tokens_change_what_their_part_serves_and_leave_no_trace(
        self,
        backend: Backend,
        tokens: ConceptTokens,
        deep: ConceptTokens | None,
        photos: list[Image],
    ) -> None:
        if deep is None:
            return
        before = answers_without_concept(backend, photos[0])
        plain, changed = (uses(backend, one, photos[0]) for one in (tokens, deep))
        assert changed == uses(backend, deep, photos[0])
        # codes of a small model are the same until much is added, at several seeds
        strong = {key: value * 30 for key, value in deep.extra.items() if key.endswith("gen")}
        louder = replace(deep, extra={**deep.extra, **strong})
        ways = [backend]
        if backend.info.fast:
            ways.append(cast(FastBackend, backend).faster())
        for way in ways:
            painted, other = (
                uses(way, one, photos[0], seeds=range(1, 7)) for one in (tokens, louder)
            )
            for use in plain:
                assert plain[use] != changed[use] or painted[use] != other[use], f"{use} is as was"
        assert answers_without_concept(backend, photos[0]) == before

    def test_a_lesson_moves_the_deep_tokens_of_its_own_part_alone(
        self, backend: Backend, deep: ConceptTokens | None, lessons: dict[Task, list[Lesson]]
    ) -> None:
        if deep is None:
            return
        parts: dict[Task, Part] = {"understand": "und", "generate": "gen"}
        for task in lessons.keys() & parts.keys():
            part = parts[task]
            layers = {f"deep.{layer}.{part}" for layer in range(1, deep.depth + 1)}
            assert moved_parts(backend, deep, lessons, task) == {"id", part, *layers}

    def test_deep_tokens_have_the_same_gradients_in_pieces_and_weigh_answers_the_same(
        self, backend: Backend, deep: ConceptTokens | None, lessons: dict[Task, list[Lesson]]
    ) -> None:
        if deep is None:
            return
        batch = prepared(backend, lessons)
        check_pieces(backend, batch, deep)
        if asked := [one for one in batch if one.task == "understand"]:
            check_answer_losses(backend, asked, deep)

    def test_a_pack_keeps_deep_tokens_and_those_that_do_not_fit_are_refused(
        self,
        backend: Backend,
        tokens: ConceptTokens,
        deep: ConceptTokens | None,
        tmp_path: Path,
    ) -> None:
        def loaded(tokens: ConceptTokens) -> ConceptTokens:
            pack = Pack(name="bo", slots={slot_name(backend): to_slot(tokens, backend, {})})
            write_pack(pack, tmp_path / "bo.opconcept", overwrite=True)
            return from_slot(read_pack(tmp_path / "bo.opconcept"), backend)

        if deep is None:
            with pytest.raises(PackError, match="of those after the first"):
                loaded(with_depth(tokens, 1))
            return
        kept = loaded(deep)
        assert named_tensors(kept).keys() == named_tensors(deep).keys()
        for key, value in named_tensors(deep).items():
            assert torch.equal(named_tensors(kept)[key], value.detach().cpu())
        for key, rows in (
            (f"deep.{backend.info.deep_layers + 1}.und", deep.und),
            ("deep.0.gen", deep.gen),
            ("deep.1.und", deep.und[1:]),
            ("deep.1.gen", deep.gen * backend.norm_limit * 1e3),
        ):
            with pytest.raises(PackError, match=key if key[5] == "1" else "layer") as refused:
                loaded(replace(deep, extra={**deep.extra, key: rows}))
            assert refused.value.hint
