"""What the Hub accepts as metadata of a card."""

from __future__ import annotations

import re
from typing import Any

import yaml

_BLOCK = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")
"""Where the metadata stand (huggingface_hub/constants.py, REGEX_YAML_BLOCK is the same as on the Hub)."""


def read_card(text: str) -> dict[str, Any]:
    """The metadata, empty where there are none or they are broken."""
    block = _BLOCK.search(text)
    try:
        found = yaml.safe_load(block[2]) if block else None
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}


def check_card(text: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Errors and warnings."""
    return [], [] if read_card(text) else ["empty or missing yaml metadata in repo card"]
