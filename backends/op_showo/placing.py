"""Where concept tokens stand in Show-o's prompts.

Understanding reads "<bo> is und_1 … und_n." before the question, painting reads
"… gen_1 … gen_m <bo> …" at the first mention, an edit both parts there (paper, section 3.1; the
wording is that of UniCTokens, section 3). Texts between soft rows are encoded one by one, so the
space before a soft row is a token of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from omnipersona_cli.backend import ConceptTokens, Part, Turn
from omnipersona_cli.family.deep import joined_rows, wide_rows
from op_showo.model import ExtraVocabulary

HEAD, BIAS = "head.weight", "head.bias"
"""Names of the head's own row for the identifier [1, d] and its bias [1], among the extras."""

TextOrIds = str | list[int]
"""A part of a prompt: text to encode, or ids of soft rows."""


class TextTokenizer(Protocol):
    """A tokenizer of text alone."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class ConceptIds:
    """Ids of one concept's soft rows. ``sayable`` where the head can say the identifier."""

    id: int
    und: list[int]
    gen: list[int]
    sayable: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptRows:
    """The concepts of one prompt: their rows, and which ids stand for them."""

    soft: ExtraVocabulary | None
    ids: Mapping[str, ConceptIds]

    def name_of(self, token: int) -> str | None:
        """The concept whose identifier an id is."""
        return next((name for name, rows in self.ids.items() if rows.id == token), None)


def concept_rows(concepts: Sequence[ConceptTokens], size: int) -> ConceptRows:
    """Number the rows of ``concepts`` from ``size`` on: identifiers first, in the same order as
    the head's columns. A concept without a head row gets a column that is never likely."""
    if not concepts:
        return ConceptRows(soft=None, ids={})
    heads, biases = [], []
    for tokens in concepts:
        spoken = _spoken(tokens)
        heads.append(tokens.extra[HEAD][:1] if spoken else torch.zeros_like(tokens.id))
        bias = tokens.extra[BIAS][:1] if spoken else tokens.id.new_full((1,), -torch.inf)
        biases.append(bias)
    groups = [tokens.id for tokens in concepts]
    parts: tuple[Part, Part] = ("und", "gen")
    groups += [wide_rows(tokens, part) for tokens in concepts for part in parts]
    soft = ExtraVocabulary(rows=joined_rows(groups), head=torch.cat(heads), bias=torch.cat(biases))
    ids, at = {}, size + len(concepts)
    for number, tokens in enumerate(concepts):
        und = list(range(at, at + len(tokens.und)))
        gen = list(range(at + len(tokens.und), at + len(tokens.und) + len(tokens.gen)))
        at += len(und) + len(gen)
        ids[tokens.name] = ConceptIds(id=size + number, und=und, gen=gen, sayable=_spoken(tokens))
    return ConceptRows(soft=soft, ids=ids)


def question_ids(
    turns: Sequence[Turn], concepts: ConceptRows, tokenizer: TextTokenizer, *, opening: str = "\n"
) -> list[int]:
    """``USER: <bo> is und.⏎question ASSISTANT:``; without concepts the introduction is empty, which
    is the released form. ``opening`` stands between the two."""
    pieces: list[TextOrIds] = ["USER: "]
    for rows in concepts.ids.values():
        pieces += [[rows.id], " is ", rows.und, "."]
    pieces.append("\n" if concepts.ids else opening)
    for number, turn in enumerate(turns):
        pieces += [*(["\n"] if number else []), *_mentioned(turn, concepts)]
    return encoded([*pieces, " ASSISTANT:"], tokenizer)


def answer_ids(answer: str, concepts: ConceptRows, tokenizer: TextTokenizer) -> list[int]:
    """An answer with its leading space, identifiers where the head can say them."""
    names = [name for name, rows in concepts.ids.items() if rows.sayable]
    pieces: list[TextOrIds] = [" "]
    done = 0
    for found in re.finditer(r"<([A-Za-z][A-Za-z0-9_-]*)>", answer):
        if (name := found[1].lower()) in names:
            pieces += [answer[done : found.start()], [concepts.ids[name].id]]
            done = found.end()
    return encoded([*pieces, answer[done:]], tokenizer)


def request_ids(
    turn: Turn, concepts: ConceptRows, tokenizer: TextTokenizer, *, editing: bool = False
) -> list[int]:
    """What painting reads: the parts that serve it stand before the first mention. A concept that
    is not mentioned comes first of all."""
    mentioned = {span.name for span in turn.spans}
    pieces: list[TextOrIds] = []
    for name in concepts.ids:
        if name not in mentioned:
            pieces += [*_introduced(concepts.ids[name], editing), ", "]
    return encoded(
        [*pieces, *_mentioned(turn, concepts, editing=editing, introduce=True)], tokenizer
    )


def encoded(pieces: Sequence[TextOrIds], tokenizer: TextTokenizer) -> list[int]:
    """Ids of texts and soft rows in turn; neighbouring texts are one text."""
    ids: list[int] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        elif piece:
            ids += [*(tokenizer.encode(text) if text else []), *piece]
            text = ""
    return ids + (tokenizer.encode(text) if text else [])


def _mentioned(
    turn: Turn, concepts: ConceptRows, *, editing: bool = False, introduce: bool = False
) -> list[TextOrIds]:
    pieces: list[TextOrIds] = []
    met: set[str] = set()
    done = 0
    for span in sorted(turn.spans, key=lambda one: one.start):
        if span.name not in concepts.ids:
            continue
        rows = concepts.ids[span.name]
        pieces.append(turn.text[done : span.start])
        first = introduce and span.name not in met
        pieces += _introduced(rows, editing) if first else [[rows.id]]
        met.add(span.name)
        done = span.end
    return [*pieces, turn.text[done:]]


def _introduced(concept: ConceptIds, editing: bool) -> list[TextOrIds]:
    rows = concept.und + concept.gen if editing else concept.gen
    return [rows, " ", [concept.id]] if rows else [[concept.id]]


def _spoken(tokens: ConceptTokens) -> bool:
    return HEAD in tokens.extra and BIAS in tokens.extra
