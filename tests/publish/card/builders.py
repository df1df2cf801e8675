"""Cards of real conversions of the bundled model, and readers of what they hold."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import Any

from markdown_it import MarkdownIt

import ctxforge
from ctxforge import provenance
from ctxforge.publish.card import CardInput, RenderedCard, render_card
from ctxforge.verification import VerifyReport
from ctxforge.verification.gates import tier
from ctxforge.verification.verdict import judged
from tests.verification.html_samples import stored_report

SOURCE = "someone/bytes-512"
REVISION = "0123456789abcdef0123456789abcdef01234567"
REPO = "me/bytes-2k"
SOURCE_CARD = """---
license: other
license_name: llama2
license_link: LICENSE
language:
- en
datasets:
- pg19
tags:
- text-generation-inference
pipeline_tag: text-generation
extra_gated_prompt: Say who you are
extra_gated_fields:
  Name: text
  I agree: checkbox
model-index:
- name: base
  results: []
---

# The model

It knows *bytes* | pipes | and <b>bold</b>.
"""


@cache
def conversion(method: str = "yarn", attach: str | None = None, source: str = "bundled", **more: Any) -> Any:
    return ctxforge.plan(source, method=method, attach=attach, to="4x", **more)


@cache
def stored() -> VerifyReport:
    """A measured report of the bundled model at 2k, judged by the gates of the quick tier."""
    report = stored_report()
    report = dataclasses.replace(report, protocol=dataclasses.replace(report.protocol, processes=1))
    return judged(report, tier("quick"))


def given(method: str = "yarn", attach: str | None = None, **changes: Any) -> CardInput:
    """What the card of a conversion is made from, without a report."""
    options = changes.pop("options", {})
    made = conversion(method, attach, **options)
    record = json.loads(provenance.record(made, {}, {}))
    if changes.get("source_id", SOURCE) is not None:
        record["source"] |= {"name": SOURCE, "revision": REVISION}
    base = CardInput(
        source_id=SOURCE,
        source_revision=REVISION,
        source_card_text=SOURCE_CARD,
        repo_id=REPO,
        provenance=record,
        verify_report=None,
        config=made.emitted_config,
    )
    return dataclasses.replace(base, **changes)


def card(method: str = "yarn", attach: str | None = None, **changes: Any) -> RenderedCard:
    return render_card(given(method, attach, **changes))


def verified(**changes: Any) -> RenderedCard:
    """The card of yarn with the stored report."""
    return card(verify_report=stored().to_dict(), **changes)


def part(text: str, heading: str) -> str:
    """The text below a heading of our part, up to the next of the same rank."""
    _, found, rest = text.partition(f"\n## {heading}\n")
    assert found, f"no heading {heading}"
    return rest.partition("\n## ")[0].partition("<!-- ctxforge: end -->")[0]


def own(text: str) -> str:
    """Our part, without front matter and the source's card."""
    return text.partition("<!-- ctxforge: begin -->")[2].partition("<!-- ctxforge: end -->")[0]


def tokens(markdown: str) -> list[Any]:
    """Every token of a reader that knows tables and raw HTML, those inside of lines among them."""
    found = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        found.append(token)
        found += token.children or []
    return found


def rows_of(text: str, caption: str) -> list[list[str]]:
    """The cells of the table below a bold caption, header first."""
    below = text.partition(f"**{caption}**\n\n")[2]
    assert below, f"no table {caption}"
    lines = below.partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not line.startswith("|--")]
