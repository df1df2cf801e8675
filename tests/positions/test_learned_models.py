"""Emitted checkpoints of every type with learned positions, loaded and run, against tables replaced in memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import ctxforge
from ctxforge.checkpoint import verify_integrity
from tests.positions.learned_models import KINDS, OFFSET, TABLE, TRAINED, edit_tensors, ids, load, logits, save

METHOD = "learned-interpolation"


def extend(source: Path, to: int, out: Path, **options: Any) -> Path:
    done = ctxforge.extend(source, method=METHOD, to=to, out=out, **options)
    assert verify_integrity(done.out) == []
    return done.out


def hand_made(table: torch.Tensor, offset: int, to: int, *, trained: int = TRAINED) -> torch.Tensor:
    """The stretched table as (a (L' - r) + b r) / L' with r = p L0 mod L': in float64 only the division rounds.

    Hence halfway points are exact, which `numpy.interp` spoils: there, the nearest even float32 is the right one.
    """
    body = table[offset : offset + trained].double().numpy()
    below, r = np.divmod(np.arange(to) * trained, to)
    above = np.minimum(below + 1, trained - 1)
    new = (body[below] * (to - r)[:, None] + body[above] * r[:, None]) / to
    return torch.cat([table[:offset], torch.from_numpy(new).float()])


def reference(source: Path, kind: str, table: torch.Tensor) -> Any:
    """The source's model built for a longer table, its other weights loaded and the table replaced in memory."""
    original = load(source)
    config = AutoConfig.from_pretrained(source)
    config.max_position_embeddings = len(table) - OFFSET.get(kind, 0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    missing, unexpected = model.load_state_dict({**original.state_dict(), TABLE[kind]: table}, strict=True)
    assert not missing
    assert not unexpected
    return model


@pytest.mark.parametrize("to", [2 * TRAINED, 150])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_a_table_replaced_in_memory(tmp_path: Path, kind: str, to: int) -> None:
    source = save(kind, tmp_path / "src")
    before = load(source)
    old = before.get_parameter(TABLE[kind]).detach()
    offset = OFFSET.get(kind, 0)
    model = load(extend(source, to, tmp_path / "out"))
    new = model.get_parameter(TABLE[kind]).detach()
    assert new.shape == (to + offset, 64)
    if to == 2 * TRAINED:
        assert torch.equal(new[offset::2], old[offset:])  # even positions are the source's rows, bit for bit
    assert torch.equal(new[:offset], old[:offset])
    by_hand = hand_made(old, offset, to)
    assert (new - by_hand).abs().max() < 1e-7
    tokens = ids(to)
    found = logits(model, tokens)
    wanted = logits(reference(source, kind, by_hand), tokens)
    scale = wanted.abs().max()
    assert (found - wanted).abs().max() < 1e-6 * scale
    # Controls: a table that is off by a row, or one with its corners aligned, gives other logits.
    shifted = torch.cat([new[1:], new[-1:]])
    assert (logits(reference(source, kind, shifted), tokens) - wanted).abs().max() > 1e-2 * scale
    if offset:
        blind = hand_made(old, 0, to + offset, trained=TRAINED + offset)  # the offset rows taken for positions
        assert (logits(reference(source, kind, blind), tokens) - wanted).abs().max() > 1e-2 * scale
    aligned = torch.nn.functional.interpolate(old[offset:].T[None], size=to, mode="linear", align_corners=True)[0].T
    corners = torch.cat([old[:offset], aligned])
    assert (logits(reference(source, kind, corners), tokens) - wanted).abs().max() > 1e-3 * scale


@pytest.mark.parametrize("kind", KINDS)
def test_spread_out_tokens_see_the_source_s_embeddings(tmp_path: Path, kind: str) -> None:
    """Tokens at the even positions of the stretched model are tokens at positions 0, 1, 2 ... of the source."""
    source = save(kind, tmp_path / "src")
    before, after = load(source), load(extend(source, 2 * TRAINED, tmp_path / "out"))
    tokens = ids(20)  # within GPT-Neo's window
    spread = 2 * torch.arange(20)[None]
    with torch.no_grad():
        found = after(input_ids=tokens, position_ids=spread).logits
        shifted = after(input_ids=tokens, position_ids=spread + 1).logits
    wanted = logits(before, tokens)
    assert torch.equal(found, wanted) or (found - wanted).abs().max() < 1e-6 * wanted.abs().max()
    assert (shifted - wanted).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "openai-gpt"])
def test_token_by_token_equals_one_pass(tmp_path: Path, kind: str) -> None:
    """With a KV cache; openai-gpt has none."""
    model = load(extend(save(kind, tmp_path / "src"), 2 * TRAINED, tmp_path / "out"))
    tokens = ids(2 * TRAINED)
    whole = logits(model, tokens)
    cache = None
    steps = []
    with torch.no_grad():
        for position in range(tokens.shape[1]):
            mask = torch.ones(1, position + 1, dtype=torch.long)
            step = model(input_ids=tokens[:, position : position + 1], attention_mask=mask, cache=cache, use_cache=True)
            cache = step.past_key_values
            steps.append(step.logits)
    assert (torch.cat(steps, 1) - whole).abs().max() < 1e-5 * whole.abs().max()


def test_openai_gpt_by_growing_prefixes(tmp_path: Path) -> None:
    model = load(extend(save("openai-gpt", tmp_path / "src"), 2 * TRAINED, tmp_path / "out"))
    tokens = ids(2 * TRAINED)
    whole = logits(model, tokens)
    for length in (1, 63, 65, 100, 128):
        part = logits(model, tokens[:, :length])
        assert (part[:, -1] - whole[:, length - 1]).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("kind", ["opt", "biogpt"])
def test_left_padding_takes_the_rows_that_were_kept(tmp_path: Path, kind: str) -> None:
    model = load(extend(save(kind, tmp_path / "src"), 2 * TRAINED, tmp_path / "out"))
    tokens = ids(100)
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.long), tokens], 1)
    mask = (torch.arange(107) >= 7).long()[None]
    positions = mask.cumsum(1) * mask - 1
    with torch.no_grad():
        found = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 7:]
    wanted = logits(model, tokens)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_without_the_prefix(tmp_path: Path, kind: str) -> None:
    """Old checkpoints of the bare model: `wpe.weight`, `decoder.embed_positions.weight`, ..."""
    source = save(kind, tmp_path / "src")
    whole = load(extend(source, 2 * TRAINED, tmp_path / "whole"))
    prefix = TABLE[kind].split(".")[0] + "."
    edit_tensors(source, lambda state: {name.removeprefix(prefix): value for name, value in state.items()})
    bare = load(extend(source, 2 * TRAINED, tmp_path / "bare"))
    assert torch.equal(logits(bare, ids(128)), logits(whole, ids(128)))


MASKS = {
    "gpt2": ("transformer.h.{}.attn.bias", (1, 1, TRAINED, TRAINED), "transformer.h.{}.attn.masked_bias"),
    "gpt_neo": (
        "transformer.h.{}.attn.attention.bias",
        (1, 1, TRAINED, TRAINED),
        "transformer.h.{}.attn.attention.masked_bias",
    ),
    "openai-gpt": ("transformer.h.{}.attn.bias", (1, 1, TRAINED, TRAINED), None),
    "gpt_bigcode": ("transformer.bias", (TRAINED, TRAINED), None),
}


def add_masks(source: Path, kind: str) -> None:
    """The causal masks that old versions saved, all False: whoever used them would see nothing."""
    mask, shape, masked = MASKS[kind]

    def change(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for layer in range(KINDS[kind].get("n_layer", 4)):
            state[mask.format(layer)] = torch.zeros(shape, dtype=torch.bool)
            if masked is not None:
                state[masked.format(layer)] = torch.tensor(-1e4)
        return state

    edit_tensors(source, change)


@pytest.mark.parametrize("kind", MASKS)
def test_stored_causal_masks_are_carried_and_ignored(tmp_path: Path, kind: str) -> None:
    source = save(kind, tmp_path / "src")
    wanted = logits(load(extend(source, 2 * TRAINED, tmp_path / "plain")), ids(128))
    add_masks(source, kind)
    done = ctxforge.extend(source, method=METHOD, to=2 * TRAINED, out=tmp_path / "masks")
    assert "causal masks of 64 x 64" in done.conversion.lowered.notes[1]
    found = logits(load(done.out), ids(128))
    assert torch.equal(found, wanted)


def test_config_keys_and_sidecars(tmp_path: Path) -> None:
    source = save("gpt2", tmp_path / "src")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "n_ctx": TRAINED}, indent=2))
    out = extend(source, 256, tmp_path / "out")
    emitted = json.loads((out / "config.json").read_text())
    assert emitted == {**config, "n_ctx": 256, "n_positions": 256}
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"model_max_length": 256}
    record = json.loads((out / "ctxforge.json").read_text())
    assert record["plan"]["tensors_edited"] == ["transformer.wpe.weight"]
    assert set(record["edited_tensors"]) == {"transformer.wpe.weight"}
    neo = extend(save("gpt_neo", tmp_path / "neo"), 256, tmp_path / "neo-out")
    emitted = json.loads((neo / "config.json").read_text())
    assert emitted["max_position_embeddings"] == 256
    assert "n_positions" not in emitted
    assert emitted["window_size"] == 24


def test_half_precision_and_bin_sources(tmp_path: Path) -> None:
    """A `.bin` source goes through the importer, and its table is rounded once to its own dtype."""
    source = save("opt", tmp_path / "src")
    model = load(source).bfloat16()
    old = model.get_parameter(TABLE["opt"]).detach().clone()
    (source / "model.safetensors").unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    out = extend(source, 2 * TRAINED, tmp_path / "out")
    new = load_file(out / "model.safetensors")[TABLE["opt"]]
    assert new.dtype == torch.bfloat16
    assert torch.equal(new[2::2], old[2:])
    middle = (0.5 * old[2:-1].float() + 0.5 * old[3:].float()).bfloat16()
    assert torch.equal(new[3:-1:2], middle)
    assert torch.equal(new[-1], old[-1])


def test_only_the_trained_rows(tmp_path: Path) -> None:
    """--trained-length 40: rows 40 ... 63 were never trained, and are dropped."""
    source = save("opt", tmp_path / "src")
    old = load(source).get_parameter(TABLE["opt"]).detach()
    model = load(extend(source, 100, tmp_path / "out", trained_length=40))
    new = model.get_parameter(TABLE["opt"]).detach()
    assert new.shape == (102, 64)
    assert (new - hand_made(old, 2, 100, trained=40)).abs().max() < 1e-6
    assert logits(model, ids(100)).shape == (1, 100, 96)


def test_twice_by_whole_numbers_is_once(tmp_path: Path) -> None:
    source = save("gpt2", tmp_path / "src")
    once = load(extend(source, 6 * TRAINED, tmp_path / "once"))
    twice = load(extend(extend(source, 2 * TRAINED, tmp_path / "half"), 6 * TRAINED, tmp_path / "twice"))
    tokens = ids(6 * TRAINED)
    wanted = logits(once, tokens)
    assert (logits(twice, tokens) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_loading_says_nothing_unusual(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = extend(save("opt", tmp_path / "src"), 2 * TRAINED, tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        _, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
