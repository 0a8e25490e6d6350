"""A benchmark folder, read: the layout of UnifyBench, and the edits that OmniPBench adds.

::

    concepts_list.json                      names (absent: the folders under concept/train)
    random_images/N.png                     easy negatives
    concept/train/<c>/N.png                 photos to learn from
    concept/train/train_images.json         name -> which of them (absent: all)
    concept/train/<c>/info.json             class, info, extra_info, generation_type
    concept/train/<c>/conversations.json    picture -> [{query, answer}]
    concept/train/<c>/negative_example/     pictures of others that look alike
    concept/test/<c>/N.png                  test photos
    concept/test/<c>/t2i_conditions.json    prompts: a list, or the dictionary of the later release
    concept/test/<c>/vqa.json, text_only.json   raw questions, where test_data is absent
    concept/test/<c>/edits.json             [{id, task, source, instruction, target, mask?}]
    test_data/<c>.json                      [{image, type, conversations}]: what evaluators read
    ground_truth/<c>.json                   what is true, where somebody knows it

The inner fields of the raw questions are published nowhere: a file that does not look like
test_data's entries is reported in ``notes`` and left out, not guessed at. Without test_data the
recognition items are the test photos (yes), the look-alikes, other concepts' test photos and the
easy negatives (no).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from omnipersona_cli import reading
from omnipersona_cli.data.decode import opened
from omnipersona_cli.errors import MissingError, PersonaError, PhotoError, nearest, shell_word
from omnipersona_cli.language.mentions import check_name
from omnipersona_cli.reading import Origin

BenchTask = Literal["recognition", "vqa", "qa", "generation", "parg", "editing", "forgetting"]
BENCH_TASKS: tuple[BenchTask, ...] = (
    "recognition", "vqa", "qa", "generation", "parg", "editing", "forgetting",
)  # fmt: skip

EDIT_TASKS = ("add", "remove", "replace", "accessory", "background", "fact-driven")
INFO_FIELDS = {
    "class", "info", "extra_info", "conversation_type", "generation_type", "num_testing_info",
}  # fmt: skip
PROMPT_FIELDS: dict[str, BenchTask] = {
    "personalized_driven_generation": "parg",
    "explicit_personalized_driven_generation": "generation",
    "dense_prompt_generation": "generation",
    "personalized_dense_prompt_generation": "parg",
    "explicit_personalized_dense_prompt_generation": "generation",
}
"""The dictionary of the later release: which prompts leave out what a fact says."""

_QUESTIONS: dict[str, BenchTask] = {"rec": "recognition", "vqa": "vqa", "text_only": "qa"}
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_MARKER = re.compile(r"\s*<(?:image|img)(?:_\d+)?>\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to run and to score. Paths are files; ``gold`` is the expected answer; ``truth``
    holds attributes that should be found in the result, by name, where somebody knows them."""

    concept: str
    task: BenchTask
    id: str
    kind: str
    prompt: str
    image: Path | None = None
    gold: str = ""
    choice: bool = False
    target: Path | None = None
    mask: Path | None = None
    truth: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One concept: what it is learned from and what it is asked."""

    name: str
    class_word: str
    info: str
    facts: tuple[str, ...]
    photos: tuple[Path, ...]
    test_photos: tuple[Path, ...]
    negatives: tuple[Path, ...]
    items: tuple[Item, ...]
    truth: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All concepts in the order of the list. ``notes`` say what was not understood."""

    root: Path
    concepts: tuple[Concept, ...]
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """sha256 of every item and every photo: what results are bound to."""
        digest = sha256()
        for concept in self.concepts:
            digest.update(f"{concept.name}\0{concept.info}\0{concept.facts}".encode())
            files = [*concept.photos, *concept.test_photos, *concept.negatives]
            for item in concept.items:
                fields = [item.id, item.task, item.prompt, item.gold, sorted(item.truth.items())]
                digest.update(json.dumps(fields).encode())
                files += [path for path in (item.image, item.target, item.mask) if path]
            for path in files:
                digest.update(sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def read_dataset(root: Path, names: Sequence[str] = ()) -> Dataset:
    """The data set in ``root``, or those of its concepts that ``names`` lists.

    Raises MissingError for a folder, a concept or a file that is not there, PersonaError for bad
    JSON and for a concept without photos.
    """
    if not (root / "concept" / "train").is_dir():
        raise MissingError(
            f"{root} is not a benchmark: there is no concept/train in it",
            hint="draw one: op bench export-toy toyset",
        )
    listed = _listed(root)
    known = {check_name(name): name for name in listed}
    for name in names:
        if check_name(name) not in known:
            guess = nearest(name, known)
            raise MissingError(
                f"the data set has no concept {name!r}",
                hint=f"did you mean {guess}?" if guess else f"it has {', '.join(sorted(known))}",
            )
    wanted = {check_name(name) for name in names} or set(known)
    notes: list[str] = []
    concepts = tuple(
        _concept(root, folder, name, listed, notes)
        for name, folder in known.items()
        if name in wanted
    )
    return Dataset(root=root, concepts=concepts, notes=tuple(dict.fromkeys(notes)))


def read_json(path: Path) -> Any:
    """The value in a JSON file; MissingError without it, PersonaError where it is not JSON."""
    if not path.exists():
        raise MissingError(
            f"the data set lacks {path.name}: {path}", hint="copy the whole data set again"
        )
    hint = f"python -m json.tool {shell_word(path)}"
    return reading.read_json(path, Origin(name=str(path), error=PersonaError, hint=hint))


def _listed(root: Path) -> list[str]:
    path = root / "concepts_list.json"
    if not path.exists():
        found = sorted(p.name for p in (root / "concept" / "train").iterdir() if p.is_dir())
    else:
        found = _strings(read_json(path), path)
    if not found:
        raise PersonaError(f"{root} lists no concept", hint=f"see {path}")
    return found


def _concept(
    root: Path, folder: str, name: str, listed: Sequence[str], notes: list[str]
) -> Concept:
    train, test = root / "concept" / "train" / folder, root / "concept" / "test" / folder
    info_file = train / "info.json"
    info = _object(read_json(info_file), info_file)
    for key in sorted(info.keys() - INFO_FIELDS):
        notes.append(f"info.json has a field {key!r} that nobody described; it is left out")
    photos, test_photos = _train_photos(root, train, folder), _pictures(test)
    if not photos:
        raise PersonaError(
            f"there is no photo of {folder} to learn from in {train}",
            hint="copy the whole data set again",
        )
    truth_file = root / "ground_truth" / f"{folder}.json"
    truth = _object(read_json(truth_file), truth_file) if truth_file.exists() else {}
    facts = _strings(info.get("extra_info", []), info_file)
    negatives = _pictures(train / "negative_example")
    prompts = list(_prompts(test, folder, name, truth, notes))
    items = [
        *_questions(root, test, folder, name, listed, truth, notes),
        *prompts,
        *_edits(test, folder, name, truth, notes),
    ]
    if not items:
        raise PersonaError(
            f"there is nothing to ask about {folder}",
            hint=f"the items belong in {root / 'test_data'} and {test}",
        )
    return Concept(
        name=name,
        class_word=str(info.get("class", "")),
        info=renamed(str(info.get("info", "")), folder, name),
        facts=tuple(renamed(fact, folder, name) for fact in facts),
        photos=photos,
        test_photos=test_photos,
        negatives=negatives,
        items=tuple(items),
        truth=truth,
    )


def _train_photos(root: Path, train: Path, folder: str) -> tuple[Path, ...]:
    """The photos that train_images.json lists for the concept; all of its folder without it."""
    listed = root / "concept" / "train" / "train_images.json"
    files = _object(read_json(listed), listed).get(folder) if listed.exists() else None
    if files is None:
        return _pictures(train)
    return tuple(_found(train, train, file, listed) for file in _strings(files, listed))


def check_pictures(dataset: Dataset) -> None:
    """PhotoError for the first picture that cannot be read, before any work starts."""
    for concept in dataset.concepts:
        named = [
            picture
            for item in concept.items
            for picture in (item.image, item.target, item.mask)
            if picture
        ]
        for path in dict.fromkeys(
            (*concept.photos, *concept.test_photos, *concept.negatives, *named)
        ):
            try:
                with opened(path) as (image, _):
                    image.verify()
            except PhotoError as error:
                raise PhotoError(
                    f"{path} cannot be read as a picture: {error}",
                    hint="copy the whole data set again",
                ) from error


def renamed(text: str, folder: str, name: str) -> str:
    """The text with the concept mentioned as ``<name>``, without its picture marker."""
    text = _MARKER.sub(" ", text).strip()
    return re.sub(rf"<{re.escape(folder)}>", f"<{name}>", text)


def _questions(
    root: Path,
    test: Path,
    folder: str,
    name: str,
    listed: Sequence[str],
    truth: Mapping[str, Any],
    notes: list[str],
) -> Iterator[Item]:
    """Recognition, VQA and text-only questions."""
    path = root / "test_data" / f"{folder}.json"
    if path.exists():
        yield from _entries(root, test, path, folder, name, truth, notes)
        return
    notes.append("there is no test_data: recognition items are made of the photos")
    for raw in ("vqa.json", "text_only.json"):
        if (test / raw).exists():
            yield from _entries(root, test, test / raw, folder, name, truth, notes)
    others = [other for other in listed if other != folder]
    groups: tuple[tuple[str, str, tuple[Path, ...]], ...] = (
        ("positive", "Yes", _pictures(test)),
        ("look-alike", "No", _pictures(test / "negative_example")),
        ("other", "No", tuple(p for o in others for p in _pictures(test.parent / o)[:1])),
        ("easy", "No", _pictures(root / "random_images")[:10]),
    )
    for kind, gold, pictures in groups:
        for number, picture in enumerate(pictures):
            yield Item(
                concept=name,
                task="recognition",
                id=f"rec-{kind}-{number:03d}",
                kind=kind,
                prompt=f"is <{name}> here?",
                image=picture,
                gold=gold,
            )


def _entries(
    root: Path,
    test: Path,
    path: Path,
    folder: str,
    name: str,
    truth: Mapping[str, Any],
    notes: list[str],
) -> Iterator[Item]:
    """The entries of test_data: {image, type, conversations: [{value}, {value}]}."""
    entries = read_json(path)
    if not isinstance(entries, list):
        notes.append(f"{path.name} of {folder} is not a list of entries; it is left out")
        return
    kinds = truth.get("kinds", {})
    for number, entry in enumerate(entries):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        type_ = str(entry.get("type", "")) if isinstance(entry, dict) else ""
        choice = "choice" in type_
        task = _QUESTIONS.get(type_) or ("vqa" if choice else None)
        if task is None or not isinstance(turns, list) or len(turns) < 2:
            fields = ", ".join(sorted(entry)) if isinstance(entry, dict) else type(entry).__name__
            notes.append(f"{path.name} has entries of unknown form ({fields}); they are left out")
            continue
        values = [str(turn.get("value", "")) if isinstance(turn, dict) else "" for turn in turns]
        image = None if task == "qa" else _found(root, test, str(entry.get("image", "")), path)
        id_ = f"{type_}-{number:03d}"
        gold = values[1].strip()
        positive = "positive" if gold.lower().startswith("yes") else "negative"
        kind = positive if task == "recognition" else "choice" if choice else "free"
        yield Item(
            concept=name,
            task=task,
            id=id_,
            kind=str(kinds.get(id_, kind)),
            prompt=renamed(values[0], folder, name),
            image=image,
            gold=gold,
            choice=choice,
        )


def _prompts(
    test: Path, folder: str, name: str, truth: Mapping[str, Any], notes: list[str]
) -> Iterator[Item]:
    """What to paint: item 0 of a list is the plain picture, the others are PARG prompts."""
    path = test / "t2i_conditions.json"
    if not path.exists():
        notes.append(f"there is no t2i_conditions.json of {folder}: nothing is painted for it")
        return
    conditions = read_json(path)
    listed: list[tuple[str, BenchTask, str]] = []
    if isinstance(conditions, list):
        prompts = _strings(conditions, path)
        listed = [(text, "parg" if n else "generation", "prompt") for n, text in enumerate(prompts)]
    else:
        for key, values in _object(conditions, path).items():
            if key not in PROMPT_FIELDS:
                notes.append(f"t2i_conditions.json has a field {key!r} that nobody described")
                continue
            listed += [(text, PROMPT_FIELDS[key], key) for text in _strings(values, path)]
    wanted = truth.get("prompts", {})
    for number, (text, task, kind) in enumerate(listed):
        yield Item(
            concept=name,
            task=task,
            id=f"t2i-{number:03d}",
            kind=kind,
            prompt=renamed(text, folder, name).rstrip("."),
            truth=wanted.get(text, {}),
        )


def _edits(
    test: Path, folder: str, name: str, truth: Mapping[str, Any], notes: list[str]
) -> Iterator[Item]:
    """The editing items."""
    path = test / "edits.json"
    if not path.exists():
        return
    entries = read_json(path)
    if not isinstance(entries, list):
        raise PersonaError(f"{path} is not a list of edits", hint="see `op bench export-toy`")
    wanted = truth.get("edits", {})
    for number, entry in enumerate(entries):
        missing = [
            key
            for key in ("task", "source", "instruction")
            if not isinstance(entry, dict) or not isinstance(entry.get(key), str)
        ]
        if missing:
            raise PersonaError(f"edit {number} of {folder} has no {missing[0]}", hint=f"see {path}")
        if entry["task"] not in EDIT_TASKS:
            notes.append(f"edits.json has the unknown task {entry['task']!r}; it is left out")
            continue
        id_ = str(entry.get("id") or f"edit-{number:03d}")
        yield Item(
            concept=name,
            task="editing",
            id=id_,
            kind=entry["task"],
            prompt=renamed(entry["instruction"], folder, name),
            image=_found(test, test, entry["source"], path),
            target=_found(test, test, entry["target"], path) if entry.get("target") else None,
            mask=_found(test, test, entry["mask"], path) if entry.get("mask") else None,
            truth=wanted.get(id_, {}),
        )


def _found(root: Path, test: Path, file: str, named_in: Path) -> Path:
    """A picture that a file names, relative to the data set or to the test folder."""
    for place in (root, test, root / "concept"):
        path = place / file.removeprefix("./")
        inside = path.resolve().is_relative_to(place.resolve())
        if file and inside and path.is_file():
            return path
    raise MissingError(
        f"{named_in.name} names the picture {file!r}, which is not there: {named_in}",
        hint="copy the whole data set again",
    )


def _pictures(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder in the order of their numbers."""
    if not folder.is_dir():
        return ()
    files = [path for path in folder.iterdir() if path.suffix.lower() in _PICTURES]
    return tuple(sorted(files, key=lambda p: (len(p.stem), p.name) if p.stem.isdigit() else
                        (99, p.name)))  # fmt: skip


def _object(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PersonaError(f"{path} holds no JSON object", hint=f"see {path}")
    return value


def _strings(value: Any, path: Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise PersonaError(f"{path} holds something else than a list of texts", hint=f"see {path}")
    return value
