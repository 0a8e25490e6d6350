"""Facts and requests as people write them: does replay say the fact in the request?

    python benchmarks/replayed.py
    python benchmarks/replayed.py --show

Sixty pairs of a fact and a request that needs it, with the request as a person who knows would
write it. They were written before the grammar was tuned, and split: it was tuned on those with odd
numbers, the others were left alone. A replay is right where the rewritten request has the same
words, whatever their case and punctuation. Facts text alone is replayed, on the embedded backbone,
where the grammar leads; no pictures are painted.

Two rows go to stdout as Markdown. ``--show`` prints what came out wrong.
"""

from __future__ import annotations

import re

import click

PAIRS: tuple[tuple[str, str, str], ...] = (
    ("loves tuna", "<bo> eating its favourite food", "<bo> eating tuna"),
    ("lives with two cats in Lisbon", "<bo> with its cats", "<bo> with two cats"),
    ("is afraid of thunder", "<bo> hiding from what it is afraid of", "<bo> hiding from thunder"),
    ("lives with two cats in Lisbon", "<bo> at home", "<bo> in Lisbon"),
    ("plays the violin on Sundays", "<bo> with its instrument", "<bo> with the violin"),
    ("Bo plays the violin on Sundays", "<bo> holding what it plays", "<bo> holding the violin"),
    ("its toy is a red ball", "<bo> with its toy", "<bo> with a red ball"),
    ("it sleeps on a blue cushion", "<bo> on its bed", "<bo> on a blue cushion"),
    ("She wears a green hat", "<bo> in its outfit", "<bo> in a green hat"),
    ("he drives a yellow van", "<bo> next to his vehicle", "<bo> next to a yellow van"),
    ("likes apples and pears", "<bo> with what it likes", "<bo> with apples and pears"),
    ("its toys are a kite and a drum", "<bo> with its toys", "<bo> with a kite and a drum"),
    ("lives by the sea", "<bo> where it lives", "<bo> by the sea"),
    ("is at home in the desert", "a photo of <bo> at its home", "a photo of <bo> in the desert"),
    ("is friends with a grey mouse", "<bo> and its friend", "<bo> and a grey mouse"),
    ("<bo>'s best friend is a small frog", "<bo> with its best friend", "<bo> with a small frog"),
    ("has got a wooden boat", "<bo> in its boat", "<bo> in a wooden boat"),
    ("owns a purple umbrella", "<bo> under its umbrella", "<bo> under a purple umbrella"),
    ("hates baths", "<bo> running from what it hates", "<bo> running from baths"),
    ("cannot stand broccoli", "<bo> and what it cannot stand", "<bo> and broccoli"),
    ("works as a baker", "<bo> doing its job", "<bo> as a baker"),
    ("works at the fire station", "<bo> at its workplace", "<bo> at the fire station"),
    ("was born in June", "<bo> in the month of its birthday", "<bo> in June"),
    ("collects old clocks", "<bo> with its collection", "<bo> with old clocks"),
    ("drinks cold milk", "<bo> and its favourite drink", "<bo> and cold milk"),
    ("enjoys drinking hot cocoa", "<bo> with the drink it enjoys", "<bo> with hot cocoa"),
    ("loves to eat carrots", "<bo> eating", "<bo> eating carrots"),
    ("eats honey every morning", "<bo> with its food", "<bo> with honey"),
    ("loves tuna and is afraid of thunder", "<bo> with the food it loves", "<bo> with tuna"),
    ("loves tuna and is afraid of thunder", "<bo> and its fear", "<bo> and thunder"),
    ("comes from Iceland", "<bo> where it comes from", "<bo> in Iceland"),
    ("is from Brazil", "<bo> in its country", "<bo> in Brazil"),
    ("belongs to a pirate", "<bo> with its owner", "<bo> with a pirate"),
    ("lives with a parrot", "<bo> with who it lives with", "<bo> with a parrot"),
    ("lives with its sister Ada", "<bo> and its sister", "<bo> and Ada"),
    ("is married to a tall giraffe", "<bo> with its wife", "<bo> with a tall giraffe"),
    ("dreams of the moon", "<bo> and what it dreams of", "<bo> and the moon"),
    ("chases pigeons", "<bo> after what it chases", "<bo> after pigeons"),
    ("toy: a brown teddy bear", "<bo>'s toy on the grass", "a brown teddy bear on the grass"),
    ("favourite toy: a tin robot", "<bo> hugging its toy", "<bo> hugging a tin robot"),
    ("its favourite place is a pond", "<bo> at its favourite place", "<bo> at a pond"),
    ("loves the beach", "<bo> at the place it loves", "<bo> at the beach"),
    ("its car is a blue van", "<bo> by <bo>'s car in the snow", "<bo> by a blue van in the snow"),
    ("rides a silver bike", "<bo> on its bike", "<bo> on a silver bike"),
    ("reads comics in the evening", "<bo> with its book", "<bo> with comics"),
    ("is good at juggling", "<bo> showing its talent", "<bo> showing juggling"),
    ("usually naps under a palm", "<bo> sleeping where it sleeps", "<bo> sleeping under a palm"),
    ("sleeps in a cardboard box", "<bo> in bed", "<bo> in a cardboard box"),
    ("plays with a ball of wool", "<bo> with the thing it plays with", "<bo> with a ball of wool"),
    ("can play the drums", "<bo> playing its instrument", "<bo> playing the drums"),
    ("plays chess with its uncle", "<bo> and its favourite game", "<bo> and chess"),
    ("its favourite sport is football", "<bo> doing its favourite sport", "<bo> doing football"),
    ("is fond of sunflowers", "give <bo> what it is fond of", "give <bo> sunflowers"),
    ("adores snow", "<bo> in what it adores", "<bo> in snow"),
    ("has two kittens", "<bo> and its kittens", "<bo> and two kittens"),
    ("has three puppies called A, B and C", "<bo> and its puppies", "<bo> and three puppies"),
    ("its food is cheese, which it steals", "<bo> with its food", "<bo> with cheese"),
    ("is never without its red scarf", "<bo> with its scarf", "<bo> with its red scarf"),
    ("the colour of its house is pink", "<bo> near its house", "<bo> near its pink house"),
    ("likes swimming in the lake", "<bo> doing what it likes", "<bo> swimming in the lake"),
)  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--show", is_flag=True, help="What came out wrong.")
def main(show: bool) -> None:
    """Replay sixty pairs of a fact and a request on nano."""
    import torch

    from omnipersona_cli import registry
    from omnipersona_cli.backend import ConceptTokens, Opening
    from omnipersona_cli.engine.replay import replay

    backend = registry.open_backend(Opening(backend="nano"))
    zero = torch.zeros(1, backend.width)
    bo = ConceptTokens(name="bo", id=zero, und=zero, gen=zero)
    right: dict[int, list[bool]] = {1: [], 0: []}
    for number, (fact, request, expected) in enumerate(PAIRS, start=1):
        said = replay(backend, request, concepts=[bo], facts={"bo": [fact]}).rewritten
        right[number % 2].append(_words(said) == _words(expected))
        if show and not right[number % 2][-1]:
            click.echo(f"{number}: {fact} | {request} -> {said} (not: {expected})", err=True)
    click.echo("| pairs | replayed rightly |\n| --- | --- |")
    for half, label in ((1, "odd, tuned on"), (0, "even, left alone")):
        click.echo(f"| {label} | {sum(right[half])} of {len(right[half])} |")


def _words(text: str) -> list[str]:
    return re.findall(r"[\w<>'-]+", text.lower())


if __name__ == "__main__":
    main()
