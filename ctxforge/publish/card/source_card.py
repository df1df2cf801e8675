"""The source's README.md: its front matter as plain data, and its body without a part that an earlier card added."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.publish.card.yaml_block import read_block

BEGIN = "<!-- ctxforge: begin -->"
END = "<!-- ctxforge: end -->"
# huggingface_hub reads front matter by the same rule (repocard.py, REGEX_YAML_BLOCK); an empty block is one here too.
_BLOCK = re.compile(r"\A\s*---(?:\r\n|\r|\n)([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z)")
_EMPTY = re.compile(r"\A\s*---(?:\r\n|\r|\n)()---[ \t]*(?:\r\n|\n|\Z)")
_OPEN = re.compile(r"\A\s*---[ \t]*(?:\r\n|\r|\n)")
_OURS = re.compile(rf"^{BEGIN}[ \t]*\r?$[\S\s]*?^{END}[ \t]*\r?$\n*", re.MULTILINE)
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class SourceCard:
    """A model card of somebody else.

    Attributes:
        metadata: the front matter; empty where there is none that can be read.
        body: the Markdown below it, word for word, without our part.
        remarks: what could not be read, a line each.
    """

    metadata: Mapping[str, Any]
    body: str
    remarks: tuple[str, ...]


def read_source_card(text: str | None) -> SourceCard:
    """Read a card; nothing in it makes this fail, what can't be read is left out with a remark."""
    if not text:
        return SourceCard({}, "", ())
    text = _SURROGATES.sub("\ufffd", text.removeprefix("\ufeff"))
    metadata: Mapping[str, Any] = {}
    remarks: tuple[str, ...] = ()
    found = _BLOCK.match(text) or _EMPTY.match(text)
    if found is not None:
        metadata, remarks = read_block(found[1])
        text = text[found.end() :]
    elif _OPEN.match(text) is not None:
        remarks = ("the source's card begins with --- and has no closing ---: taken as text, its metadata is lost",)
    return SourceCard(metadata, _without_ours(text), remarks)


def _without_ours(body: str) -> str:
    """`body` without the first part between our marks, and without blank lines around it; blank bodies are empty."""
    own = _OURS.sub("", body, count=1).lstrip("\r\n")
    return own if own.strip() else ""
