"""Verbs of facts: what "<bo> lives in Lisbon" says of <bo>, and the questions that it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

_IN = "in|at|on|by|near|under|inside|next to|close to"

NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()


@dataclass(frozen=True, kw_only=True)
class Verb:
    """``pattern`` is the verb as a fact has it ("lives? in"), ``attribute`` what its object is
    ("home"), ``asked`` the questions besides "what is <bo>'s home?", with ``{name}``. ``value`` is
    what the object looks like."""

    pattern: str
    attribute: str
    asked: tuple[str, ...]
    value: str = ".+"


def _verb(pattern: str, attribute: str, *asked: str, value: str = ".+") -> Verb:
    return Verb(pattern=pattern, attribute=attribute, asked=asked, value=value)


_THING = r"(?!(?:at|on|in|into|from|to|with|before|after|every|out of|once|twice|a lot(?! of))\b).+"
"""Not where, when or how: "eats at noon", "plays in the garden", "eats a lot"."""

_OWNED = (
    r"(?!(?:to|been|had|seen|gone|won|lost|never|always|already|just)\b"
    r"|\w+ed (?:in|on|at|by|near|with|to|from|for)\b).+"
)
"""Not what was done: "has been to Paris", "has lived with us"."""

_MONTH = (
    r"(?:january|february|march|april|may|june|july|august|september|october|november|december)"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
DATE = rf"(?:the |a )?(?:\d|{_MONTH}\b|\w+day\b|(?:spring|summer|autumn|winter)\b).*"
"""A day, a month or a year: "3 May 2019", "June"."""

VERBS: tuple[Verb, ...] = (
    _verb(r"lives? (?:together )?with", "housemate", "who does {name} live with?"),
    _verb(
        rf"(?:lives?|resides?|dwells?) (?:{_IN})|has lived (?:{_IN})|is at home (?:{_IN})",
        "home",
        "where does {name} live?",
        "where is {name} at home?",
    ),
    _verb(
        r"(?:likes?|loves?) (?:to eat|eating)|eats?|feeds on",
        "food",
        "what does {name} eat?",
        "what does {name} like to eat?",
        value=_THING,
    ),
    _verb(
        r"(?:likes?|loves?) (?:to drink|drinking)|drinks?",
        "drink",
        "what does {name} drink?",
        "what does {name} like to drink?",
        value=_THING,
    ),
    _verb(
        r"(?:likes?|loves?) (?:to play|playing) with|plays? with",
        "toy",
        "what does {name} play with?",
        "what is {name} playing with?",
    ),
    _verb(
        r"(?:can play|plays?|(?:likes?|loves?) (?:to play|playing)|learns to play)(?= the| an? )",
        "instrument",
        "what does {name} play?",
        "which instrument does {name} play?",
        "what instrument does {name} play?",
    ),
    _verb(
        r"can play|plays?|(?:likes?|loves?) (?:to play|playing)",
        "game",
        "what does {name} play?",
        value=_THING,
    ),
    _verb(
        r"(?:(?:likes?|loves?) (?:to sleep|sleeping|to nap)|sleeps?|naps?) (?:on|in|under)",
        "bed",
        "where does {name} sleep?",
    ),
    _verb(
        r"(?:is|are) (?:fond of|mad about|crazy about|into)|likes?|loves?|enjoys?|adores?",
        "favourite thing",
        "what does {name} like?",
        "what does {name} love?",
        "what does {name} enjoy?",
    ),
    _verb(
        r"hates?|dislikes?|(?:does not|doesn't|do not|don't) (?:like|love|enjoy)"
        r"|(?:can't|cannot|can not) stand",
        "least favourite thing",
        "what does {name} not like?",
        "what does {name} hate?",
    ),
    _verb(
        r"(?:is|are) (?:afraid|scared|frightened|terrified) of|fears?",
        "fear",
        "what is {name} afraid of?",
        "what does {name} fear?",
    ),
    _verb(r"(?:is|are) allergic to", "allergy", "what is {name} allergic to?"),
    _verb(r"(?:is|are) (?:very |really )?good at", "talent", "what is {name} good at?"),
    _verb(r"wears?|is wearing", "outfit", "what does {name} wear?", value=_THING),
    _verb(r"works? as|is employed as", "job", "what does {name} do?", "what does {name} work as?"),
    _verb(r"works? (?:in|at|for)", "workplace", "where does {name} work?"),
    _verb(r"stud(?:y|ies)", "subject", "what does {name} study?"),
    _verb(
        r"speaks?",
        "language",
        "what does {name} speak?",
        "which language does {name} speak?",
        "what language does {name} speak?",
    ),
    _verb(r"collects?", "collection", "what does {name} collect?"),
    _verb(r"supports?|is a fan of", "team", "who does {name} support?"),
    _verb(r"listens? to", "music", "what does {name} listen to?"),
    _verb(r"reads?", "book", "what does {name} read?", value=_THING),
    _verb(r"watches", "show", "what does {name} watch?", value=_THING),
    _verb(r"dreams? of", "dream", "what does {name} dream of?"),
    _verb(r"chases?", "prey", "what does {name} chase?"),
    _verb(r"drives?|rides?(?: on| in)?", "vehicle", "what does {name} ride?", value=_THING),
    _verb(
        rf"(?:(?:was|were) )?born(?: on| in|(?= {DATE}))",
        "birthday",
        "when was {name} born?",
        value=DATE,
    ),
    _verb(r"(?:(?:was|were) )?born (?:in|at|on|near)", "birthplace", "where was {name} born?"),
    _verb(r"(?:(?:was|were|got) )?adopted (?:in|on)", "adoption", "when was {name} adopted?"),
    _verb(r"(?:is|are|comes?|came|was adopted) from|grew up in", "origin", "where is {name} from?"),
    _verb(r"(?:is|are) made (?:of|from|out of)", "material", "what is {name} made of?"),
    _verb(r"belongs? to|is owned by", "owner", "who does {name} belong to?"),
    _verb(r"(?:is|are) (?:best )?friends with", "friend", "who is {name}'s friend?"),
    _verb(r"(?:is|are) married to", "partner", "who is {name} married to?"),
    _verb(r"(?:is|are) (?:called|nicknamed)|goes by", "nickname", "what is {name} called?"),
    _verb(r"weighs?", "weight", "how much does {name} weigh?"),
    _verb(r"has got|has|have|owns?", "belonging", "what does {name} have?", value=_OWNED),
)
"""The first that matches wins, so the narrower ones come first."""

ANY_VERB = "|".join(f"(?:{verb.pattern})" for verb in VERBS)
ADVERBS = (
    r"(?:(?:also|always|usually|often|sometimes|really|absolutely|still|now|only|just"
    r"|mostly|secretly)\s+)?"
)

WHEN = re.compile(
    r"(?P<what>.+?)\s+(?P<when>(?:(?:on|in|at|during|after|before|every|each)\s+)"
    r"(?:the\s+|its\s+|a\s+)?(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|weekends?|mornings?"
    r"|afternoons?|evenings?|nights?|days?|weeks?|summers?|winters?|autumns?|springs?|noon|midnight"
    rf"|breakfast|lunch|dinner|christmas|{_MONTH}(?:\s+{_DAY})?|{_DAY}(?:\s+of)?\s+{_MONTH})"
    r"(?:\s+(?:mornings?|afternoons?|evenings?|nights?))?|since\s+\d{4}"
    r"|at\s+(?:\d{1,2}[:.]\d{2}|\d{1,2}\s*o'clock|\d{1,2}(?:[:.]\d{2})?\s*[ap]\.?m\b\.?))",
    re.IGNORECASE,
)
"""A value with a time at its end: "the violin on Sundays"."""

WHERE_ELSE = re.compile(rf"(?P<what>.+?)\s+(?P<place>{_IN})\s+(?P<where>.+)", re.IGNORECASE)
WITH_WHOM = re.compile(r"(?P<what>.+?)\s+(?:together )?with\s+(?P<whom>.+)", re.IGNORECASE)

EDIBLE = frozenset(
    "tuna fish salmon sardine shrimp chicken beef meat sausage ham bacon cheese milk cream butter "
    "yoghurt yogurt egg bread toast cake cookie biscuit pie pizza pasta spaghetti noodle rice "
    "soup salad sushi burger taco curry apple banana berry strawberry blueberry cherry grape "
    "melon watermelon orange lemon mango peach pear plum carrot potato tomato cucumber lettuce "
    "spinach corn pea bean nut peanut walnut honey jam chocolate candy sweet pancake waffle "
    "porridge cereal hay seed treat kibble bone ham donut doughnut muffin ice-cream".split()
)
"""What somebody loves and eats: "loves tuna" is also a favourite food."""


def base_form(verb: str) -> str:
    """ "plays" -> "play", "watches" -> "watch", "studies" -> "study"."""
    if verb == "has":
        return "have"
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh")):
        if verb.endswith(ending):
            return verb.removesuffix(ending) + instead
    return verb[:-1] if verb.endswith("s") and not verb.endswith("ss") else verb


def gerund(verb: str) -> str:
    """ "swim" -> "swimming", "chase" -> "chasing", "play" -> "playing"."""
    if verb.endswith("ie"):
        return f"{verb[:-2]}ying"
    if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", verb):
        return f"{verb}{verb[-1]}ing"
    silent = len(verb) > 2 and re.search(r"[^eoy]e$", verb)
    return f"{verb[:-1] if silent else verb}ing"
