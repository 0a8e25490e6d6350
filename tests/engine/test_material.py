"""What learning reads, made from what a person gives."""

import errno
import fcntl
from dataclasses import replace

import pytest

from omnipersona_cli.engine import Keeping, Settings, learn
from omnipersona_cli.engine.material import gather
from omnipersona_cli.errors import ResourceError, UsageError


@pytest.mark.parametrize(
    ("typed", "kept"),
    [("golden  retriever", "golden retriever"), (" do\u200bg\t", "dog"), ("<|im_end|>cat", "cat")],
)
def test_what_it_is_is_cleaned_like_a_fact(bo, typed, kept):
    material = gather(replace(bo, kind=typed, class_word=typed), seed=1, backend="sketch")
    assert (material.class_word, material.kind) == (kept, kept)


def test_what_it_is_must_fit_into_a_pack(bo):
    with pytest.raises(UsageError, match="64 characters") as caught:
        gather(replace(bo, kind="x" * 65), seed=1, backend="sketch")
    assert "--kind dog" in caught.value.hint


def test_a_place_that_cannot_keep_what_is_learned_is_refused_before_the_photos(
    bo, library, monkeypatch, tmp_path
):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    nowhere = replace(bo, photos=[tmp_path / "not there"])  # would be the next thing refused
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ResourceError, match="no locks available"):
        learn(nowhere, Settings(seed=1), keeping=Keeping(library=library))
    monkeypatch.undo()
    (tmp_path / "file").touch()
    monkeypatch.setenv("OMNIPERSONA_HOME", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="cache") as caught:
        learn(nowhere, Settings(seed=1), keeping=Keeping(library=library))
    assert "checkpoints go there" in caught.value.hint
