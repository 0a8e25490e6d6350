"""Pictures of the cartoon world as pixels: everything is drawn by code, from its description."""

from __future__ import annotations

import colorsys
import math
import random

from PIL import Image, ImageChops, ImageDraw

from op_toy.world import COLOURS, Accessory, Character, Composition, Thing

Colour = tuple[int, int, int]


def _rgb(name: str, tint: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Colour:
    hue, saturation, value = COLOURS[name]
    hue = (hue + 0.018 * tint[0]) % 1.0
    saturation = min(1.0, max(0.0, saturation * (1 + 0.10 * tint[1])))
    value = min(1.0, max(0.0, value * (1 + 0.06 * tint[2])))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return (round(red * 255), round(green * 255), round(blue * 255))


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return (red, green, blue)


class _Pen:
    """Draws in a unit square (x right, y down) onto an image, ``scale`` pixels to the unit."""

    def __init__(self, image: Image.Image, scale: float) -> None:
        self.draw = ImageDraw.Draw(image)
        self.scale = scale

    def _at(self, points: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
        return [(x * self.scale, y * self.scale) for x, y in points]

    def disc(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        self.draw.ellipse(self._at(((x - rx, y - ry), (x + rx, y + ry))), fill=fill)

    def box(self, x: float, y: float, rx: float, ry: float, fill: Colour, soft: float = 0) -> None:
        corners = self._at(((x - rx, y - ry), (x + rx, y + ry)))
        self.draw.rounded_rectangle(corners, radius=soft * self.scale, fill=fill)

    def shape(self, fill: Colour, *points: tuple[float, float]) -> None:
        self.draw.polygon(self._at(points), fill=fill)

    def line(self, fill: Colour, width: float, *points: tuple[float, float]) -> None:
        self.draw.line(self._at(points), fill=fill, width=max(1, round(width * self.scale)))

    def arc(self, x: float, y: float, r: float, start: int, end: int, fill: Colour) -> None:
        corners = self._at(((x - r, y - r), (x + r, y + r)))
        self.draw.arc(corners, start, end, fill=fill, width=max(1, round(0.014 * self.scale)))


INK: Colour = (40, 34, 44)


def render(picture: Composition, size: int = 64, *, oversample: int = 3) -> Image.Image:
    """The picture as RGB, ``size`` pixels square."""
    canvas = Image.new("RGB", (size * oversample, size * oversample))
    _scene(canvas, picture)
    for character, x, y, scale in layout(picture):
        _character(canvas, character, x, y, scale)
    if picture.thing is not None:
        side = -1 if picture.place == "right" else 1
        x = 0.5 + side * (0.30 + 0.012 * picture.jitter[0])
        _thing(_Pen(canvas, canvas.width), picture.thing, x, 0.80)
    return canvas.resize((size, size), Image.Resampling.BOX)


def layout(picture: Composition) -> list[tuple[Character, float, float, float]]:
    """Where each character stands: (character, x of its middle, y of its feet, height), units of
    the picture's side."""
    dx, dy, grow = picture.jitter
    shift = {"left": -0.17, "middle": 0.0, "right": 0.17}[picture.place]
    if len(picture.characters) == 2:
        swap = 1 if picture.place == "right" else -1
        return [
            (character, 0.5 + side * swap * 0.24 + 0.012 * dx, 0.95, 0.62 * (1 + 0.03 * grow))
            for character, side in zip(picture.characters, (1, -1), strict=True)
        ]
    height = 0.80 * (1 + 0.05 * grow)
    return [
        (character, 0.5 + shift + 0.02 * dx, 0.94 + 0.012 * dy, height)
        for character in picture.characters
    ]


def subject_mask(picture: Composition, which: int = 0, size: int = 64) -> Image.Image:
    """Where a character is (mode L, white = character), from the drawing itself."""
    masks = []
    for ground in ((255, 0, 255), (0, 255, 0)):
        canvas = Image.new("RGB", (size * 3, size * 3), ground)
        character, x, y, scale = layout(picture)[which]
        _character(canvas, character, x, y, scale)
        masks.append(canvas.resize((size, size), Image.Resampling.BOX))
    apart = ImageChops.difference(*masks).split()
    most = ImageChops.lighter(ImageChops.lighter(apart[0], apart[1]), apart[2])
    return most.point([255] * 128 + [0] * 128)


def _scene(canvas: Image.Image, picture: Composition) -> None:
    pen = _Pen(canvas, canvas.width)
    variant = picture.backdrop
    sky, ground, horizon = {
        "beach": ((150, 215, 245), (240, 215, 150), 0.66),
        "forest": ((185, 225, 190), (72, 120, 62), 0.70),
        "snow": ((200, 220, 240), (246, 250, 255), 0.62),
        "city": ((222, 206, 196), (110, 110, 120), 0.74),
        "space": ((24, 20, 58), (92, 88, 112), 0.80),
        "desert": ((250, 214, 160), (222, 150, 84), 0.66),
        "meadow": ((168, 220, 250), (128, 200, 92), 0.62),
        "room": ((244, 206, 190), (168, 112, 78), 0.74),
    }[picture.scene]
    pen.box(0.5, 0.5, 0.5, 0.5, sky)
    pen.box(0.5, (1 + horizon) / 2, 0.5, (1 - horizon) / 2 + 0.01, ground)

    def flip(x: float) -> float:
        return 1 - x if variant == 1 else x

    if picture.scene == "beach":
        pen.box(0.5, 0.60, 0.5, 0.07, (70, 150, 220))
        pen.disc(flip(0.86), 0.14, 0.09, 0.09, (255, 226, 110))
    elif picture.scene == "forest":
        for x in (0.06, 0.30, 0.70, 0.94):
            pen.box(flip(x), 0.58, 0.025, 0.14, (112, 78, 50))
            pen.shape(
                (40, 110, 66), (flip(x) - 0.15, 0.52), (flip(x) + 0.15, 0.52), (flip(x), 0.05)
            )
    elif picture.scene == "snow":
        pen.shape((172, 192, 220), (flip(0.45), 0.64), (flip(1.05), 0.64), (flip(0.78), 0.18))
        for x, y in ((0.1, 0.15), (0.3, 0.32), (0.5, 0.10), (0.9, 0.08), (0.12, 0.48)):
            pen.disc(flip(x), y, 0.022, 0.022, (255, 255, 255))
    elif picture.scene == "city":
        for x, top, tone in (
            (0.08, 0.30, 150),
            (0.28, 0.14, 128),
            (0.72, 0.22, 140),
            (0.93, 0.08, 120),
        ):
            pen.box(flip(x), (top + 0.74) / 2, 0.10, (0.74 - top) / 2, (tone, tone - 6, tone + 16))
            for row in range(3):
                pen.box(flip(x), top + 0.08 + 0.12 * row, 0.05, 0.025, (252, 232, 150))
    elif picture.scene == "space":
        pen.disc(flip(0.82), 0.18, 0.11, 0.11, (240, 232, 190))
        for x, y in ((0.1, 0.1), (0.25, 0.3), (0.45, 0.08), (0.6, 0.22), (0.06, 0.52), (0.94, 0.5)):
            pen.disc(flip(x), y, 0.014, 0.014, (255, 255, 255))
    elif picture.scene == "desert":
        pen.disc(flip(0.16), 0.15, 0.10, 0.10, (250, 120, 70))
        pen.line((70, 130, 70), 0.06, (flip(0.90), 0.70), (flip(0.90), 0.34))
        pen.line((70, 130, 70), 0.045, (flip(0.90), 0.54), (flip(0.79), 0.54), (flip(0.79), 0.42))
    elif picture.scene == "meadow":
        pen.disc(flip(0.20), 0.16, 0.13, 0.065, (255, 255, 255))
        pen.disc(flip(0.30), 0.13, 0.11, 0.065, (255, 255, 255))
        for x, petals in ((0.06, (240, 90, 120)), (0.5, (250, 220, 90)), (0.94, (240, 90, 120))):
            pen.disc(flip(x), 0.70, 0.030, 0.030, petals)
    else:
        pen.box(flip(0.80), 0.26, 0.13, 0.14, (150, 205, 240))
        pen.box(flip(0.80), 0.26, 0.012, 0.14, (255, 255, 255))
        pen.box(flip(0.80), 0.26, 0.13, 0.012, (255, 255, 255))
        pen.disc(flip(0.18), 0.24, 0.07, 0.07, (250, 236, 170))


def _thing(pen: _Pen, thing: Thing, x: float, y: float) -> None:
    fill = _rgb(thing.colour)
    dark = _shade(fill, 0.6) if thing.colour != "black" else (90, 90, 100)
    r = 0.125
    if thing.what == "ball":
        pen.disc(x, y, r + 0.012, r + 0.012, INK)
        pen.disc(x, y, r, r, fill)
        pen.disc(x - 0.04, y - 0.045, 0.032, 0.032, (255, 255, 255))
    elif thing.what == "car":
        pen.box(x, y - 0.05, 0.085, 0.075, INK, 0.03)
        pen.box(x, y - 0.045, 0.07, 0.055, (190, 225, 245), 0.02)
        pen.box(x, y + 0.035, 0.152, 0.062, INK, 0.03)
        pen.box(x, y + 0.035, 0.14, 0.05, fill, 0.03)
        for wheel in (-0.075, 0.075):
            pen.disc(x + wheel, y + 0.10, 0.042, 0.042, INK)
            pen.disc(x + wheel, y + 0.10, 0.018, 0.018, (220, 220, 220))
    elif thing.what == "boat":
        pen.line(INK, 0.02, (x, y + 0.02), (x, y - 0.17))
        pen.shape((252, 250, 240), (x + 0.015, y - 0.16), (x + 0.015, y), (x + 0.12, y))
        pen.shape(
            INK,
            (x - 0.16, y + 0.01),
            (x + 0.16, y + 0.01),
            (x + 0.09, y + 0.125),
            (x - 0.09, y + 0.125),
        )
        pen.shape(
            fill,
            (x - 0.138, y + 0.024),
            (x + 0.138, y + 0.024),
            (x + 0.08, y + 0.11),
            (x - 0.08, y + 0.11),
        )
    elif thing.what == "star":
        for radius, tone in ((0.17, INK), (0.145, fill)):
            pen.shape(tone, *_star(x, y, radius))
    elif thing.what == "box":
        pen.box(x, y, r + 0.012, r + 0.002, INK, 0.01)
        pen.box(x, y, r, r - 0.01, fill)
        pen.box(x, y, 0.022, r - 0.01, dark)
        pen.box(x, y - 0.03, r, 0.02, dark)
    elif thing.what == "balloon":
        pen.line(INK, 0.014, (x, y - 0.1), (x, y + 0.13))
        pen.disc(x, y - 0.18, 0.122, 0.152, INK)
        pen.disc(x, y - 0.18, 0.11, 0.14, fill)
        pen.disc(x - 0.04, y - 0.23, 0.026, 0.035, (255, 255, 255))
    elif thing.what == "apple":
        pen.disc(x - 0.045, y + 0.02, 0.092, 0.105, INK)
        pen.disc(x + 0.045, y + 0.02, 0.092, 0.105, INK)
        pen.disc(x - 0.045, y + 0.02, 0.08, 0.093, fill)
        pen.disc(x + 0.045, y + 0.02, 0.08, 0.093, fill)
        pen.line((100, 66, 40), 0.024, (x, y - 0.06), (x + 0.02, y - 0.14))
        pen.disc(x + 0.065, y - 0.115, 0.048, 0.026, (90, 180, 80))
    else:  # cake
        pen.box(x, y + 0.04, 0.145, 0.085, INK, 0.02)
        pen.box(x, y + 0.04, 0.133, 0.073, fill, 0.02)
        pen.box(x, y - 0.02, 0.133, 0.026, (255, 250, 240), 0.02)
        pen.line((250, 250, 250), 0.026, (x, y - 0.04), (x, y - 0.12))
        pen.disc(x, y - 0.145, 0.022, 0.030, (255, 170, 60))


def _star(x: float, y: float, radius: float) -> tuple[tuple[float, float], ...]:
    return tuple(
        (
            x + radius * (1.0 if i % 2 == 0 else 0.45) * math.sin(math.pi * i / 5),
            y - radius * (1.0 if i % 2 == 0 else 0.45) * math.cos(math.pi * i / 5),
        )
        for i in range(10)
    )


def _character(
    canvas: Image.Image, character: Character, x: float, feet: float, height: float
) -> None:
    """One character, ``height`` of the picture's side tall from ears to feet."""
    size = canvas.width
    side = max(8, round(size * height))
    main = _rgb(character.colour, character.tint)
    dark = _shade(main, 0.72) if character.colour != "black" else (78, 76, 88)
    wide, head, ears, eyes = character.shape
    figure = Image.new("RGB", (side, side), main)
    skin = Image.new("L", (side, side), 0)
    ink = Image.new("L", (side, side), 0)
    coat = Image.new("RGB", (side, side), main)
    _coat(_Pen(coat, side), character)
    hx, hy, hr = 0.5, 0.42, 0.215 + 0.022 * head
    bx, by, bw, bh = 0.5, 0.76, 0.185 + 0.03 * wide, 0.20
    for mask, grow in ((ink, 0.020), (skin, 0.0)):
        _silhouette(
            _Pen(mask, side), character.kind, hx, hy, hr, bx, by, bw, bh, 1 + 0.15 * ears, grow
        )
    figure.paste(coat)
    pen = _Pen(figure, side)
    _markings(pen, character, main, dark, hx, hy, hr, bx, by, 1 + 0.15 * ears)
    left, top = round(x * size - side / 2), round(feet * size - side)
    canvas.paste(INK if character.colour != "black" else (150, 148, 160), (left, top), ink)
    canvas.paste(figure, (left, top), skin)
    over = Image.new("RGBA", (side, side))
    over.paste(canvas.crop((left, top, left + side, top + side)))
    face = over.convert("RGB")
    pen = _Pen(face, side)
    _face(pen, character, dark, hx, hy, hr, 1 + 0.12 * eyes)
    if character.accessory is not None:
        _worn(pen, character.accessory, hx, hy, hr)
    canvas.paste(face, (left, top))


def _silhouette(
    pen: _Pen, kind: str, hx: float, hy: float, hr: float, bx: float, by: float, bw: float,
    bh: float, ear: float, grow: float,
) -> None:  # fmt: skip
    on: Colour = 255  # type: ignore[assignment]
    g = grow

    def disc(x: float, y: float, rx: float, ry: float) -> None:
        pen.disc(x, y, rx + g, ry + g, on)

    def both(x: float, y: float, rx: float, ry: float) -> None:
        disc(hx - x, y, rx, ry)
        disc(hx + x, y, rx, ry)

    for foot in (-0.1, 0.1):
        disc(bx + foot, 0.945, 0.075, 0.035)
    if kind == "robot":
        pen.box(bx, by, bw + g, bh + g, on, 0.02)
        pen.box(hx, hy, hr + g, hr * 0.85 + g, on, 0.03)
        pen.box(hx, hy - hr - 0.05 * ear, 0.014 + g, 0.06 * ear + g, on)
        disc(hx, hy - hr - 0.11 * ear, 0.035 * ear, 0.035 * ear)
        both(hr + 0.02, hy, 0.035, 0.05)
        return
    disc(bx, by, bw, bh)
    if kind != "lion":
        disc(hx, hy, hr * 1.05, hr)
    if kind == "cat":
        for s in (-1, 1):
            pen.shape(
                on,
                (hx + s * (0.05 - g), hy - hr * 0.75),
                (hx + s * (0.235 + g), hy - hr * 0.40 + g),
                (hx + s * (0.20 + g * 0.6), hy - hr - 0.13 * ear - 1.6 * g),
            )
        disc(bx + 0.25, by - 0.02, 0.035, 0.14)
    elif kind == "dog":
        both(hr + 0.02, hy + 0.035, 0.062 * ear, 0.16 * ear)
    elif kind == "rabbit":
        both(0.135, hy - hr - 0.075 * ear, 0.052, 0.155 * ear)
    elif kind == "bear":
        both(hr * 0.80, hy - hr * 0.78, 0.078 * ear, 0.078 * ear)
    elif kind == "mouse":
        both(hr * 0.98, hy - hr * 0.72, 0.135 * ear, 0.135 * ear)
    elif kind == "pig":
        for s in (-1, 1):
            pen.shape(on, (hx + s * 0.04, hy - hr * 0.80), (hx + s * (0.20 + g), hy - hr * 0.55),
                      (hx + s * (0.225 + g), hy - hr - 0.03 * ear - g))  # fmt: skip
    elif kind == "frog":
        both(hr * 0.62, hy - hr * 0.88, 0.090 * ear, 0.090 * ear)
        disc(hx, hy + 0.04, hr * 1.25, hr * 0.75)
    elif kind == "duck":
        disc(hx, hy - hr - 0.02, 0.030, 0.065 * ear)
        disc(bx - bw - 0.01, by - 0.02, 0.06, 0.11)
        disc(bx + bw + 0.01, by - 0.02, 0.06, 0.11)
    elif kind == "elephant":
        both(hr + 0.06, hy, 0.135 * ear, 0.175 * ear)
    elif kind == "lion":
        disc(hx, hy, hr * 1.45 * (0.95 + 0.05 * ear), hr * 1.40 * (0.95 + 0.05 * ear))
        disc(bx + 0.26, by + 0.02, 0.05, 0.05)
    elif kind == "deer":
        both(hr + 0.015, hy - 0.10, 0.075, 0.042)
        for s in (-1, 1):
            pen.line(
                on,
                0.040 + 1.6 * g,
                (hx + s * 0.07, hy - hr * 0.8),
                (hx + s * 0.13, hy - hr - 0.16 * ear - g),
            )
            pen.line(
                on,
                0.036 + 1.6 * g,
                (hx + s * 0.10, hy - hr - 0.06),
                (hx + s * (0.21 + g), hy - hr - 0.11 * ear),
            )


def _coat(pen: _Pen, character: Character) -> None:
    """The pattern in the second colour; where the marks sit is part of the identity."""
    second = _rgb(character.second, character.tint)
    rng = random.Random(character.marks)
    if character.pattern == "spotted":
        for row in range(5):
            for column in range(4):
                x = 0.22 + 0.185 * column + (0.09 if row % 2 else 0.0) + rng.uniform(-0.022, 0.022)
                y = 0.14 + 0.195 * row + rng.uniform(-0.022, 0.022)
                r = 0.048 + rng.uniform(-0.008, 0.008)
                pen.disc(x, y, r, r, second)
    elif character.pattern == "striped":
        start = rng.uniform(-0.03, 0.03)
        for row in range(6):
            pen.box(0.5, 0.09 + start + 0.165 * row, 0.5, 0.038, second)
    elif character.pattern == "patched":
        left = rng.random() < 0.5
        pen.box(0.25 if left else 0.75, 0.29, 0.25, 0.29, second)
        pen.box(0.75 if left else 0.25, 0.79, 0.25, 0.22, second)


def _markings(
    pen: _Pen, character: Character, main: Colour, dark: Colour, hx: float, hy: float, hr: float,
    bx: float, by: float, ear: float,
) -> None:  # fmt: skip
    """What a kind has inside its silhouette: inner ears, mane, belly plate."""
    if character.kind == "lion":
        for i in range(12):
            angle = math.pi * i / 6
            pen.disc(
                hx + hr * 1.22 * math.sin(angle),
                hy - hr * 1.18 * math.cos(angle),
                0.085,
                0.085,
                dark,
            )
        pen.disc(hx, hy, hr * 1.02, hr * 0.98, main)
        if character.pattern != "plain":
            pen.disc(
                hx, hy - hr * 0.55, hr * 0.42, hr * 0.30, _rgb(character.second, character.tint)
            )
    elif character.kind == "rabbit":
        for s in (-1, 1):
            pen.disc(hx + s * 0.135, hy - hr - 0.075 * ear, 0.022, 0.11 * ear, (250, 190, 200))
    elif character.kind == "mouse":
        for s in (-1, 1):
            pen.disc(hx + s * hr * 0.98, hy - hr * 0.72, 0.078 * ear, 0.078 * ear, (250, 190, 200))
    elif character.kind == "dog":
        for s in (-1, 1):
            pen.disc(hx + s * (hr + 0.02), hy + 0.035, 0.062 * ear, 0.16 * ear, dark)
    elif character.kind == "elephant":
        for s in (-1, 1):
            pen.disc(hx + s * (hr + 0.075), hy, 0.085 * ear, 0.12 * ear, dark)
        pen.disc(hx, hy, hr * 0.98, hr * 0.98, main)
        if character.pattern != "plain":
            pen.disc(
                hx, hy - hr * 0.60, hr * 0.42, hr * 0.28, _rgb(character.second, character.tint)
            )
    elif character.kind == "robot":
        pen.box(bx, by, 0.09, 0.08, dark, 0.01)
        pen.disc(bx, by, 0.035, 0.035, (250, 210, 80))


def _face(
    pen: _Pen, character: Character, dark: Colour, hx: float, hy: float, hr: float, eye: float
) -> None:
    white: Colour = (255, 255, 255)
    ey = hy - 0.02
    if character.kind == "frog":
        ey = hy - hr * 0.88
        gap = hr * 0.62
    else:
        gap = 0.085
    for s in (-1, 1):
        pen.disc(hx + s * gap, ey, 0.050 * eye, 0.056 * eye, white)
        pen.disc(hx + s * gap, ey + 0.006, 0.028 * eye, 0.034 * eye, (20, 16, 24))
    if character.kind == "duck":
        pen.disc(hx, hy + 0.09, 0.105, 0.046, INK)
        pen.disc(hx, hy + 0.088, 0.090, 0.034, (250, 160, 40))
    elif character.kind == "pig":
        pen.disc(hx, hy + 0.09, 0.088, 0.064, INK)
        pen.disc(hx, hy + 0.09, 0.074, 0.050, (250, 160, 175))
        for s in (-1, 1):
            pen.disc(hx + s * 0.03, hy + 0.09, 0.014, 0.022, INK)
    elif character.kind == "elephant":
        pen.box(hx, hy + 0.18, 0.060, 0.13, INK, 0.05)
        pen.box(hx, hy + 0.18, 0.045, 0.12, dark, 0.045)
    elif character.kind == "frog":
        pen.arc(hx, hy + 0.0, 0.15, 25, 155, INK)
    elif character.kind == "robot":
        pen.box(hx, hy + 0.10, 0.10, 0.026, INK)
        for s in (-1, 0, 1):
            pen.box(hx + s * 0.055, hy + 0.10, 0.016, 0.018, white)
    else:
        muzzle = (250, 236, 220)
        if character.kind in ("dog", "bear", "lion", "deer"):
            pen.disc(hx, hy + 0.09, 0.092, 0.070, muzzle)
        pen.disc(hx, hy + 0.062, 0.032, 0.024, INK)
        pen.arc(hx, hy + 0.072, 0.05, 30, 150, INK)


def _worn(pen: _Pen, worn: Accessory, hx: float, hy: float, hr: float) -> None:
    fill = _rgb(worn.colour)
    top = hy - hr
    if worn.what == "hat":
        pen.box(hx, top - 0.045, 0.107, 0.107, INK, 0.03)
        pen.box(hx, top + 0.035, 0.182, 0.040, INK, 0.03)
        pen.box(hx, top - 0.045, 0.090, 0.090, fill, 0.03)
        pen.box(hx, top + 0.035, 0.166, 0.024, fill, 0.02)
    elif worn.what == "scarf":
        pen.box(hx, hy + hr + 0.005, 0.205, 0.062, INK, 0.05)
        pen.box(hx + 0.10, hy + hr + 0.11, 0.062, 0.12, INK, 0.03)
        pen.box(hx + 0.10, hy + hr + 0.11, 0.046, 0.105, fill, 0.03)
        pen.box(hx, hy + hr + 0.005, 0.19, 0.047, fill, 0.05)
    elif worn.what == "glasses":
        pen.box(hx, hy - 0.02, 0.20, 0.018, fill)
        for s in (-1, 1):
            pen.disc(hx + s * 0.095, hy - 0.02, 0.092, 0.092, INK)
            pen.disc(hx + s * 0.095, hy - 0.02, 0.080, 0.080, fill)
            pen.disc(hx + s * 0.095, hy - 0.02, 0.045, 0.045, (245, 250, 255))
            pen.disc(hx + s * 0.095, hy - 0.015, 0.024, 0.028, (20, 16, 24))
    elif worn.what == "crown":
        for grow, tone in ((0.016, INK), (0.0, fill)):
            pen.shape(
                tone,
                (hx - 0.16 - grow, top + 0.055 + grow),
                (hx - 0.18 - grow, top - 0.12 - 2 * grow),
                (hx - 0.08, top - 0.035 - grow),
                (hx, top - 0.155 - 2 * grow),
                (hx + 0.08, top - 0.035 - grow),
                (hx + 0.18 + grow, top - 0.12 - 2 * grow),
                (hx + 0.16 + grow, top + 0.055 + grow),
            )
    else:  # flower
        x, y = hx + hr * 0.80, hy - hr * 0.70
        for grow, tone in ((0.014, INK), (0.0, fill)):
            for i in range(5):
                angle = 2 * math.pi * i / 5
                pen.disc(
                    x + 0.072 * math.sin(angle),
                    y - 0.072 * math.cos(angle),
                    0.056 + grow,
                    0.056 + grow,
                    tone,
                )
        pen.disc(
            x, y, 0.045, 0.045, (255, 238, 140) if worn.colour != "yellow" else (255, 255, 255)
        )
