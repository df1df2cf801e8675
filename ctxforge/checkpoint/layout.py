"""Which files make up a checkpoint: the weights, the sidecars that travel with them, and what stays behind."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.checkpoint.jsonio import ascii_name
from ctxforge.errors import CheckpointError, UnsupportedError, UsageError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
BIN_SINGLE = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"
JSON_SIDECARS = ("tokenizer_config.json", "generation_config.json", "ctxforge.json")
"""The sidecars that are parsed when present."""

SHARD_PATTERN = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
"""Names that loaders and the Hub take for shards of the main weights."""

_BIN_SHARD_PATTERN = re.compile(r"pytorch_model-\d{5}-of-\d{5}\.bin")

_LEFT_FOLDERS = frozenset(
    {".git", ".cache", ".huggingface", "original", "onnx", "openvino", "coreml", "metal", "__pycache__", "runs"}
)
_LEFT_FOLDER_PATTERNS = ("checkpoint-*", "global_step*")
_LEFT_FILES = (
    # the same weights in another format, or a variant of them: unconverted, they would contradict the output
    "*.bin", "*.bin.index.json", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel",
    "*.gguf", "consolidated*", "params.json", "model.*.safetensors", "model.safetensors.index.*.json",
    # the state of a training run
    "*.pth", "*.pt", "*.ckpt", "rng_state*",
)  # fmt: skip


def stays_behind(name: str) -> bool:
    """Whether the file `name` (a POSIX path relative to the root) is never carried into a converted checkpoint."""
    *folders, base = name.split("/")
    if any(f in _LEFT_FOLDERS or any(fnmatch.fnmatchcase(f, p) for p in _LEFT_FOLDER_PATTERNS) for f in folders):
        return True
    return base != INDEX and any(fnmatch.fnmatchcase(base.lower(), pattern) for pattern in _LEFT_FILES)


def skipped_folder(name: str) -> bool:
    """Whether a folder of this name holds nothing that a checkpoint needs, so that it isn't even listed."""
    return stays_behind(f"{name}/x")


def safe_name(name: object, where: str) -> str:
    """`name` if it is a plain relative POSIX path below the root.

    Raises:
        CheckpointError: absolute, empty, with `..`, a backslash, a colon or a control character.
    """
    text = name if isinstance(name, str) else str(name)
    parts = text.split("/")
    bad = not isinstance(name, str) or any(part in ("", ".", "..") for part in parts)
    if bad or "\\" in text or re.match(r"[A-Za-z]:", text) or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise CheckpointError(
            f"{where} names the file {ascii_name(text)}, which is not a plain path inside the checkpoint.",
            "Do not use this checkpoint unless you trust its author; a correct index names files beside itself.",
        )
    return text


@dataclass(frozen=True)
class Layout:
    """The weights among a list of files: their format, the weight files in order, and the index that names them."""

    weights: str
    files: tuple[str, ...]
    index: str | None


def find_weights(names: Iterable[str], source: str) -> Layout:
    """Decide from the names alone which files are the weights; safetensors before `.bin` before GGUF.

    Args:
        names: all file names relative to the root.
        source: the checkpoint's name, for messages.

    Returns:
        The layout; where there is an index, `files` is empty until `index_files` has read it.

    Raises:
        CheckpointError: no weights, or no config.json.
        UsageError: an adapter, or several GGUF files.
    """
    present = set(names)
    ggufs = sorted(name for name in present if "/" not in name and name.lower().endswith(".gguf"))
    if CONFIG not in present and not ggufs:
        raise _no_config(present, source)
    if CONFIG in present:
        if INDEX in present:
            return Layout("safetensors", (), INDEX)
        if SINGLE in present:
            return Layout("safetensors", (SINGLE,), None)
        shards = sorted(name for name in present if SHARD_PATTERN.fullmatch(name))
        if shards:
            raise CheckpointError(
                f"{source} has {len(shards)} weight shards but no {INDEX}.", f"Download {INDEX} as well."
            )
        if BIN_INDEX in present:
            return Layout("bin", (), BIN_INDEX)
        if BIN_SINGLE in present:
            return Layout("bin", (BIN_SINGLE,), None)
    if len(ggufs) == 1:
        return Layout("gguf", (ggufs[0],), None)
    if ggufs:
        raise UsageError(
            f"{source} holds {len(ggufs)} GGUF files.", f"Name the one to convert, for example {ggufs[0]}."
        )
    if any(name.startswith("adapter_model.") for name in present):
        raise UsageError(
            f"{source} is an adapter (LoRA), not a whole model.", "Merge it into its base model first (peft)."
        )
    raise CheckpointError(
        f"{source} has a config.json but no weights.", f"Put {SINGLE}, or the shards and {INDEX}, beside it."
    )


def _no_config(present: set[str], source: str) -> CheckpointError | UsageError:
    """What to say about a source without config.json."""
    meta = any(
        fnmatch.fnmatchcase(name.rsplit("/", 1)[-1], pattern)
        for name in present
        for pattern in ("consolidated*", "params.json", "*.pth")
    )
    if meta:
        return CheckpointError(
            f"{source} is in the original Meta layout (params.json, consolidated.*): it has no config.json.",
            "Use the repository in transformers layout, usually the one whose name ends in -hf.",
        )
    if any(name.startswith("adapter_") for name in present):
        return UsageError(
            f"{source} is an adapter (LoRA), not a whole model.", "Merge it into its base model first (peft)."
        )
    return CheckpointError(
        f"{source} has no config.json.",
        "Give a checkpoint in transformers layout; for an original Meta checkpoint use the -hf repository.",
    )


def index_files(index: Mapping[str, Any], name: str, suffix: str) -> dict[str, str]:
    """The checked `weight_map` of an index: tensor name to file name.

    Args:
        index: the parsed index.
        name: its file name, for messages.
        suffix: what the weight files must end with.

    Raises:
        CheckpointError: no weight_map, an empty one, or one that names something else than weight files in the folder.
    """
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{name} has no weight_map.", f"Restore {name} from the original model.")
    checked: dict[str, str] = {}
    seen: set[str] = set()
    for tensor, file in mapping.items():
        if not isinstance(file, str) or file not in seen:
            seen.add(safe_name(file, name))
            if not file.endswith(suffix):
                raise CheckpointError(
                    f"{name} names {ascii_name(file)}, which is not a {suffix} file.",
                    f"Restore {name} from the original model.",
                )
        checked[tensor] = file
    return checked


def check_shards(shards: Iterable[str], names: Iterable[str], index: str) -> None:
    """Compare the files that an index names with the files that are there.

    Raises:
        CheckpointError: a shard is missing, a file named like a shard isn't in the index, or there are two sets.
    """
    wanted, present = set(shards), set(names)
    missing = sorted(wanted - present)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"The shard {missing[0]}{more} named in {index} is missing.", "Download the checkpoint again."
        )
    pattern = SHARD_PATTERN if index == INDEX else _BIN_SHARD_PATTERN
    extra = sorted(name for name in present - wanted if pattern.fullmatch(name))
    if extra:
        raise CheckpointError(
            f"{extra[0]} looks like a shard of this model, but {index} does not name it.",
            "Remove it if it is left over from another save, or restore the index.",
        )
    if SINGLE in present and SINGLE not in wanted and index == INDEX:
        raise CheckpointError(
            f"There are two sets of weights: {SINGLE}, and the shards that {INDEX} names.",
            "Remove the one that is not the model; loaders disagree on which they take.",
        )


def unsupported_hub_gguf(source: str) -> UnsupportedError:
    """The refusal of a Hub repository that holds only GGUF files."""
    return UnsupportedError(
        f"{source} holds GGUF files only, and a Hub repository of those usually holds one per quantisation.",
        "Download the one you want (hf download) and give its path, or use the original repository.",
    )
