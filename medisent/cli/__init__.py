"""The command line: what is typed, what is printed, and how a command ends. Nothing else knows Typer."""

from medisent.cli.main import app, main

__all__ = ["app", "main"]
