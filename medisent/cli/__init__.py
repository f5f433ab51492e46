"""The command line: what is typed, what is printed, and how a command ends. Nothing else knows Typer."""

from __future__ import annotations

import typer

app = typer.Typer(name="medisent", no_args_is_help=True)


@app.callback()
def _top() -> None:
    """Explain 3D medical scans by known factors of variation."""


def main() -> int:
    """Run the command line; return its exit code."""
    return int(app(standalone_mode=False) or 0)
