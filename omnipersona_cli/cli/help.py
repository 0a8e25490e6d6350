"""`op help`: a command's help, or a topic that belongs to no single command."""

from __future__ import annotations

import click

from omnipersona_cli.cli import options, output
from omnipersona_cli.errors import UsageError, nearest

TOPICS = {
    "exit-codes": (
        "What the exit codes mean.",
        """\
0    done
1    failed for a stated reason; also any answer but "yes" under `op ask --exit-code`
2    wrong usage: an unknown option, a missing argument, words that do not fit together
3    something that was named is not here: a concept, a backend, weights, a package
130  interrupted (Ctrl-C)

What went wrong is said on stderr: one line "Error:", and where there is a way on, one line "Hint:".
-v adds the traceback. An error without "Error:" is a bug; please report it with `op doctor`.""",
    ),
    "shell": (
        "Quoting <bo>, pipes and scripts.",
        """\
A shell reads < and > as redirections, so quote every prompt:

  op gen "<bo> at the beach"        right
  op gen <bo> at the beach          wrong: reads the file "bo"
  op gen --concept bo "at the beach"   needs no brackets

The answer, and only the answer, is on stdout; notes, progress and errors are on stderr:

  open $(op gen "<bo> in the snow")
  op ask bo.png "is <bo> here?" --exit-code && echo yes
  op concepts --json | jq .

-q silences notes and bars. NO_COLOR turns colour off. `-` as a file is stdin or stdout.
Another well-known program is called `op` too; `omnipersona` is the same command as this one.""",
    ),
    "config": (
        "Settings: flags, variables and files.",
        """\
A setting is looked for in this order, and the first one found wins:

  1. the flag                    -b nano
  2. an environment variable     OMNIPERSONA_BACKEND=nano, OMNIPERSONA_GEN_STEPS=24
  3. ./omnipersona.yaml          the project's settings
  4. config.yaml                 yours; `op doctor` shows where it lives
  5. the default

Settings at the top of a file are for all commands: backend, model, device, dtype, memory, offload,
quantize, seed, offline. A section is for one command and takes any of its long options, and a
variable is called after the command and the option; what fills no option is told, with its file and
line:

  backend: nano
  gen:
    steps: 24
    json: yes              OMNIPERSONA_GEN_JSON=1

`op doctor` shows every shared setting with its source.""",
    ),
    "files": (
        "Where packs, settings and checkpoints live.",
        """\
settings     config.yaml in the user's configuration folder
packs        NAME.opconcept in `concepts` in the user's data folder
checkpoints  in the user's cache folder; may be deleted when nothing is learning

`op doctor` prints the three folders. OMNIPERSONA_HOME puts all of them under one folder.""",
    ),
    "packs": (
        "What is in an .opconcept file, and sharing it.",
        """\
A pack is one safetensors file. It holds, for each backbone that a concept was learned on, a slot:
one name token, the tokens for understanding and the tokens for painting; and, once, the facts.
It holds no photos, no paths and no user names.

  op concepts show bo                 what is in it
  op concepts facts bo add "<bo>'s toy is a red ball"    no new learning needed
  op concepts export bo -o bo.opconcept
  op concepts import bo.opconcept
  op concepts import saves/bo/stage_2 --from unictokens    what another program learned
  op concepts verify bo.opconcept     checks the file before you trust it

Facts in a pack are text from whoever made it. A pack runs no code when it is opened.
A slot fits only the backbone that it was learned on; facts fit all.""",
    ),
    "network": (
        "When the network is used, and how to forbid it.",
        """\
The network is used only by `op backends fetch`, which says first how much it brings, and to ask
whom you name: the judge vlm of `op bench` sends questions and pictures to its endpoint, and ask,
gen, edit and chat send words and pictures to the `op serve` of --server. A backend whose weights
are not here does not open; it names the `op backends fetch` that brings them. --offline, or
HF_HUB_OFFLINE=1, forbids it all, but for what is on this machine. The backend nano has its weights
in the package. Nothing is ever reported anywhere.""",
    ),
}


@click.command(epilog="\b\nExamples:\n  op help config\n  op help gen\n  op help concepts show")
@click.argument("topic", nargs=-1)
@options.as_json
@click.pass_context
def command(ctx: click.Context, topic: tuple[str, ...], as_json: bool) -> None:
    """Explain a command or a topic."""
    if not topic:
        text = _overview(ctx.find_root())
    elif len(topic) == 1 and topic[0] in TOPICS:
        text = TOPICS[topic[0]][1]
    else:
        text = _command_help(ctx.find_root(), topic)
    if as_json:
        output.answer_json({"topic": " ".join(topic), "text": text, "topics": list(TOPICS)})
    else:
        output.answer(text)


def _overview(root: click.Context) -> str:
    """The help of `op` itself, and the topics."""
    width = max(map(len, TOPICS))
    topics = [f"  {name:<{width}}  {summary}" for name, (summary, _) in TOPICS.items()]
    return "\n".join([root.get_help(), "", "Topics:", *topics])


def _command_help(context: click.Context, path: tuple[str, ...]) -> str:
    for at, name in enumerate(path):
        group = context.command
        found = group.get_command(context, name) if isinstance(group, click.Group) else None
        if found is None:
            known = group.list_commands(context) if isinstance(group, click.Group) else []
            guess = nearest(name, known if at else [*known, *TOPICS])
            right = " ".join(("op help", *path[:at], guess or "")).strip()
            raise UsageError(
                f"there is no help on {' '.join(path)!r}",
                hint=f"did you mean `{right}`?" if guess else f"see `{right}`",
            )
        context = click.Context(found, info_name=name, parent=context)
    return context.get_help()
