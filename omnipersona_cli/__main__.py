"""`python -m omnipersona_cli` is `op`."""

from omnipersona_cli.cli.main import cli

if __name__ == "__main__":
    cli(prog_name="op")
