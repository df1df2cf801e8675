"""huggingface_hub while ctxforge speaks: no warnings that name signed addresses, no bars where nobody sees them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ctxforge.publish.connection import Tell

_TRANSPORT = "huggingface_hub.utils._http"
_HARMLESS = ("Rate limited", "Retrying in")


class _Waits(logging.Handler):
    """Hands on that the library waits, and for how long; its other lines have addresses in them."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one line, if it is harmless."""
        text = record.getMessage()
        if text.startswith(_HARMLESS):
            self._tell(f"the Hub has trouble: {text[0].lower()}{text[1:]}")


@contextmanager
def quiet_hub(tell: Tell) -> Iterator[None]:
    """Only errors of huggingface_hub inside, and its waits by way of `tell`; settings are restored after."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as theirs
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    level = theirs.get_verbosity()
    bars = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    hidden = bars and not sys.stderr.isatty()
    transport = logging.getLogger(_TRANSPORT)
    before = (transport.level, transport.propagate)
    waits = _Waits(tell)
    theirs.set_verbosity(logging.ERROR)
    transport.setLevel(logging.WARNING)
    transport.propagate = False
    transport.addHandler(waits)
    if hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        transport.removeHandler(waits)
        transport.level, transport.propagate = before
        theirs.set_verbosity(level)
        if hidden:
            enable_progress_bars()
