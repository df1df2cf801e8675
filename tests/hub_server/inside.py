"""Point the huggingface_hub of this process at a server: what a child's environment does, without the child's imports.

huggingface_hub reads HF_ENDPOINT, HF_HOME and HF_HUB_DISABLE_XET when it is imported (huggingface_hub/constants.py), so
the constants themselves are replaced, and put back. Not for two threads at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch


@contextmanager
def inside(url: str, token: str | None, home: Path, wait: bool) -> Iterator[None]:
    """Speak to `url` as the owner of `token`, with caches in `home`; retries come at once unless `wait`."""
    import huggingface_hub
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http

    assert huggingface_hub.__version__
    root = home / "huggingface"
    changed = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
        "HF_HOME": str(root),
        "HF_HUB_CACHE": str(root / "hub"),
        "HF_TOKEN_PATH": str(root / "token"),
        "HF_STORED_TOKENS_PATH": str(root / "stored_tokens"),
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(root), "HF_TOKEN": token or "", "HF_HUB_DISABLE_XET": "1"}
    clock = SimpleNamespace(sleep=time.sleep if wait else lambda _: None, time=time.time, monotonic=time.monotonic)
    with (
        patch.multiple(constants, **changed),
        patch.dict(os.environ, environment, clear=True),
        patch.object(hf_api.api, "endpoint", url),
        patch.object(_http, "time", clock),
        patch.object(file_download, "time", clock),
    ):
        yield
