"""What every worker shares: read the request, write the answer. Runs in other environments, so standard library only.

A request is a JSON object {folder, ids, ...}; the answer {version, logprobs, facts}: `logprobs[k]` is the natural
logarithm of the probability of `ids[positions[k]]` after the ids before it. `facts` are remarks by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

Request = dict[str, Any]
Answer = dict[str, Any]


def serve(work: Callable[[Request], Answer]) -> None:
    """Answer the request in the file `sys.argv[1]` into the file `sys.argv[2]`; an error becomes `{"error": ...}`.

    Everything that the engine prints goes to stderr.
    """
    request_file, answer_file = sys.argv[1:3]
    with open(request_file, encoding="utf-8") as file:  # noqa: PTH123
        request = json.load(file)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            answer = work(request)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit too: a converter exits where it refuses
        answer = {"error": f"{type(error).__name__}: {error}"}
        if os.environ.get("CTXFORGE_DEBUG"):
            import traceback

            traceback.print_exc()
    with open(answer_file, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(answer, file)
    sys.stdout.flush()
    sys.stderr.flush()
    # Engines leave threads and atexit handlers that may hang or crash; the answer is on disk.
    os._exit(0)
