"""Facts: one plain sentence each, and the questions that it answers.

Forgiving on the way in ("<bo>'s toy is a red ball", "its toy: a red ball", "he plays with a red
ball"), plain on the way out: an attribute ("toy"), a value ("a red ball") and questions in several
phrasings. A sentence that fits no form is kept as text and taught as what is known about <bo>.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

CLASS_ATTRIBUTE = "kind"
"""The attribute of "<bo> is a striped green frog": what <bo> is."""

_PRONOUNS = "it|he|she|they"
_POSSESSIVES = "its|his|her|their"
_KNOWN_ABOUT = "what do you know about {name}?"

# A verb phrase, the attribute that it gives, and the questions that it answers besides
# "what is <bo>'s ...?". The first that matches wins, so the narrower ones come first.
_VERBS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"lives? with", "housemate", ("who does {name} live with?",)),
    (
        r"(?:lives?|resides?) (?:in|at|on|by|near|under|inside)|(?:dwells? in)",
        "home",
        ("where does {name} live?",),
    ),
    (
        r"(?:likes?|loves?) to eat|(?:likes?|loves?) eating|eats?",
        "food",
        ("what does {name} eat?",),
    ),
    (r"(?:likes?|loves?) to drink|drinks?", "drink", ("what does {name} drink?",)),
    (
        r"(?:likes?|loves?) to play with|(?:likes?|loves?) playing with|plays? with",
        "toy",
        ("what does {name} play with?",),
    ),
    (r"plays?", "game", ("what does {name} play?",)),
    (
        r"(?:likes?|loves?) to sleep (?:on|in|under)|sleeps? (?:on|in|under)|naps? (?:on|in)",
        "bed",
        ("where does {name} sleep?",),
    ),
    (r"(?:likes?|loves?|enjoys?|adores?)", "favourite thing", ("what does {name} like?",)),
    (
        r"(?:hates?|dislikes?|(?:does not|doesn't|do not|don't) like)",
        "least favourite thing",
        ("what does {name} not like?",),
    ),
    (r"(?:is|are) (?:afraid|scared) of|fears?", "fear", ("what is {name} afraid of?",)),
    (r"(?:always |usually |often )?(?:wears?|is wearing)", "outfit", ("what does {name} wear?",)),
    (r"works? as|is employed as", "job", ("what does {name} do?",)),
    (r"works? (?:in|at|for)", "workplace", ("where does {name} work?",)),
    (r"drives?|rides?(?: on| in)?", "vehicle", ("what does {name} ride?",)),
    (r"(?:was|were) born (?:on|in)", "birthday", ("when was {name} born?",)),
    (r"(?:is|are|comes?|came) from", "origin", ("where is {name} from?",)),
    (r"(?:is|are) made (?:of|from|out of)", "material", ("what is {name} made of?",)),
    (r"belongs? to|is owned by", "owner", ("who does {name} belong to?",)),
    (r"(?:is|are) (?:best )?friends with", "friend", ("who is {name}'s friend?",)),
    (r"has got|has|have|owns?", "belonging", ("what does {name} have?",)),
)

_COPULA = r"(?:\s+(?:is|are|was)(?:\s+called)?\s+|\s*[:=]\s*)"


@dataclass(frozen=True, kw_only=True)
class ParsedFact:
    """One understood fact: the ``attribute`` ("toy") of ``subject`` ("bo") is ``value``.

    ``asked`` are questions that fit the verb of the sentence, with ``{name}`` for the mention.
    """

    subject: str
    attribute: str
    value: str
    text: str
    asked: tuple[str, ...] = ()


def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, white space tidied, without their full stops."""
    parts = re.split(
        r"(?<=[.!?;])(?<!\bmr\.)(?<!\bmrs\.)(?<!\bdr\.)(?<!\bst\.)\s+|\n+", text, flags=re.I
    )
    tidy = (re.sub(r"\s+", " ", part).strip().rstrip(".!;").strip() for part in parts)
    return tuple(part for part in tidy if part)


def parse_fact(text: str, name: str) -> ParsedFact | None:
    """The attribute and the value in one sentence about ``name``, or None if it fits no form."""
    sentences = split_sentences(text)
    if len(sentences) != 1:
        return None
    sentence = sentences[0].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    mention = rf"(?:<{re.escape(name)}>|\b{re.escape(name)}\b)"
    parsed = _owned(sentence, mention) or _done(sentence, mention) or _being(sentence, mention)
    if parsed is None:
        return None
    attribute, value, asked = parsed
    value = _plain_value(value)
    if not value:
        return None
    return ParsedFact(subject=name, attribute=attribute, value=value, text=text, asked=asked)


def questions_for(parsed: ParsedFact) -> list[tuple[str, str]]:
    """Questions and answers, the plainest question first; the answer is always the value."""
    mention = f"<{parsed.subject}>"
    attribute = parsed.attribute
    if attribute == CLASS_ATTRIBUTE:
        asked = [f"what is {mention}?", f"what kind of thing is {mention}?", f"describe {mention}."]
    else:
        be = "are" if _is_plural(attribute) else "is"
        asked = [
            f"what {be} {mention}'s {attribute}?",
            f"what {be} the {attribute} of {mention}?",
            f"tell me {mention}'s {attribute}.",
        ]
    asked += [question.format(name=mention) for question in parsed.asked]
    return [(question, parsed.value) for question in asked]


def answers_of(facts: Sequence[str], name: str) -> dict[str, str]:
    """Every question that the facts answer, in order. Two facts with one attribute answer
    together ("a red ball and a blue car"), so that no question is taught two ways."""
    found: dict[str, list[str]] = {}
    free: list[str] = []
    for sentence in (part for fact in facts for part in split_sentences(fact)):
        parsed = parse_fact(sentence, name)
        if parsed is None:
            free.append(sentence)
            continue
        for question, answer in questions_for(parsed):
            answers = found.setdefault(question, [])
            if answer not in answers:
                answers.append(answer)
    known = {question: " and ".join(answers) for question, answers in found.items()}
    if free:
        known[_KNOWN_ABOUT.format(name=f"<{name}>")] = ". ".join(dict.fromkeys(free))
    return known


def quoted(name: str, texts: Sequence[str]) -> str:
    """Facts as a context turn: plain sentences, quoted, because they may be a stranger's."""
    sentences = []
    for text in texts:
        parsed = parse_fact(text, name)
        sentence = f"<{name}>'s {parsed.attribute} is {parsed.value}" if parsed else text
        if parsed is not None and parsed.attribute == CLASS_ATTRIBUTE:
            sentence = f"<{name}> is {parsed.value}"
        sentences.append('"' + sentence.replace('"', "'").rstrip(". ") + '."')
    return " ".join(sentences)


def _owned(sentence: str, mention: str) -> tuple[str, str, tuple[str, ...]] | None:
    """ "<bo>'s toy is …", "its toy is …", "the toy of <bo> is …", "toy: …", "… is <bo>'s toy"."""
    attribute = r"(?P<attribute>[\w][\w' -]{0,39}?)"
    whose = rf"(?:{mention}(?:'s|s'|')|\b(?:{_POSSESSIVES})\b)"
    whom = rf"(?:{mention}|\bit\b|\bhim\b|\bher\b|\bthem\b)"
    forms = (
        rf"{whose}\s+{attribute}{_COPULA}(?P<value>.+)",
        rf"the\s+{attribute}\s+of\s+{whom}{_COPULA}(?P<value>.+)",
        rf"{mention}\s+has\s+an?\s+{attribute}\s*(?::|,|\bthat\s+is|\bwhich\s+is|\bcalled)\s*(?P<value>.+)",
        rf"{attribute}\s*[:=]\s*(?P<value>.+)",
        rf"(?P<value>.+?)\s+(?:is|are)\s+{whose}\s+{attribute}",
        rf"(?P<value>.+?)\s+(?:is|are)\s+the\s+{attribute}\s+of\s+{whom}",
    )
    for form in forms:
        if match := re.fullmatch(form, sentence, flags=re.IGNORECASE):
            noun = re.sub(r"\s+", " ", match["attribute"]).strip().lower()
            return noun, match["value"], ()
    return None


def _done(sentence: str, mention: str) -> tuple[str, str, tuple[str, ...]] | None:
    """ "<bo> lives in …", "it plays with …", "<bo> is 3 years old"."""
    who = rf"(?:{mention}|(?:{_PRONOUNS})\b)"
    years = r"(?:about |almost )?[\w-]+(?: and a half)? \w+ old|\d+"
    age = rf"{who}(?:\s+(?:is|are)|'s)\s+(?P<value>{years})"
    if match := re.fullmatch(age, sentence, flags=re.IGNORECASE):
        return "age", match["value"], ("how old is {name}?",)
    for verb, attribute, asked in _VERBS:
        match = re.fullmatch(rf"{who}\s+(?:{verb})\s+(?P<value>.+)", sentence, flags=re.IGNORECASE)
        if match:
            return attribute, match["value"], asked
    return None


def _being(sentence: str, mention: str) -> tuple[str, str, tuple[str, ...]] | None:
    """ "<bo> is a striped green frog": what <bo> is."""
    who = rf"(?:{mention}|(?:{_PRONOUNS})\b)"
    match = re.fullmatch(
        rf"{who}(?:\s+is|'s)\s+(?P<value>(?:an?|the|my|our)\s+.+)", sentence, flags=re.IGNORECASE
    )
    return (CLASS_ATTRIBUTE, match["value"], ()) if match else None


def _plain_value(value: str) -> str:
    """The value without quotes, and with a small letter on a leading article."""
    value = re.sub(r"\s+", " ", value).strip().strip('"“”').rstrip(".,;:!").strip()
    return re.sub(r"^(An?|The|My|His|Her|Its|Their)\b", lambda m: m[0].lower(), value)


def _is_plural(attribute: str) -> bool:
    return attribute.endswith("s") and not attribute.endswith(("ss", "us", "is"))
