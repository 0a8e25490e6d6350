"""op serve and op mcp: one process keeps the model open, for programs, browsers and agents."""

from __future__ import annotations

from collections.abc import Sequence

from omnipersona_cli.hookspecs import CommandInfo, hookimpl


@hookimpl
def op_commands() -> Sequence[CommandInfo]:
    """`op serve` and `op mcp`."""
    return (
        CommandInfo(
            name="serve",
            summary="Keep the model open for programs and browsers.",
            command="op_serve.command:serve",
        ),
        CommandInfo(
            name="mcp",
            summary="Serve an agent over stdin and stdout (MCP).",
            command="op_serve.command:mcp",
        ),
    )
