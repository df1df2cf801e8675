"""Cards of every family of conversions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import save_file

import ctxforge
from ctxforge.attention.registry import attachments
from ctxforge.publish.card import FIGURES, CardInput, render_card
from ctxforge.rope.methods import METHODS
from tests.publish.card.builders import REPO, SOURCE_CARD, card, conversion, given, own, part, rows_of

# Of each family: a type of its own, a base, lists, code, moving tables; learned and ALiBi stand below.
FAMILIES = ("yarn", "yarn+resonance", "pi", "ntk", "abf", "llama3", "drope", "dynamic-ntk", "xpos", "dynamic-yarn")
# Those that a Llama takes: transformer-xl is in the config keys of other architectures alone.
EXPORTED = tuple(name for name, one in attachments().items() if one.exported and one.system)


@pytest.mark.parametrize("method", FAMILIES)
def test_a_card_of_each_family(method: str) -> None:
    made = card(method)
    text, changed = made.text, part(made.text, "What was changed")
    plan = given(method).provenance["plan"]
    for name in method.split("+"):
        if name in METHODS:
            assert METHODS[name].title in changed.replace("\\", "")
        assert name in ModelCard(text).data.tags
    assert "from 512 tokens to 2k (2048) tokens, s = 4" in changed
    assert "context-2048" in ModelCard(text).data.tags
    if method == "drope":
        assert not made.files
        assert "No pair rotates any more" in changed
        return
    assert set(made.files) == {"ctxforge-lambda.svg"} <= set(FIGURES)
    assert "](ctxforge-lambda.svg)" in changed
    # Lambda of every pair is the plan's, to the digits that are shown.
    table = changed.partition("<details>")[2].partition("</details>")[0]
    shown = [line.strip("| ").split(" | ") for line in table.splitlines() if re.match(r"\| [0-9]", line)]
    divisors = plan["tables"][0]["divisors"]
    assert [int(pair) for pair, _ in shown] == list(range(32))
    for (_, value), divisor in zip(shown, divisors, strict=True):
        if divisor > 1e29:
            assert value == "does not rotate"
        else:
            assert float(value) == pytest.approx(divisor, rel=5e-4)
    temperature = plan["tables"][0]["temperature"]
    assert (f"Temperature a: {temperature:.6g} on cos and sin" in changed) == (temperature != 1.0)
    assert ("custom_code" in ModelCard(text).data.tags) == ("auto_map" in conversion(method).emitted_config)
    assert ("load with `trust_remote_code=True`" in text) == ("auto_map" in conversion(method).emitted_config)


def test_what_is_folded_into_the_weights_is_told() -> None:
    changed = part(card("yarn", options={"temperature": 1.0}).text, "What was changed")
    assert "a factor of 0.77" in changed  # 1 / 1.1386^2
    assert "Tensors edited: 5 x `model.layers.N.self_attn.q_proj.weight`." in changed
    assert "5 weight tensors were edited, nothing was trained." in card("yarn", options={"temperature": 1.0}).text
    assert "byte for byte" in card("yarn").text


@pytest.mark.parametrize("name", EXPORTED)
def test_a_card_of_each_attachment(name: str) -> None:
    one = attachments()[name]
    method = "yarn" if name == "string" else "none"  # it reaches the target with a method only
    made = card(method, name)
    plain = own(made.text).replace("\\", "")
    limits = part(made.text, "Limits").replace("\\", "")
    for line in one.cannot:
        assert line in limits
    assert f"### Attention: {one.title}" in plain
    assert one.cost in limits
    assert name in ModelCard(made.text).data.tags
    code = "auto_map" in conversion(method, name).emitted_config
    assert ("trust_remote_code=True" in part(made.text, "Serving it")) == code
    if code:
        assert "custom_code" in ModelCard(made.text).data.tags
        assert "vllm serve" not in made.text
        stopping = part(made.text, "Serving it").partition("These stop")[2]
        for engine in ("vllm", "sglang", "llama.cpp", "tgi", "mlx-lm", "exllamav3"):
            assert f"- {engine} " in stopping


def folder(path: Path, config: dict[str, Any], tensors: dict[str, Any]) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return str(path)


def test_other_positions(tmp_path: Path) -> None:
    gpt2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 32, "n_ctx": 32}
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 64}
    table = {"transformer.wpe.weight": np.zeros((32, 16), dtype=np.float32)}
    learned = card("learned-interpolation", options={"source": folder(tmp_path / "gpt2", {**gpt2, **sizes}, table)})
    assert "from 32 tokens to 128 tokens" in learned.text
    assert not learned.files
    assert "`transformer.wpe.weight`" in learned.text
    bloom = {"model_type": "bloom", "architectures": ["BloomForCausalLM"], "hidden_size": 16, "n_layer": 2, "n_head": 2}
    source = folder(tmp_path / "bloom", bloom, {"transformer.x": np.zeros(2, dtype=np.float32)})
    biased = card("alibi-interpolation", options={"source": source, "trained_length": 32})
    assert "alibi-interpolation" in ModelCard(biased.text).data.tags
    assert "trust_remote_code=True" in biased.text
    for one in (learned, biased):
        assert str(tmp_path) not in one.text


def test_a_written_conversion(tmp_path: Path) -> None:
    """From a folder that `extend` wrote, with nothing about its source: no path of this machine stands in the card."""
    made = ctxforge.extend("bundled", method="yarn", to="4x", out=tmp_path / "source", link=True)
    again = ctxforge.extend(made.out, method="pi", to="2x", out=tmp_path / "out", link=True)
    record = json.loads((again.out / "ctxforge.json").read_text())
    config = json.loads((again.out / "config.json").read_text())
    rendered = render_card(CardInput(None, None, None, REPO, record, None, config))
    assert str(tmp_path) not in rendered.text
    assert "a local checkpoint, `source`" in rendered.text
    data = ModelCard(rendered.text).data
    assert (data.base_model, data.license, data.pipeline_tag) == (None, None, None)
    assert "The source's card states no licence, so none is stated here." in rendered.text
    assert "from 2k (2048) tokens to 4k (4096) tokens" in rendered.text
    for name, svg in rendered.files.items():
        assert svg.startswith(b"<svg "), name


def test_nothing_is_invented_where_nothing_is_recorded() -> None:
    made = render_card(CardInput(None, None, SOURCE_CARD, REPO, {}, None, {}))
    assert "byte for byte" not in made.text
    assert "What engines make of this config was not worked out" in made.text
    assert not made.files
    assert ModelCard(made.text).data.tags == ["text-generation-inference", "ctxforge", "long-context"]


def test_a_calibrated_checkpoint() -> None:
    """Stored: what `build(folder, method="yarn")` and `run(folder)` of tests/calibrate/run_builders wrote."""
    stored = json.loads((Path(__file__).parent / "fixtures" / "calibrated.json").read_text(encoding="utf-8"))
    record: dict[str, Any] = stored["provenance"]
    assert "/home/somebody" in json.dumps(record)
    made = render_card(CardInput(None, None, None, REPO, record, None, stored["config"]))
    changed, (entry,) = part(made.text, "What was changed"), record["calibrations"]
    assert "### Calibration: short" in changed
    assert f"| steps | 6; step {entry['best_step']} was kept" in changed
    assert entry["data"][0]["sha256"] in changed
    assert "| data.jsonl | 12 |" in changed
    best = entry["held_out"]["best"]
    assert f"{best['use']:+.4f} nats a token (no interval)" in changed
    assert f"against the source: {best['short_regression']:+.4f} nats a token" in changed
    assert "Its weights were fine-tuned after the conversion (1 calibration)." in made.text
    again = part(made.text, "Making it again")
    assert "ctxforge calibrate bytes-2k-step-0 --recipe short --data data.jsonl --seed 0" in again
    assert "/home" not in made.text


def test_the_same_input_gives_the_same_bytes() -> None:
    assert card().contents == card().contents
    assert next(iter(card().contents)) == "README.md"


def test_the_pairs_of_several_tables() -> None:
    """Tables by layer type each have a column, and the one that was not changed is not called the method."""
    document = json.loads(json.dumps(given().provenance))
    table = document["plan"]["tables"][0]
    other = {**table, "layer_type": "sliding_attention", "changed": False, "divisors": [1.0] * 32}
    document["plan"]["tables"] = [{**table, "layer_type": "full_attention"}, other]
    made = render_card(given(provenance=document))
    assert "| pair | yarn |" in made.text  # of the changed one
    assert "unchanged, sliding_attention" in made.files["ctxforge-lambda.svg"].decode()


def test_tables_are_read_as_tables() -> None:
    header, *rows = rows_of(card().text.replace("\n\n|", "\n\n**x**\n\n|", 1), "x")
    assert header[-1] == "all rotary layers"
    assert dict(rows)["pairs stretched"] == "28 of 32"
