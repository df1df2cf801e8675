"""Keeping a library's own chatter off stderr: ctxforge shows its own progress, and none where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers(*, warnings: bool = True) -> Iterator[None]:
    """No progress bars of transformers inside, and without `warnings` only its errors; settings are restored after."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    if not warnings:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
