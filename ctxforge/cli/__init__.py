"""The command line. One file a command; click and rich are used here and nowhere else."""

from ctxforge.cli.main import main

__all__ = ["main"]
