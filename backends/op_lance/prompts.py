"""The chat template around pictures and requests.

Source: Lance release (arXiv 2605.18678), inference code. It tokenises the filled template whole and
then looks for the prompt in it; here the parts are tokenised apart, at line ends and special
tokens, so that it is known which rows are the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from op_bagel.config import SpecialTokens

PAINTING = (
    "Describe the image by detailing the color, quantity, text, shape, size, texture, "
    "spatial relationships of the objects and background:"
)
EDITING = (
    "Describe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user\u2019s text instruction should alter or modify the "
    "image. Generate a new image that meets the user\u2019s requirements while maintaining "
    "consistency with the original input where appropriate."
)
LOOKING = "Look at the image carefully and answer the question."
TALKING = "You are a helpful assistant."
"""The release answers about pictures only; this is what the language model itself was taught."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """Token ids of what does not change: the start of the system turn; for each task what it says
    after the concepts, up to where the user's turn begins; what stands between that turn and the
    answer, and the answer's end."""

    system: tuple[int, ...]
    painting: tuple[int, ...]
    editing: tuple[int, ...]
    looking: tuple[int, ...]
    talking: tuple[int, ...]
    assistant: tuple[int, ...]
    end: int


def template(encode: Callable[[str], list[int]], special: SpecialTokens) -> Template:
    """The template in the ids of a tokenizer whose ``encode`` adds nothing."""
    start, end = special.bos_token_id, special.eos_token_id
    between = (end, *encode("\n"), start)
    user = (*between, *encode("user\n"))
    return Template(
        system=(start, *encode("system\n")),
        painting=(*encode(PAINTING), *user),
        editing=(*encode(EDITING), *user),
        looking=(*encode(LOOKING), *user),
        talking=(*encode(TALKING), *user),
        assistant=(*between, *encode("assistant\n")),
        end=end,
    )
