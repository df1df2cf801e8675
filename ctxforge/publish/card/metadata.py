"""The card's front matter: what the Hub files the model under."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ctxforge.publish.card.record import Record, mapping, text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_ORDER = ("library_name", "pipeline_tag", "base_model", "base_model_relation", "license", "license_name")
_TEXTS = ("license_name", "license_link", "pipeline_tag")
_LISTS = ("license", "language", "datasets")
_GATED = "extra_gated_"
_LENGTH_TAG = re.compile(r"context-[0-9]+")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_OURS = ("ctxforge", "long-context")
_CODE = "custom_code"
_LONGEST = 1000


def front_matter(
    given: Mapping[str, Any],
    *,
    model_name: str,
    base_model: str | None,
    record: Record,
    config: Mapping[str, Any],
    evaluations: Sequence[EvalResult],
) -> tuple[str, tuple[str, ...]]:
    """The YAML of the card, and remarks on what of the source's was left out.

    Licence, languages, data sets, gating, pipeline and tags are the source's. Its evaluation results are not: they
    are of the unmodified model. Nothing is invented: a source without a licence gives a card without one.

    Args:
        given: the source's front matter.
        model_name: name of the results.
        base_model: Hub id of the source; None for another kind of source, whose own base stays then.
        record: of the conversion.
        config: its config.json.
        evaluations: what was measured.
    """
    from huggingface_hub import ModelCardData

    remarks: list[str] = []
    kept: dict[str, Any] = {}
    for key in (*_TEXTS, *_LISTS, *sorted(key for key in given if key.startswith(_GATED))):
        if key not in given or given[key] is None:
            continue
        value = given[key] if key.startswith(_GATED) else _value(key, given[key])
        if value is None:
            remarks.append(f"the source's card has no usable {key!r}: left out")
        else:
            kept[key] = value
    base: Any = base_model
    if base is None and (inherited := _value("base_model", given.get("base_model"))) is not None:
        base = inherited
    if base is not None:
        kept |= {"base_model": base, "base_model_relation": "finetune"}
    if given.get("model-index"):
        remarks.append("the source's model-index was left out: it is of the unmodified model")
    data = ModelCardData(
        library_name="transformers",
        tags=_tags(given.get("tags"), record, config),
        model_name=model_name,
        eval_results=list(evaluations) or None,
        **kept,
    )
    return data.to_yaml(line_break="\n", original_order=[*_ORDER]), tuple(remarks)


def _value(key: str, found: Any) -> Any:
    """Text, or for the keys that allow it a list of texts; None for anything else."""
    if isinstance(found, str):
        return found if found.strip() and len(found) <= _LONGEST else None
    if key in _TEXTS:
        return None
    if key == "language" and found is False:
        return "no"  # Norwegian, which YAML 1.1 reads as a boolean
    entries = found if isinstance(found, list) else []
    if key == "language":
        entries = ["no" if entry is False else entry for entry in entries]
    usable = [entry for entry in entries if isinstance(entry, str) and entry.strip() and len(entry) <= _LONGEST]
    return usable if usable and len(usable) == len(entries) else None


def _tags(given: Any, record: Record, config: Mapping[str, Any]) -> list[str]:
    """The source's tags without those that an earlier conversion added, then ours."""
    earlier = _method_tags(text(mapping(record.previous, "plan"), "method"))
    earlier += _method_tags(text(mapping(mapping(record.previous, "plan"), "attachment"), "name"))
    entries = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    own = [*_OURS, *_method_tags(record.method), *_method_tags(record.attachment or "")]
    if record.target_length is not None:
        own.append(f"context-{record.target_length}")
    if config.get("auto_map"):
        own.append(_CODE)
    dropped = {*_OURS, *earlier, _CODE, *own}
    texts = [tag for tag in entries if isinstance(tag, str) and 0 < len(tag.strip()) <= 200]
    kept = [tag for tag in texts if tag not in dropped and not _LENGTH_TAG.fullmatch(tag)]
    return list(dict.fromkeys([*kept, *own]))


def _method_tags(name: str) -> list[str]:
    """`yarn+resonance` as two tags; nothing for "none", and for what is no name."""
    return [part for part in name.split("+") if part != "none" and _TAG.fullmatch(part)]
