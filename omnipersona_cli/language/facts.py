"""Facts: one plain sentence each, and the questions that it answers.

Forgiving on the way in ("<bo>'s toy is a red ball", "its toy: a red ball", "plays with a red ball
and lives with two cats in Lisbon"), plain on the way out: an attribute ("toy"), a value ("a red
ball") and questions in several phrasings. A sentence that fits no form is kept as text and taught
as what is known about <bo>.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from omnipersona_cli.language.attributes import is_plural, singular, usual_name
from omnipersona_cli.language.verbs import (
    ADVERBS,
    ANY_VERB,
    DATE,
    EDIBLE,
    NUMBERS,
    VERBS,
    WHEN,
    WHERE_ELSE,
    WITH_WHOM,
    base_form,
    gerund,
)

CLASS_ATTRIBUTE = "kind"
"""The attribute of "<bo> is a striped green frog": what <bo> is."""

_PRONOUNS = "it|he|she|they"
_POSSESSIVES = "its|his|her|their"
_AUXILIARIES = r"(?:is|are|was|were|has|does|do|can|could)(?:n't|not| not)?|never|used to"
_KNOWN_ABOUT = "what do you know about {name}?"

WORDINGS = (
    "what {be} {name}'s {attribute}?",
    "what {be} the {attribute} of {name}?",
    "tell me {name}'s {attribute}.",
    "tell me the {attribute} of {name}.",
    "what {attribute} does {name} have?",
    "which {attribute} does {name} have?",
    "do you know {name}'s {attribute}?",
    "what do you know about {name}'s {attribute}?",
    "say what {name}'s {attribute} {be}.",
    "{name}'s {attribute}?",
)
"""How an attribute is asked for, the plainest wording first."""

HELD_OUT_WORDINGS = (
    "please say what the {attribute} of {name} {be}.",
    "can you tell me {name}'s {attribute}?",
)
"""Wordings that are taught nowhere."""

_DENIED = re.compile(r"(?:not|never|neither)\b|no\s+[a-z]", re.IGNORECASE)
"""A value that says what is not so: "no tail" is nothing to paint."""

_COLON = r"\s*(?:=|:(?=\s)|(?<!\d):(?!//))\s*"
"""Between an attribute and its value; not in a time of day or an address."""
_BEFELL = r"(?:stolen|lost|found|broken|given|bought|sold|made|eaten|taken|torn|thrown|cut|left)\b"
"""What happened to a thing ("its toy was stolen") does not say what it is."""
_COPULA = rf"(?:\s+(?:is|are|was(?!\s+{_BEFELL}))(?:\s+called)?(?:{_COLON}|\s+)|{_COLON})"


@dataclass(frozen=True, kw_only=True)
class ParsedFact:
    """One understood fact: the ``attribute`` ("toy") of ``subject`` ("bo") is ``value``.

    ``asked`` are questions that fit the verb of the sentence, with ``{name}`` for the mention;
    ``also`` other attributes that it may be asked by ("loves tuna": a favourite thing, and a food).
    Without an attribute only ``asked`` is answered ("when does {name} play the violin?").
    """

    subject: str
    attribute: str
    value: str
    text: str
    asked: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, white space tidied, without their full stops and the marks of a
    list. After an initial ("A. Smith") none ends, nor in "No. 5"."""
    listed = re.sub(r"^\s*(?:[-*\u2022]|\d{1,2}[.)])\s+", "", text, flags=re.M)
    parts = re.split(
        r"(?<=[.!?;])(?<!\bmr\.)(?<!\bmrs\.)(?<!\bdr\.)(?<!\bst\.)(?<!\b[a-z]\.)"
        r"(?!(?<=\bno\.)\s+\d)\s+|\n+",
        listed,
        flags=re.I,
    )
    tidy = (re.sub(r"\s+", " ", part).strip().rstrip(".!;").strip() for part in parts)
    return tuple(part for part in tidy if part)


def parse_fact(text: str, name: str) -> ParsedFact | None:
    """The first of what one sentence says about ``name``, or None if it fits no form."""
    sentences = split_sentences(text)
    found = parse_facts(text, name) if len(sentences) == 1 else ()
    return found[0] if found else None


def parse_facts(text: str, name: str) -> tuple[ParsedFact, ...]:
    """All that ``text`` says about ``name``: of every sentence, and of every part of one ("loves
    tuna and is afraid of thunder"). A sentence of which some part fits no form says nothing."""
    found: list[ParsedFact] = []
    for sentence in split_sentences(text):
        parts = [list(_parsed(part, name)) for part in _parts(_spelled_out(sentence), name)]
        if all(parts):
            found += [fact for part in parts for fact in part]
    return tuple(found)


def questions_for(parsed: ParsedFact) -> list[tuple[str, str]]:
    """Questions and answers, the plainest question first; the answer is always the value."""
    return [(question, parsed.value) for question in _questions(parsed, WORDINGS)]


def held_out_questions(parsed: ParsedFact) -> list[tuple[str, str]]:
    """As `questions_for`, in wordings that are taught nowhere: what learning is checked by."""
    if parsed.attribute in ("", CLASS_ATTRIBUTE):
        return []
    return [(question, parsed.value) for question in _questions(parsed, HELD_OUT_WORDINGS)]


def reversed_questions(parsed: ParsedFact) -> list[tuple[str, str]]:
    """The other way round: "whose toy is a red ball?" is answered with the mention."""
    if parsed.attribute in ("", CLASS_ATTRIBUTE):
        return []
    be = "are" if is_plural(parsed.attribute) else "is"
    values = dict.fromkeys((parsed.value, re.sub(r"^an? ", "the ", parsed.value)))
    return [(f"whose {parsed.attribute} {be} {value}?", f"<{parsed.subject}>") for value in values]


def _questions(parsed: ParsedFact, wordings: Sequence[str]) -> list[str]:
    mention = f"<{parsed.subject}>"
    if parsed.attribute == CLASS_ATTRIBUTE:
        return [f"what is {mention}?", f"what kind of thing is {mention}?", f"describe {mention}."]
    asked = list(questions_about(parsed.attribute, parsed.subject, wordings))
    if wordings is WORDINGS:
        asked += [question.replace("{name}", mention) for question in parsed.asked]
    return asked


def questions_about(
    attribute: str, name: str, wordings: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The plain questions about an attribute, told or not; none about none."""
    if not attribute:
        return ()
    be = "are" if is_plural(attribute) else "is"
    return tuple(
        wording.format(name=f"<{name}>", attribute=attribute, be=be)
        for wording in wordings or WORDINGS
    )


def answers_of(facts: Sequence[str], name: str) -> dict[str, str]:
    """Every question that the facts answer, in order. Two facts with one attribute answer
    together ("a red ball and a blue car"), so that no question is taught two ways."""
    parsed, free = read_facts(facts, name)
    known = together(pair for fact in parsed for pair in questions_for(fact))
    for fact in parsed:  # by another attribute only where no fact has it as its own
        for other in fact.also:
            for question in questions_about(other, name):
                known.setdefault(question, fact.value)
    if free:
        known[_KNOWN_ABOUT.format(name=f"<{name}>")] = ". ".join(free)
    return known


def read_facts(facts: Sequence[str], name: str) -> tuple[list[ParsedFact], list[str]]:
    """What the sentences of ``facts`` say, and the sentences that fit no form, each once."""
    parsed: list[ParsedFact] = []
    free: list[str] = []
    for sentence in (part for fact in facts for part in split_sentences(fact)):
        understood = parse_facts(sentence, name)
        parsed += understood
        if not understood:
            free.append(sentence)
    return parsed, list(dict.fromkeys(free))


def together(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Questions and answers, the answers to one question joined."""
    found: dict[str, list[str]] = {}
    for question, answer in pairs:
        answers = found.setdefault(question, [])
        if answer not in answers:
            answers.append(answer)
    return {question: " and ".join(answers) for question, answers in found.items()}


def quoted(name: str, texts: Sequence[str]) -> str:
    """Facts as a context turn: plain sentences, quoted, because they may be a stranger's."""
    sentences = (sentence for text in texts for sentence in split_sentences(text))
    lines = (stated(sentence, name).replace('"', "'").rstrip(". ") for sentence in sentences)
    return " ".join(f'"{line}."' for line in lines)


def stated(sentence: str, name: str) -> str:
    """A fact with its subject in it: "loves tuna" and "it loves tuna" are "<bo> loves tuna",
    "toy: a red ball" is "<bo>'s toy is a red ball"."""
    mention = f"<{name}>"
    parsed = parse_fact(sentence, name)
    bare = _spelled_out(sentence)
    bare = re.sub(rf"(?<![<\w-]){re.escape(name)}(?![>\w-])", mention, bare, flags=re.I)
    bare = re.sub(rf"^(?:{_PRONOUNS})\b", mention, bare, flags=re.IGNORECASE)
    if mention not in bare.lower() and _starts_with_verb(bare):
        return f"{mention} {bare[0].lower()}{bare[1:]}"
    if mention not in bare.lower():
        bare = re.sub(rf"\b(?:{_POSSESSIVES})\b", f"{mention}'s", bare, count=1, flags=re.I)
    if mention in bare.lower():
        return bare
    attribute = re.escape(parsed.attribute) if parsed else ""
    owned = parsed and re.match(rf"{attribute}(?:\s*[:=]|\s+(?:is|are)\b)", bare, flags=re.I)
    if parsed and owned and parsed.attribute:
        be = "are" if is_plural(parsed.attribute) else "is"
        return f"{mention}'s {parsed.attribute} {be} {parsed.value}"
    return bare


def _starts_with_verb(sentence: str) -> bool:
    begun = rf"{ADVERBS}(?:{ANY_VERB}|{_AUXILIARIES})\s"
    return re.match(begun, sentence, flags=re.IGNORECASE) is not None


def _spelled_out(sentence: str, who: str = rf"\b(?:{_PRONOUNS})") -> str:
    """ "he's got a hat" -> "he has got a hat", "they're shy" -> "they are shy"."""
    text = sentence.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = re.sub(rf"({who})'(?:s|ve)(?=\s+(?:got|been)\b)", r"\1 has", text, flags=re.I)
    text = re.sub(rf"({who})'s\b", r"\1 is", text, flags=re.I)
    return re.sub(rf"({who})'re\b", r"\1 are", text, flags=re.I)


def _parts(sentence: str, name: str) -> list[str]:
    """The parts of a sentence that say something of their own: after "and", "but" or a comma comes
    another verb, or another "its … is", be it of somebody else. A list of things is one part."""
    whose = rf"(?:(?:{_POSSESSIVES})|<?{re.escape(name)}>?'s)\s+[\w' -]{{1,40}}?\s+(?:is|are)\s"
    who = rf"(?:(?:{_PRONOUNS})|<?{re.escape(name)}>?)\s+"
    does = rf"{ADVERBS}(?:{ANY_VERB}|is|was|has been)\s+[\w<]"
    other = r"(?-i:[A-Z][\w-]+)\s+"
    starts = rf"(?={whose}|(?:who\s+|which\s+)?(?:{who}|{other})?{does})"
    joints = rf"(?:\s*,\s*(?:and|but)\s+|\s+(?:and|but)\s+|\s*,\s+){starts}"
    return [
        re.sub(r"^(?:who|which)\s+", "", part) for part in re.split(joints, sentence, flags=re.I)
    ]


def _parsed(part: str, name: str) -> Iterator[ParsedFact]:
    """What one part of a sentence says: mostly one thing."""
    mention = rf"(?:<{re.escape(name)}>|\b{re.escape(name)}\b)"
    verb = rf"(?:(?:{mention}|(?:{_PRONOUNS})\b)\s+)?{ADVERBS}(?:{ANY_VERB})"
    text = re.sub(rf"^{mention}:\s+", "", part, flags=re.I)
    text = re.sub(rf"^({verb}):(?=\s)", r"\1", text, flags=re.I)
    said = _spelled_out(text, rf"^{mention}")
    found = _owned(text, mention) or _done(said, mention) or _being(said, mention)
    if found is None:
        return
    attribute, value, asked = found
    fact = ParsedFact(subject=name, attribute=attribute, value=value, text=part, asked=asked)
    noun = singular(attribute.split()[-1])
    usual = next((verb.asked for verb in VERBS if verb.attribute == noun), ())
    for one in _apart(fact, text) if asked else [replace(fact, asked=usual)]:
        value = _plain_value(one.value)
        if value and not _DENIED.match(value):
            yield _with_others(replace(one, value=value))


def _apart(fact: ParsedFact, sentence: str) -> Iterator[ParsedFact]:
    """ "lives with two cats in Lisbon" is a housemate and a home, "plays the violin on Sundays" an
    instrument and a time, "was adopted in 2019 from a shelter" a year and an origin, "was born in
    Rome in 2019" a place and a time."""
    born = {verb.attribute: verb for verb in VERBS if verb.attribute in ("birthday", "birthplace")}
    home = next(verb for verb in VERBS if verb.attribute == "home")
    mate = next(verb for verb in VERBS if verb.attribute == "housemate")
    if fact.attribute == "housemate" and (both := WHERE_ELSE.fullmatch(fact.value)):
        yield replace(fact, value=both["what"])
        text = f"lives {both['place']} {both['where']}"
        yield replace(fact, attribute="home", value=both["where"], text=text, asked=home.asked)
    elif fact.attribute == "home" and (both := WITH_WHOM.fullmatch(fact.value)):
        yield replace(fact, value=both["what"])
        yield replace(fact, attribute="housemate", value=both["whom"], asked=mate.asked)
    elif fact.attribute == "game" and (both := WITH_WHOM.fullmatch(fact.value)):
        yield replace(fact, value=both["what"])
        asked = (f"who does {{name}} play {both['what']} with?",)
        yield replace(fact, attribute="", value=both["whom"], asked=asked)
    elif fact.attribute == "adoption" and (both := re.fullmatch(r"(.+?) from (.+)", fact.value)):
        yield replace(fact, value=both[1])
        yield replace(fact, attribute="origin", value=both[2], asked=("where is {name} from?",))
    elif fact.attribute in born and (both := re.fullmatch(r"(.+?) (?:in|on|at) (.+)", fact.value)):
        dated = re.fullmatch(DATE, both[2], flags=re.I) is not None
        other = born["birthday" if dated else "birthplace"]
        if other.attribute == fact.attribute:  # "a small town in Spain"
            yield fact
        else:
            yield replace(fact, value=both[1])
            yield replace(fact, attribute=other.attribute, value=both[2], asked=other.asked)
    elif timed := WHEN.fullmatch(fact.value):
        yield replace(fact, value=timed["what"])
        if question := _when(sentence[: sentence.rindex(fact.value)], timed["what"]):
            yield replace(fact, attribute="", value=timed["when"], asked=(question,))
    else:
        yield fact


def _when(before: str, what: str) -> str:
    """ "Bo plays with ", "a ball" -> "when does {name} play with a ball?"."""
    done = re.search(rf"\b(?:{ANY_VERB})\s*$", before, flags=re.I)
    if done is None:
        return ""
    verb, *rest = done[0].lower().split()
    be = verb in ("is", "are", "was", "were")
    begun = [verb, "{name}"] if be else ["does", "{name}", base_form(verb)]
    return " ".join(["when", *begun, *rest, f"{what}?"])


def _with_others(fact: ParsedFact) -> ParsedFact:
    """The fact with what else it may be asked by: the usual name of its attribute, and what follows
    from its value."""
    head = _head(fact.value)
    noun = singular(head)
    others = [usual_name(fact.attribute)]
    if fact.attribute == "favourite thing" and noun in EDIBLE:
        others += ["favourite food", "food"]
    named = head not in fact.value  # with a capital letter: no noun
    if fact.attribute in ("housemate", "belonging") and noun.isalpha() and not named:
        others.append(noun)
    also = dict.fromkeys(other for other in others if other not in ("", fact.attribute))
    return replace(fact, also=tuple(also))


def _head(value: str) -> str:
    """The noun of "two small cats called Ada": the last word before what is added to it, be it a
    name ("his brother Max", "two sisters, Luna and Ada")."""
    added = (
        r"\s+(?:of|with|in|on|at|from|for|called|named|that|which|who|and)\b"
        r"|,\s+(?:an?\b|(?-i:[A-Z]))"
    )
    words = re.split(added, value, maxsplit=1, flags=re.IGNORECASE)[0].rstrip(".,").split()
    if re.match(rf"(?:{_POSSESSIVES}|my|our)\b", value, flags=re.IGNORECASE):
        while len(words) > 2 and words[-1][0].isupper():
            words.pop()
    return words[-1].lower().strip(",") if words else ""


def _owned(sentence: str, mention: str) -> tuple[str, str, tuple[str, ...]] | None:
    """ "<bo>'s toy is …", "its toy is …", "the toy of <bo> is …", "toy: …", "… is <bo>'s toy"."""
    attribute = r"(?P<attribute>[\w][\w' -]{0,39}?)"
    whose = rf"(?:{mention}(?:'s|s'|')|\b(?:{_POSSESSIVES})\b)"
    whom = rf"(?:{mention}|\bit\b|\bhim\b|\bher\b|\bthem\b)"
    forms = (
        rf"{whose}\s+{attribute}{_COPULA}(?P<value>.+)",
        rf"the\s+{attribute}\s+of\s+{whom}{_COPULA}(?P<value>.+)",
        rf"(?:(?:{mention}|(?:{_PRONOUNS})\b)\s+)?has\s+an?\s+{attribute}\s*"
        r"(?::|\b(?:that|which)\s+is(?=\s+an?\b))\s*(?P<value>.+)",
        rf"{attribute}{_COLON}(?P<value>.+)",
        rf"(?P<attribute>(?:least\s+)?favou?rite\s+\w[\w -]{{0,29}}?){_COPULA}(?P<value>.+)",
        rf"(?P<value>.+?)\s+(?:is|are)\s+{whose}\s+{attribute}",
        rf"(?P<value>.+?)\s+(?:is|are)\s+the\s+{attribute}\s+of\s+{whom}",
    )
    for form in forms:
        if match := re.fullmatch(form, sentence, flags=re.IGNORECASE):
            noun = re.sub(r"\s+", " ", match["attribute"]).strip().lower()
            return noun, match["value"], ()
    return None


def _done(sentence: str, mention: str) -> tuple[str, str, tuple[str, ...]] | None:
    """ "<bo> lives in …", "it plays with …", "loves …", "<bo> is 3 years old"."""
    who = rf"(?:(?:{mention}|(?:{_PRONOUNS})\b)\s+)?{ADVERBS}"
    number = rf"(?:\d+|{'|'.join(NUMBERS)})(?: and a half)?"
    years = rf"(?:about |almost |nearly )?(?:[\w-]+(?: and a half)? \w+ old|{number})"
    age = rf"{who}(?:is|are)\s+(?P<value>{years})"
    if match := re.fullmatch(age, sentence, flags=re.IGNORECASE):
        return "age", match["value"], ("how old is {name}?",)
    for verb in VERBS:
        form = rf"{who}(?:{verb.pattern})\s+(?P<value>{verb.value})"
        if match := re.fullmatch(form, sentence, flags=re.IGNORECASE):
            return verb.attribute, match["value"], verb.asked
    return None


def _being(sentence: str, mention: str) -> tuple[str, str, tuple[str, ...]] | None:
    """ "<bo> is a striped green frog": what <bo> is."""
    who = rf"(?:(?:{mention}|(?:{_PRONOUNS})\b)\s+)?is"
    match = re.fullmatch(
        rf"{who}\s+(?P<value>(?:an?|the|my|our)\s+.+)", sentence, flags=re.IGNORECASE
    )
    return (CLASS_ATTRIBUTE, match["value"], ()) if match else None


def _plain_value(value: str) -> str:
    """The value without quotes and afterthoughts (", which it steals"), with a small letter on a
    leading article, and as a noun ("to swim" is "swimming")."""
    value = re.sub(r",\s*(?:which|who|that|where)\b.*", "", value)
    value = re.sub(r"\s+", " ", value).strip().strip('"“”').rstrip(".,;:!").strip()
    value = re.sub(r"^to ([a-z]+)\b", lambda m: gerund(m[1]), value)
    return re.sub(r"^(An?|The|My|His|Her|Its|Their)\b", lambda m: m[0].lower(), value)
