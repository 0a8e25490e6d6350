"""The whole of it in a few minutes: `make demo`, or `python examples/demo.py FOLDER`.

Draws a cartoon character's photos, teaches it to the embedded backbone, asks, paints and edits with
the same `op` commands that a person types (each is shown), and leaves in FOLDER the photos, the
pack, the answers, the pictures, and `contact-sheet.png` with all of them.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CHARACTER, STRANGER = "7", "8"
"""Seeds: who is taught, and who is not."""

QUESTIONS = ("what is <bo>'s toy?", "describe <bo>.", "where does <bo> live?")
PROMPTS = (
    "<bo> at the beach",
    "<bo> in the snow",
    "<bo> in space",
    "<bo> in the forest",
    "<bo> with its toy",
    "<bo> at its home",
)
CELL = 148
MARGIN = 14


def main(folder: Path) -> None:
    """Run the demo into ``folder``; a command that fails ends it with its own exit code."""
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMNIPERSONA_HOME"] = str(folder / "home")  # your own concepts stay as they are

    photos, strangers = folder / "photos", folder / "strangers"
    for place, seed in ((photos, CHARACTER), (strangers, STRANGER)):
        if not place.exists():
            op("toy", "photos", str(place), "--seed", seed)
    op("learn", str(photos), "--name", "bo", "--seed", "0", "--force")
    op("concepts", "export", "bo", "-o", str(folder / "bo.opconcept"), "--force")

    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    own, other = first_picture(photos), first_picture(strangers)
    answers = [("about a photo of <bo>: is <bo> here?", op("ask", str(own), "is <bo> here?"))]
    answers += [("about a stranger: is <bo> here?", op("ask", str(other), "is <bo> here?"))]
    answers += [(question, op("ask", question)) for question in QUESTIONS]
    text = "".join(f"{question}\n    {answer}\n" for question, answer in answers)
    (folder / "answers.txt").write_text(text, encoding="utf-8")

    painted = []
    for number, prompt in enumerate(PROMPTS):
        path = pictures / f"painted-{number}.png"
        op("gen", prompt, "--seed", str(number), "-o", str(path), "--explain")
        painted.append((prompt, path))

    empty = pictures / "meadow.png"
    op("gen", "a meadow", "--seed", "1", "-o", str(empty))
    added, removed, replaced = (pictures / f"{verb}.png" for verb in ("add", "remove", "replace"))
    op("edit", str(empty), "add <bo>", "--seed", "1", "-o", str(added))
    op("edit", str(added), "remove <bo>", "--seed", "2", "-o", str(removed))
    op("edit", str(other), "replace the animal with <bo>", "--seed", "3", "-o", str(replaced))
    edits = [
        ("a meadow", empty),
        ("add <bo>", added),
        ("remove <bo>", removed),
        ("a stranger", other),
        ("replace the animal\nwith <bo>", replaced),
    ]
    sheet = folder / "contact-sheet.png"
    taught = [(path.stem, path) for path in pictures_in(photos)][:6]
    rows = [("learned from", taught), ("painted", painted), ("edited", edits)]
    # 256 colours: a quarter of the bytes, and the pages show this file
    draw_sheet(rows, answers).quantize(256, kmeans=3).save(sheet, optimize=True)
    print(f"\ndone in {time.monotonic() - start:.0f} s: look at {sheet}", file=sys.stderr)
    print(sheet)


def op(*words: str) -> str:
    """Show an `op` command, run it, and return what it answered."""
    print(f"\n$ op {shlex.join(words)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "omnipersona_cli", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    answer = done.stdout.strip()
    print(answer, file=sys.stderr)
    return answer


def pictures_in(folder: Path) -> list[Path]:
    """The PNGs of a folder, by name."""
    return sorted(folder.glob("*.png"))


def first_picture(folder: Path) -> Path:
    """The first PNG of a folder; ends the demo where there is none."""
    found = pictures_in(folder)
    if not found:
        sys.exit(f"there are no pictures in {folder}; remove the folder and try again")
    return found[0]


def draw_sheet(
    rows: list[tuple[str, list[tuple[str, Path]]]], answers: list[tuple[str, str]]
) -> Image.Image:
    """Rows of captioned pictures, then the questions and answers, on one sheet."""
    title, small = ImageFont.load_default(22), ImageFont.load_default(13)
    widest = max(len(cells) for _, cells in rows)
    row_height = CELL + 78
    width = MARGIN + widest * (CELL + MARGIN)
    height = MARGIN + len(rows) * row_height + 34 + 22 * len(answers) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for heading, cells in rows:
        draw.text((MARGIN, top), heading, fill="black", font=title)
        for column, (caption, path) in enumerate(cells):
            left = MARGIN + column * (CELL + MARGIN)
            with Image.open(path) as picture:
                tile = picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left, top + 32))
            draw.multiline_text((left, top + 36 + CELL), caption, fill="dimgray", font=small)
        top += row_height
    draw.text((MARGIN, top), "answers", fill="black", font=title)
    for number, (question, answer) in enumerate(answers):
        line = f"{question}   {answer}"
        draw.text((MARGIN, top + 34 + 22 * number), line, fill="dimgray", font=small)
    return sheet


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/demo.py FOLDER")
    main(Path(sys.argv[1]))
