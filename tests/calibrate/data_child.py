"""Builds one token cache in a process of its own: `data_child.py FILE [BYTES]`; BYTES limits the size of a file."""

from __future__ import annotations

import resource
import signal
import sys

from ctxforge.calibrate.data import open_or_build, parse_source
from ctxforge.errors import CtxforgeError
from tests.calibrate.data_builders import tokenizer

bundled = tokenizer()
sys.stdout.write("ready\n")
sys.stdout.flush()
sys.stdin.readline()
if len(sys.argv) > 2:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
said: set[str] = set()
try:
    cache = open_or_build(parse_source(sys.argv[1]), bundled, progress=lambda what, _done, _total: said.add(what))
except CtxforgeError as error:
    sys.exit(f"{type(error).__name__}: {error.cause}")
sys.stdout.write(f"{cache.folder.name} {cache.header.tokens} {','.join(sorted(said))}\n")
