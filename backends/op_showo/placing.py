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

from omnipersona_cli.backend import ConceptTokens, Turn
from op_showo.model import Soft

HEAD, BIAS = "head.weight", "head.bias"
"""Names of the head's own row for the identifier [1, d] and its bias [1], among the extras."""

Piece = str | list[int]


class Tokenizer(Protocol):
    """A tokenizer of text alone."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Ids of one concept's soft rows. ``said`` where the head can say the identifier."""

    id: int
    und: list[int]
    gen: list[int]
    said: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptRows:
    """The concepts of one prompt: their rows, and which ids stand for them."""

    soft: Soft | None
    shown: Mapping[str, Shown]

    def name_of(self, token: int) -> str | None:
        """The concept whose identifier an id is."""
        return next((name for name, it in self.shown.items() if it.id == token), None)


def concept_rows(concepts: Sequence[ConceptTokens], size: int) -> ConceptRows:
    """Number the rows of ``concepts`` from ``size`` on: identifiers first, in the same order as
    the head's columns. A concept without a head row gets a column that is never likely."""
    if not concepts:
        return ConceptRows(soft=None, shown={})
    heads, biases = [], []
    for tokens in concepts:
        spoken = _spoken(tokens)
        heads.append(tokens.extra[HEAD][:1] if spoken else torch.zeros_like(tokens.id))
        bias = tokens.extra[BIAS][:1] if spoken else tokens.id.new_full((1,), -torch.inf)
        biases.append(bias)
    groups = [*(it.id for it in concepts), *(rows for it in concepts for rows in (it.und, it.gen))]
    soft = Soft(rows=torch.cat(groups), head=torch.cat(heads), bias=torch.cat(biases))
    shown, at = {}, size + len(concepts)
    for number, it in enumerate(concepts):
        und = list(range(at, at + len(it.und)))
        gen = list(range(at + len(it.und), at + len(it.und) + len(it.gen)))
        at += len(und) + len(gen)
        shown[it.name] = Shown(id=size + number, und=und, gen=gen, said=_spoken(it))
    return ConceptRows(soft=soft, shown=shown)


def question_ids(
    turns: Sequence[Turn], who: ConceptRows, tokenizer: Tokenizer, *, opening: str = "\n"
) -> list[int]:
    """``USER: <bo> is und.⏎question ASSISTANT:``; without concepts the introduction is empty, which
    is the released form. ``opening`` stands between the two."""
    pieces: list[Piece] = ["USER: "]
    for name in who.shown:
        it = who.shown[name]
        pieces += [[it.id], " is ", it.und, "."]
    pieces.append("\n" if who.shown else opening)
    for number, turn in enumerate(turns):
        pieces += [*(["\n"] if number else []), *_mentioned(turn, who)]
    return encoded([*pieces, " ASSISTANT:"], tokenizer)


def answer_ids(answer: str, who: ConceptRows, tokenizer: Tokenizer) -> list[int]:
    """An answer with its leading space, identifiers where the head can say them."""
    names = [name for name, it in who.shown.items() if it.said]
    pieces: list[Piece] = [" "]
    done = 0
    for found in re.finditer(r"<([A-Za-z][A-Za-z0-9_-]*)>", answer):
        if (name := found[1].lower()) in names:
            pieces += [answer[done : found.start()], [who.shown[name].id]]
            done = found.end()
    return encoded([*pieces, answer[done:]], tokenizer)


def request_ids(
    turn: Turn, who: ConceptRows, tokenizer: Tokenizer, *, editing: bool = False
) -> list[int]:
    """What painting reads: the parts that serve it stand before the first mention. A concept that
    is not mentioned comes first of all."""
    mentioned = {span.name for span in turn.spans}
    pieces: list[Piece] = []
    for name in who.shown:
        if name not in mentioned:
            pieces += [*_introduced(who.shown[name], editing), ", "]
    return encoded([*pieces, *_mentioned(turn, who, editing=editing, introduce=True)], tokenizer)


def encoded(pieces: Sequence[Piece], tokenizer: Tokenizer) -> list[int]:
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
    turn: Turn, who: ConceptRows, *, editing: bool = False, introduce: bool = False
) -> list[Piece]:
    pieces: list[Piece] = []
    met: set[str] = set()
    done = 0
    for span in sorted(turn.spans, key=lambda one: one.start):
        if span.name not in who.shown:
            continue
        shown = who.shown[span.name]
        pieces.append(turn.text[done : span.start])
        first = introduce and span.name not in met
        pieces += _introduced(shown, editing) if first else [[shown.id]]
        met.add(span.name)
        done = span.end
    return [*pieces, turn.text[done:]]


def _introduced(it: Shown, editing: bool) -> list[Piece]:
    rows = it.und + it.gen if editing else it.gen
    return [rows, " ", [it.id]] if rows else [[it.id]]


def _spoken(tokens: ConceptTokens) -> bool:
    return HEAD in tokens.extra and BIAS in tokens.extra
