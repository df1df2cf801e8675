"""One tiny source of a type: built, measured, saved; then converted, loaded and measured again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import ctxforge
from ctxforge.rope import RopePlan
from tests.architectures import tiny
from tests.architectures.compare import against_plan, temperatures
from tests.architectures.measure import Measured, measure
from tests.architectures.replay import Recording, cancels_scale, record, replay
from tests.architectures.watch import TOKENS

TARGET_FACTOR = 4


@dataclass(frozen=True)
class Source:
    """A tiny model on disk, and what was seen of it."""

    model_type: str
    folder: Path
    config: dict[str, Any]
    length: int
    inputs: dict[str, Any] | None
    measured: Measured
    recording: Recording
    normed: bool


def positions(model_type: str, longest: int) -> list[int] | None:
    """Consecutive positions, then the last one of the length asked for; None where the model counts for itself."""
    return None if model_type in tiny.OWN_POSITIONS else [*range(TOKENS - 1), longest - 1]


def make_source(name: str, folder: Path) -> Source:
    """Build, measure and save the tiny model called `name`."""
    model = tiny.build(name)
    model_type = name.partition(":")[0]
    torch.manual_seed(2)
    given = tiny.inputs(model_type, model, TOKENS)
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None) or tiny.TRAINED
    measured = measure(model, positions=positions(model_type, length), inputs=given)
    beyond = positions(model_type, TARGET_FACTOR * length)
    recording = record(model, beyond, given)
    normed = cancels_scale(model, None, given)
    model.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    return Source(model_type, folder, saved, length, given, measured, recording, normed)


def load(model_type: str, folder: Path) -> Any:
    """The model in `folder`, as transformers' auto class gives it, or the mapping's class where that knows no type."""
    saved = json.loads((folder / "config.json").read_text())["model_type"]
    loader = AutoModelForCausalLM if saved in tiny.TYPES else tiny.model_class(model_type)
    with tiny.without_timm():
        return loader.from_pretrained(folder, dtype=torch.float32).eval()


def converted_disagreements(source: Source, method: str, out: Path) -> tuple[RopePlan, Measured, list[str]]:
    """Convert `source` and compare the written model's measured rotations with the plan.

    Raises:
        CtxforgeError: the conversion is refused.
    """
    target = TARGET_FACTOR * source.length
    result = ctxforge.extend(source.folder, method=method, to=target, out=out)
    plan, geometry = result.conversion.plan, result.conversion.geometry
    model = load(source.model_type, result.out)
    at = positions(source.model_type, target)
    measured = measure(model, positions=at, inputs=source.inputs)
    lines = against_plan(measured, plan.groups, geometry.layout)
    replayed = replay(model, source.recording, at, source.inputs)
    lines += temperatures(measured, replayed, plan.groups, normed=source.normed)
    lines += _lost(source.config, json.loads((out / "config.json").read_text()))
    before = source.recording.logits
    worst = float((replayed.logits - before).abs().max() / before.abs().max())
    if worst > 1e-5:
        lines.append(f"more than the rotation changed: with the source's rotated q and k, logits differ by {worst:.3g}")
    return plan, measured, lines


# Keys of a rope dict that say how it scales. All others say what it rotates, and must stay.
_SCALING = (
    *("rope_type", "type", "rope_theta", "factor", "attention_factor", "original_max_position_embeddings"),
    *("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor"),
    *("short_factor", "long_factor"),
)


def _lost(before: Any, after: Any, path: str = "") -> list[str]:
    """Keys of the source's rope dicts, wherever they stand in its config, that the written config lacks or changed."""
    if not isinstance(before, dict):
        return []
    lines = []
    for key, value in before.items():
        there = after.get(key) if isinstance(after, dict) else None
        # A proportional type's fraction is how it scales; elsewhere it says how much is rotated.
        inside = "rope_parameters" in path and not (
            key == "partial_rotary_factor" and before.get("rope_type") == "proportional"
        )
        if isinstance(value, dict):
            lines += _lost(value, there, f"{path}{key}.")
        elif inside and key not in _SCALING and value != there:
            lines.append(f"config.json: {path}{key} was {value!r}, is {there!r}")
    return lines
