"""nano's tokenizer: a small dictionary of words, and bytes for everything else.

It never fails: a word that the dictionary lacks becomes its UTF-8 bytes, and `unknown` names it.
Synonyms share one entry ("bunny" is read as "rabbit"), so that a person's own words mostly work.
Ids: 0..3 special (begin, end, start and end of image), 4..259 bytes, then the words.
"""

from __future__ import annotations

import re

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
FIRST_BYTE = len(SPECIALS)
FIRST_WORD = FIRST_BYTE + 256

WORDS = """
. , ? ! : ; ' " ( ) - / 's _ 0 1 2 3 4 5 6 7 8 9
a an the and or of to in on at by with for from into out off up it its this that these those here
there
is are was be has have had having does do did can could will would should not no yes nothing nobody
i you he she they we me my your his her their our us them him who what which where when why how
cat dog rabbit bear mouse pig frog duck elephant lion deer robot animal character thing somebody
red orange yellow green teal blue purple pink brown black white grey colour
plain spotted striped patched pattern
hat scarf glasses crown flower wearing wears wear worn
beach forest snow city space desert meadow room place background home
ball car boat star box balloon apple cake toy food favourite friend name age
picture photo image cartoon drawing draw paint generate show make see sees look like likes want
please
next beside near holding playing plays play eating eat eats sitting standing walking living lives
live
add put remove take away delete erase insert place bring replace swap change turn give let dress
move now
describe kind called same other another one two three left right middle big small old new happy sad
<sks> question answer request fact know about tell say more very some all many each every only
also just then
""".split()

SAME = {
    synonym: word
    for word, synonyms in {
        "cat": "kitty kitten cats kitties",
        "dog": "puppy doggy pup dogs hound",
        "rabbit": "bunny hare rabbits bunnies",
        "bear": "teddy bears",
        "mouse": "rat mice",
        "pig": "piglet piggy pigs hog",
        "frog": "toad frogs",
        "duck": "bird duckling chick ducks",
        "elephant": "elephants",
        "lion": "lions",
        "deer": "reindeer stag moose",
        "robot": "robots android machine",
        "animal": "creature pet animals",
        "red": "crimson scarlet",
        "orange": "ginger",
        "yellow": "golden gold blond",
        "teal": "turquoise cyan",
        "purple": "violet lilac",
        "pink": "rose",
        "brown": "chestnut",
        "black": "dark",
        "grey": "gray silver",
        "colour": "color colours colors coloured colored",
        "spotted": "dotted spots dots spotty",
        "striped": "stripes stripy",
        "patched": "patches two-tone patchy",
        "plain": "uniform",
        "hat": "cap",
        "scarf": "shawl",
        "glasses": "spectacles goggles sunglasses",
        "crown": "tiara",
        "beach": "seaside shore sea ocean coast sand",
        "forest": "woods wood trees jungle",
        "snow": "winter snowy mountains ice",
        "city": "town street",
        "space": "universe moon stars",
        "desert": "dunes",
        "meadow": "field grass park garden",
        "room": "house indoors inside kitchen bedroom living-room",
        "background": "scene backdrop surroundings",
        "ball": "balls football",
        "car": "automobile truck",
        "boat": "ship sailboat",
        "box": "present gift parcel",
        "balloon": "balloons",
        "cake": "muffin pie",
        "apple": "apples fruit",
        "picture": "pic painting",
        "photo": "photograph",
        "cartoon": "comic",
        "draw": "sketch",
        "paint": "render",
        "generate": "create",
        "favourite": "favorite preferred",
        "food": "meal snack dish",
        "home": "residence",
        "holding": "carrying holds",
        "beside": "besides alongside",
        "playing": "play-with",
        "sitting": "sits sit resting rests rest",
        "standing": "stands stand",
        "walking": "walks walk running runs run visiting visits",
        "remove": "drop",
        "erase": "hide",
        "insert": "include",
        "replace": "substitute exchange",
        "wearing": "sporting",
        "big": "large huge",
        "small": "little tiny",
        "somebody": "someone anybody anyone",
        "thing": "object things",
        "yes": "yeah yep",
        "kind": "sort type species",
    }.items()
    for synonym in synonyms.split()
}

_IDS = {word: FIRST_WORD + i for i, word in enumerate(dict.fromkeys(WORDS))}
_WORDS = {number: word for word, number in _IDS.items()}
VOCABULARY = FIRST_WORD + len(_IDS)
NAME = _IDS["<sks>"]
"""How a mention without tokens is read."""
_PIECES = re.compile(r"'s\b|[^\W\d_]+(?:-[^\W\d_]+)*|\d|[^\w\s]|_")
_NO_SPACE_BEFORE = frozenset(". , ? ! : ; 's ) '".split())


def pieces(text: str) -> list[str]:
    """The words, digits and signs of a text, lower case, synonyms resolved."""
    found: list[str] = []
    for piece in _PIECES.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")):
        word = SAME.get(piece, piece)
        if word not in _IDS and "-" in word:
            found += [SAME.get(part, part) for part in word.split("-")]
        else:
            found.append(word)
    return found


def encode(text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    ids: list[int] = []
    for piece in pieces(text):
        known = _IDS.get(piece)
        if known is not None:
            ids.append(known)
        else:
            ids += [FIRST_BYTE + byte for byte in piece.encode("utf-8", "replace")]
    return ids


def decode(ids: list[int]) -> str:
    """The text of token ids; special tokens are dropped, broken bytes replaced."""
    text, pending = "", b""
    for number in [*ids, -1]:
        if FIRST_BYTE <= number < FIRST_WORD:
            pending += bytes([number - FIRST_BYTE])
            continue
        if pending:
            text += " " + pending.decode("utf-8", "replace")
            pending = b""
        word = _WORDS.get(number)
        if word is not None:
            text += word if word in _NO_SPACE_BEFORE else f" {word}"
    return text.strip()


def unknown(text: str) -> list[str]:
    """The words of a text that are not in the dictionary, in order, each once."""
    return list(dict.fromkeys(p for p in pieces(text) if p not in _IDS and p.isalpha()))
