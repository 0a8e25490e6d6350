"""What MkDocs calls while it builds: generated parts, equations and drawings of a page.

In a page's Markdown

- ``<!-- generated: NAME -->`` is replaced by the part of that name (`PARTS`),
- a fence of the language ``math`` and ``$`…`$`` by MathML, which browsers draw without a script,
- ``![caption](images/NAME.svg)`` by the drawing itself, so that it takes the colours of the page.

GitHub shows the same sources: it knows both forms of equations.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import backend_part
import command_part
import error_part
from latex2mathml.converter import convert

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent.parent

PARTS: Mapping[str, Callable[[], str]] = {
    "commands": command_part.commands,
    "exit-codes": error_part.exit_codes,
    "errors": error_part.errors,
    "backends": backend_part.table,
    "backend-notes": backend_part.notes,
    "cards": backend_part.cards,
    "judges": backend_part.judges,
}
"""Name -> the Markdown that stands in its place."""

SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme would fetch so that search works in pages that are opened from a folder."""

_GENERATED = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$\n?",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"\$`([^`\n]+)`\$")
_DRAWING = re.compile(r"^!\[([^\]]*)\]\((images/[\w-]+\.svg)\)$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """The page with its generated parts; equations and drawings leave a mark that
    `on_page_content` finds, so that Markdown does not read what is in them."""
    held: list[str] = []

    def hold(text: str) -> str:
        held.append(text)
        return f"held{len(held) - 1}back"

    def inline(match: re.Match[str]) -> str:
        return hold(convert(match[1]))

    def drawing(match: re.Match[str]) -> str:
        caption, drawn = html.escape(match[1]), (DOCS / match[2]).read_text(encoding="utf-8")
        figure = f'<figure class="drawing">{drawn}<figcaption>{caption}</figcaption></figure>'
        return f"\n{hold(figure)}\n"

    def prose(part: str) -> str:
        return _DRAWING.sub(drawing, _INLINE.sub(inline, part))

    text = _GENERATED.sub(lambda match: PARTS[match[1]](), markdown)
    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces.append(prose(text[end : fence.start()]))
        end = fence.end()
        if fence["language"] == "math":
            mathml = convert(" ".join(fence["body"].split()), display="block")
            mark = hold(f'<div class="equation">{mathml}</div>')
            pieces.append(f"\n{fence['indent']}{mark}\n")
        else:
            pieces.append(fence[0])
    pieces.append(prose(text[end:]))
    page.meta["held"] = held
    return "".join(pieces)


def on_page_content(content: str, *, page: Page, **_: object) -> str:
    """The page with what was held back."""
    held: list[str] = page.meta.get("held", [])

    def put_back(match: re.Match[str]) -> str:
        return held[int(match[1])]

    content = re.sub(r"<p>held(\d+)back</p>", put_back, content)
    return re.sub(r"held(\d+)back", put_back, content)


def on_post_page(output: str, **_: object) -> str:
    """The page with our own stand-in for a worker, where the theme would fetch one."""
    return output.replace(SHIM, "js/worker.js")


def on_post_template(output_content: str, **_: object) -> str:
    """The same for the page that says that there is none."""
    return output_content.replace(SHIM, "js/worker.js")
