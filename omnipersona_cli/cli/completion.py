"""`op completion`: the script that makes a shell complete `op`; click's own, printed."""

from __future__ import annotations

import click

from omnipersona_cli.cli import options, output

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="""\b
Examples:
  op completion bash >> ~/.bashrc
  op completion zsh >> ~/.zshrc
  op completion fish > ~/.config/fish/completions/op.fish"""
)
@click.argument("shell", type=click.Choice(SHELLS))
@options.as_json
@click.pass_context
def command(ctx: click.Context, shell: str, as_json: bool) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    if complete is None:
        raise LookupError(f"click has no completion for {shell}")
    script = ctx.find_root().info_name or "op"
    variable = f"_{script.upper()}_COMPLETE".replace("-", "_")
    # The template alone: source() of bash first asks the bash found here for its version, but the
    # script may be meant for another machine.
    shape = complete(ctx.find_root().command, {}, script, variable)
    text = shape.source_template % shape.source_vars()
    if as_json:
        output.answer_json({"shell": shell, "script": text})
    else:
        output.answer(text)
