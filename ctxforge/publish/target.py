"""The name of the repository to publish to: what a user may write, and the default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ctxforge.checkpoint.jsonio import ascii_name
from ctxforge.errors import UsageError
from ctxforge.lengths import format_length

_OTHER_TYPES = ("datasets", "spaces", "kernels", "buckets")
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_LONGEST = 96


def parse_target(text: str) -> str:
    """`name` or `owner/name` from what a user wrote: an id, or the address of a model's page.

    Raises:
        UsageError: not a valid id, a revision in it, or a repository of another type.
    """
    given = text.strip()
    path = urlsplit(given).path.strip("/") if given.startswith(("https://", "http://")) else given
    path = path.removeprefix("hf://").removeprefix("models/")
    if path.partition("/")[0] in _OTHER_TYPES:
        raise UsageError(
            f"{ascii_name(given)} is not a model repository: its address begins with {path.partition('/')[0]}/.",
            "Give a model's id: owner/name.",
        )
    if "@" in path:
        raise UsageError(
            f"{ascii_name(given)} names a revision, and commits are made on branches.",
            "Give owner/name, and --branch NAME for another branch than main.",
        )
    parts = path.split("/")
    name = parts[-1]
    bad = len(parts) > 2 or not all(_NAME.fullmatch(part) for part in parts) or len(name) > _LONGEST
    if bad or "--" in path or ".." in path or name.endswith((".git", ".ipynb")):
        raise UsageError(
            f"{ascii_name(given)} is not a valid repository id.",
            f"Use letters, digits, single - and ., and _; a name of at most {_LONGEST} characters: owner/name.",
        )
    return path


def default_name(record: Mapping[str, Any]) -> str:
    """`<model>-<method>-<length>`, from the provenance of a conversion: Llama-2-7b-hf-yarn-64k.

    Raises:
        UsageError: the document doesn't say what was done.
    """
    source, plan, recipe = (_mapping(record, key) for key in ("source", "plan", "recipe"))
    method, target = plan.get("method"), plan.get("target_length")
    if not source.get("name") or not isinstance(method, str) or not isinstance(target, int):
        raise UsageError("There is no name to publish under.", "Give one: ctxforge push DIR owner/name.")
    model = PurePosixPath(str(source["name"]).partition("@")[0].rstrip("/")).name.removesuffix(".gguf")
    attached = recipe.get("attach")
    words = [model, method]
    if isinstance(attached, Mapping) and attached.get("name"):
        words = [model, str(attached["name"])] if method == "none" else [*words, str(attached["name"])]
    text = "-".join([*words, format_length(target)])
    return re.sub(r"[-.]{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", text))[:_LONGEST].strip("-.")


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    return found if isinstance(found, Mapping) else {}
