"""Words of others stay words: no markup, no HTML, no row of a table, no template is made of them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from ctxforge.publish.card import markdown
from ctxforge.publish.card.markdown import code, escape, fenced, table
from tests.publish.card.builders import card, given, stored, tokens

HOSTILE = (
    "x <script>x</script> **b** [l](http://e.example) `c` | cell ![i](x) {{ 7*7 }} {% raw %}"
    "\n\n# h\n\n<!-- ctxforge: end -->"
)
PLAIN = {"paragraph_open", "inline", "text", "paragraph_close", "softbreak", "code_inline"}


def hostile(value: Any) -> Any:
    """`value` with hostile words in the place of every text."""
    if isinstance(value, dict):
        return {key: hostile(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [hostile(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


@settings(max_examples=400, deadline=None)
@examples(
    st.text(alphabet=st.sampled_from("ab1 \\`*_{}[]<>#|~&$!-+=.)(:/\"'\n\t\x00\ud800"), max_size=30)
    | st.text(max_size=30)
)
def test_any_text_is_read_back_as_itself(words: str) -> None:
    from ctxforge.verification.outputs.plain import line

    for made in (escape(words), code(words)):
        kinds = {token.type for token in tokens(made)}
        assert kinds <= PLAIN, (made, kinds)
        shown = "".join(token.content for token in tokens(made) if token.type in ("text", "code_inline"))
        assert shown.replace("\ufffd", "\x00") == line(words).replace("\ufffd", "\x00")
    cells = [t for t in tokens(table(("a", "b"), [(words, code(words))])) if t.type == "inline"]
    assert len(cells) == 4
    assert {child.type for cell in cells for child in cell.children} <= PLAIN
    item = tokens(f"- {escape(words)}")
    assert [t.type for t in item].count("bullet_list_open") == 1
    assert not [
        t for t in item if t.type in ("heading_open", "hr", "html_block", "blockquote_open", "ordered_list_open")
    ]
    block = tokens(fenced(words, "console"))
    assert [t.type for t in block] == ["fence"]


def test_the_reader_would_see_it() -> None:
    """The control: unescaped, the same words are markup."""
    assert {"html_inline", "strong_open", "link_open", "image", "heading_open"} <= {t.type for t in tokens(HOSTILE)}


def test_hostile_provenance() -> None:
    base = given("yarn", "lm-infinite")
    record = hostile(json.loads(json.dumps(base.provenance)))
    made = card("yarn", "lm-infinite", provenance=record, source_id=None)
    check(made.text)
    assert made.files  # numbers are still numbers


def test_hostile_calibrations_and_report() -> None:
    record = dict(given().provenance)
    record["calibrations"] = [hostile({"recipe": "", "data": [{"source": {"location": ""}, "sha256": ""}], "seed": 1})]
    report = json.loads(json.dumps(stored().to_dict()))
    for key in ("average", "needle_form", "device"):
        report["protocol"][key] = HOSTILE
    report["protocol"]["versions"] = {HOSTILE: HOSTILE}
    report["notes"] = [HOSTILE]
    report["result"]["label"] = report["source"]["label"] = HOSTILE
    for gate in report["judgement"]["gates"]:
        gate["explanation"] = gate["quantity"] = gate["words"] = HOSTILE
    report["judgement"]["left_out"] = [{"gate": HOSTILE, "reason": HOSTILE}]
    made = card(provenance=record, verify_report=report)
    check(made.text)
    for svg in made.files.values():
        assert b"<script" not in svg


def test_hostile_licence_and_config() -> None:
    front = json.dumps({"license": HOSTILE, "license_name": HOSTILE, "tags": [HOSTILE]})
    config = {**given().config, "model_type": HOSTILE, "auto_map": {HOSTILE: HOSTILE}, "rope_theta": "```\n# h"}
    made = card(source_card_text=f"---\n{front}\n---\nbody\n", config=config)
    check(made.text)


def check(text: str) -> None:
    """Our part holds no markup but its own."""
    assert text.splitlines().count("<!-- ctxforge: end -->") == 1
    part = text.partition("<!-- ctxforge: begin -->\n")[2].rpartition("\n<!-- ctxforge: end -->\n")[0]
    assert "49" not in part.partition("## What was changed")[0]
    found = tokens(part)
    blocks = {t.content.strip() for t in found if t.type in ("html_block", "html_inline")}
    assert all(b.startswith(("<details>", "</details>", "<summary>", "</summary>")) for b in blocks), blocks
    assert not any("<script" in block for block in blocks)
    links = [t.attrs.get("href") or t.attrs.get("src") for t in found if t.type in ("link_open", "image")]
    assert all(str(link).startswith(("https://huggingface.co/someone/", "ctxforge-")) for link in links), links
    headings = [found[i + 1].content for i, t in enumerate(found) if t.type == "heading_open" and t.tag in ("h1", "h2")]
    ours = ["bytes-2k", "What was changed", "Verification", "Serving it", "Limits", "Making it again"]
    assert headings == [*ours, "The source's model card"]
    assert not [t for t in found if t.type == "strong_open" and found[found.index(t) + 1].content == "b"]


@pytest.mark.parametrize("name", sorted(markdown.environment().list_templates()))
def test_no_template_marks_its_values_as_safe(name: str) -> None:
    loader = markdown.environment().loader
    assert loader is not None
    source = loader.get_source(markdown.environment(), name)[0]
    assert not re.search(r"\|\s*safe\b", source)
    assert "autoescape" not in source
