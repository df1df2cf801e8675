"""What lm-eval is asked in a verification: what the user named, else what the tier lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctxforge.verification.external.options import ExternalOptions, external_options
from ctxforge.verification.external.require import require_lm_eval
from ctxforge.verification.gates.tiers import Tier

# Tokens: RULER's generators find no room for their needles below.
_SHORTEST_RULER = 1024


def hand_over(
    tier: Tier, trained_length: int, target_length: int, choices: Mapping[str, Any], folder: Path
) -> ExternalOptions | None:
    """Options of a hand-over; None when nothing is handed over.

    Benchmarks of the tier whose data can't be had are reported as not run; those that the user named stop.

    Args:
        tier: with its own benchmarks and lengths.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        choices: `lm_eval_tasks`, `limit` and `include_path`, beside fields of `VerifySettings`.
        folder: of the result, for its chat template.

    Raises:
        ResourceError: lm-eval, or a package that these benchmarks need, is missing.
    """
    named = tuple(choices.get("lm_eval_tasks") or ())
    names = named or tier.external
    if not names:
        return None
    require_lm_eval(names)
    chat = choices.get("chat")
    lengths = [n for n in tier.lengths(trained_length, target_length) if n >= _SHORTEST_RULER] or [target_length]
    shared = {name: choices[name] for name in ("dtype", "device", "trust_remote_code") if name in choices}
    if shared.get("dtype", "auto") == "auto":
        from ctxforge.verification.load import pick_device, pick_dtype

        shared["dtype"] = pick_dtype("auto", folder, pick_device(shared.get("device", "auto")), target_length)
    own = {name: choices[name] for name in ("limit", "include_path", "batch_size") if choices.get(name)}
    return external_options(
        names,
        lengths,
        chat_template=_has_template(folder) if chat is None else bool(chat),
        skip_missing=not named,
        **shared,
        **own,
    )


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return "chat_template" in json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
