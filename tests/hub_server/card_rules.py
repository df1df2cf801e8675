"""What the Hub accepts as metadata of a card, in the words that it uses.

Where each rule was seen: the list of licences in huggingface_hub#4218; "model-index" fields in hub-docs modelcard.md,
their types in huu4ontocord/MDEL#34 and the pattern of dataset.type in embeddings-benchmark/mteb#1111; "datasets" in
huggingface/autotrain-advanced#648; "widget" in ostris/ai-toolkit#260; "language" in huggingface_hub/repocard_data.py;
base_model and base_model_relation in hub-docs docs/hub/model-cards.md. Unknown keys are allowed. The pattern of
license_name and the words for base_model_relation are from memory. The Hub has more rules (pipeline_tag's list, for
one): a card that passes here may still be refused there.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.hub_server.licences import LICENCES

_BLOCK = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")
"""Where the metadata stand (huggingface_hub/repocard.py, REGEX_YAML_BLOCK: the same as the Hub's)."""

_REPO_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
_DATASET_TYPE = re.compile(r"(?:[\w-]+/)?[\w.-]+")
_LICENSE_NAME = re.compile(r"[a-z0-9.-]+")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_SPECIAL_LANGUAGES = ("code", "multilingual")
_RELATIONS = ("adapter", "merge", "quantized", "finetune")
_EMPTY = "empty or missing yaml metadata in repo card"
_INVALID = "The YAML metadata of your README.md is invalid."


def read_card(text: str) -> dict[str, Any]:
    """The metadata, empty where there are none or they are broken."""
    block = _BLOCK.search(text)
    try:
        found = yaml.safe_load(block[2]) if block else None
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}


def check_card(text: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Errors and warnings; a card without a block of metadata is only warned of."""
    block = _BLOCK.search(text)
    if block is None:
        return [], [_EMPTY]
    try:
        card = yaml.safe_load(block[2])
    except yaml.YAMLError as error:
        return [f"Invalid YAML in README.md: {' '.join(str(error).split())}"], []
    if isinstance(card, list):
        return ['"value" must be of type object'], []
    if not isinstance(card, dict):
        return [_INVALID], []
    errors = [*_license(card), *_language(card), *_lists(card), *_names(card, "datasets", "dataset")]
    if repo_type == "model":
        errors += [*_base_model(card), *_model_index(card)]
    return errors, []


def _license(card: dict[str, Any]) -> list[str]:
    if "license" not in card:
        return []
    listed = card["license"] if isinstance(card["license"], list) else [card["license"]]
    errors = []
    if any(name not in LICENCES for name in listed):
        errors.append(f'"license" must be one of [{", ".join(LICENCES)}, array]')
    name = card.get("license_name")
    if name is not None and not (isinstance(name, str) and _LICENSE_NAME.fullmatch(name)):
        errors.append(f'"license_name" with value "{name}" fails to match the required pattern: /^[a-z0-9-.]+$/')
    if not isinstance(card.get("license_link", ""), str):
        errors.append('"license_link" must be a string')
    return errors


def _language(card: dict[str, Any]) -> list[str]:
    listed = card.get("language") or []
    errors = []
    for name in listed if isinstance(listed, list) else [listed]:
        if name is False:  # "no", Norwegian: the Hub's parser, unlike this one, reads it as text
            continue
        if name not in _SPECIAL_LANGUAGES and not (isinstance(name, str) and _LANGUAGE.fullmatch(name)):
            errors.append(
                f'"language" with value "{name}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code '
                '(two/three letters), or a special value like "code", "multilingual".'
            )
    return errors


def _lists(card: dict[str, Any]) -> list[str]:
    errors = [f'"{key}" must be an array' for key in ("widget", "tags") if not isinstance(card.get(key, []), list)]
    tags = card.get("tags", [])
    if isinstance(tags, list):
        errors += [f'"tags[{number}]" must be a string' for number, tag in enumerate(tags) if not isinstance(tag, str)]
    texts = ("library_name", "pipeline_tag")
    return errors + [f'"{key}" must be a string' for key in texts if not isinstance(card.get(key, ""), str)]


def _names(card: dict[str, Any], key: str, kind: str) -> list[str]:
    """Ids of repositories: one or a list."""
    if key not in card:
        return []
    value = card[key]
    if value in ("", None, []):
        return [f'"{key}" is not allowed to be empty']
    listed = value if isinstance(value, list) else [value]
    errors = []
    for number, name in enumerate(listed):
        if not (isinstance(name, str) and _REPO_ID.fullmatch(name)):
            where = f"{key}[{number}]" if isinstance(value, list) else key
            hint = "Use a" if kind == "model" else "If possible, use a"
            errors.append(f'"{where}" with value "{name}" is not valid. {hint} {kind} id from https://hf.co/{kind}s.')
    return errors


def _base_model(card: dict[str, Any]) -> list[str]:
    errors = _names(card, "base_model", "model")
    if card.get("base_model_relation", "finetune") not in _RELATIONS:
        errors.append(f'"base_model_relation" must be one of [{", ".join(_RELATIONS)}]')
    return errors


def _model_index(card: dict[str, Any]) -> list[str]:
    if "model-index" not in card:
        return []
    if not isinstance(card["model-index"], list):
        return ['"model-index" must be an array']
    errors = []
    for number, model in enumerate(card["model-index"]):
        at = f"model-index[{number}]"
        errors += _required(model, at, "name", str)
        errors += _required(model, at, "results", list)
        results = model.get("results") if isinstance(model, dict) else None
        for index, result in enumerate(results if isinstance(results, list) else []):
            errors += _result(result, f"{at}.results[{index}]")
    return errors


def _result(result: Any, at: str) -> list[str]:
    errors = [*_required(result, at, "task", dict), *_required(result, at, "dataset", dict)]
    errors += _required(result, at, "metrics", list)
    if errors:
        return errors
    errors += _required(result["task"], f"{at}.task", "type", str)
    dataset = result["dataset"]
    errors += _required(dataset, f"{at}.dataset", "name", str)
    errors += _required(dataset, f"{at}.dataset", "type", str)
    kind = dataset.get("type")
    if isinstance(kind, str) and not _DATASET_TYPE.fullmatch(kind):
        errors.append(
            f'"{at}.dataset.type" with value "{kind}" fails to match the required pattern: /^(?:[\\w-]+\\/)?[\\w-.]+$/'
        )
    for key in ("config", "split", "revision"):
        if not isinstance(dataset.get(key, ""), str):
            errors.append(f'"{at}.dataset.{key}" must be a string')
    if not isinstance(dataset.get("args", {}), (dict, str)):
        errors.append(f'"{at}.dataset.args" must be of type object')
    for number, metric in enumerate(result["metrics"]):
        errors += _required(metric, f"{at}.metrics[{number}]", "type", str)
        errors += _required(metric, f"{at}.metrics[{number}]", "value", (int, float, str, list, dict))
    return errors


def _required(value: Any, at: str, key: str, kind: type | tuple[type, ...]) -> list[str]:
    if not isinstance(value, dict):
        return [f'"{at}" must be of type object']
    if value.get(key) is None:
        return [f'"{at}.{key}" is required']
    if isinstance(value[key], kind):
        return []
    names = {str: "a string", list: "an array", dict: "of type object"}
    return [f'"{at}.{key}" must be {names.get(kind, "a number")}']  # type: ignore[arg-type]
