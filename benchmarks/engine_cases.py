"""The checkpoints of the engine matrix: what ctxforge emits, and configs written by hand that engines get wrong.

A form names how config.json expresses a rotation; docs/engines.md has one row for each.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ctxforge

Config = dict[str, Any]
_LEGACY = ("rope_scaling", "rope_theta")
_TEMPERATURE_KEYS = ("attention_factor", "short_mscale", "long_mscale")


@dataclass(frozen=True)
class Case:
    """One checkpoint.

    Attributes:
        form: the row's name.
        method, options: what `ctxforge.extend` is given.
        edit: what is then changed in config.json by hand; None for what ctxforge emits.
        explanation: what the config holds, for the page.
    """

    form: str
    explanation: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[Config], None] | None = None


def _both(config: Config) -> list[Config]:
    return [config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)]


def _set(**values: Any) -> Callable[[Config], None]:
    def edit(config: Config) -> None:
        for entries in _both(config):
            entries.update(values)

    return edit


def _drop_temperature(config: Config) -> None:
    for entries in _both(config):
        for key in _TEMPERATURE_KEYS:
            entries.pop(key, None)


def _only_attention_factor(config: Config) -> None:
    _drop_temperature(config)
    _set(attention_factor=1.0)(config)


def _two_lists(config: Config) -> None:
    for entries in _both(config):
        entries["short_factor"] = [1.0] * len(entries["long_factor"])


def _top_level_original(config: Config) -> None:
    config["original_max_position_embeddings"] = config["rope_parameters"]["original_max_position_embeddings"]


def _new_keys_only(config: Config) -> None:
    for key in _LEGACY:
        config.pop(key, None)


def _old_keys_only(config: Config) -> None:
    del config["rope_parameters"]


CASES = (
    Case("theta only", "another `rope_theta`, nothing else", "ntk"),
    Case("linear", "`linear` (PI)", "pi"),
    Case("yarn", "`yarn` with its default temperature", "yarn"),
    Case("yarn, folded", "`yarn`, temperature 1 folded into the query weights", "yarn", {"temperature": 1.0}),
    Case("llama3", "`llama3`", "llama3"),
    Case("llama3, folded", "`llama3` as the ramp of YaRN's paper, temperature folded", "yarn-paper"),
    Case("longrope, folded", "`longrope` with equal lists, temperature folded", "mrrope-pro"),
    Case("longrope, exact", "the same, temperature in keys, weights untouched", "mrrope-pro", {"portability": "exact"}),
    Case("yarn, exact", "`yarn` with `attention_factor` 1", "yarn", {"temperature": 1.0, "portability": "exact"}),
    Case("unrotated pairs", "`longrope` lists of 1e30 (DroPE)", "drope"),
    Case("dynamic", "`dynamic`", "dynamic-ntk"),
    Case("yarn, truncate false", "`yarn` with `truncate: false`", "yarn", edit=_set(truncate=False)),
    Case("yarn, new keys only", "`rope_parameters` alone, as transformers 5 saves it", "yarn", edit=_new_keys_only),
    Case("theta, new keys only", "`rope_parameters` with a `rope_theta`, nothing else", "ntk", edit=_new_keys_only),
    Case("yarn, old keys only", "`rope_theta` and `rope_scaling` alone", "yarn", edit=_old_keys_only),
    Case("longrope, attention_factor", "equal lists, `attention_factor` 1 and no other temperature key", "mrrope-pro",
         edit=_only_attention_factor),
    Case("longrope, no temperature", "equal lists, no temperature key", "mrrope-pro", edit=_drop_temperature),
    Case("longrope, two lists", "short list of ones, long list", "mrrope-pro", edit=_two_lists),
    Case("longrope, top-level length", "the original length at the top level too", "mrrope-pro",
         edit=_top_level_original),
)  # fmt: skip
# On the larger model: the forms that most conversions end in, and the most common accident.
MAIN_FORMS = ("theta only", "linear", "yarn", "llama3", "longrope, folded", "yarn, folded", "yarn, new keys only",
              "theta, new keys only")  # fmt: skip


def make(case: Case, source: str | Path, to: str, out: Path) -> Path:
    """Convert `source` into `out` as `case` says; returns `out`."""
    ctxforge.extend(source, method=case.method, to=to, out=out, link=True, overwrite=True, **case.options)
    if case.edit is not None:
        path = out / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        case.edit(config)
        path.unlink()
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return out


def clear(folder: Path) -> None:
    """Remove a finished case's folder."""
    shutil.rmtree(folder, ignore_errors=True)


def emitted_config(case: Case) -> Config:
    """config.json of `case` on the bundled model, extended to four times its length."""
    config = copy.deepcopy(ctxforge.plan("bundled", method=case.method, to="4x", **case.options).lowered.config)
    if case.edit is not None:
        case.edit(config)
    return config
