"""Loading a checkpoint folder for measurement, and turning what torch says about memory into a usable message."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ctxforge.errors import CheckpointError, ResourceError, UsageError
from ctxforge.quiet import quiet_transformers
from ctxforge.verification.settings import VerifySettings

_BFLOAT16_FROM = 4096


def pick_device(name: str, local_rank: int = 0) -> str:
    """`auto` is a GPU where torch sees one; anything else must be a device that torch can use here.

    Of several processes on a machine each takes the GPU of its own number.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{local_rank % torch.cuda.device_count()}" if local_rank else "cuda"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {name!r} cannot be used here: {error}", "Use --device auto or cpu.") from error
    return name


def device_title(device: str) -> str:
    """A torch device for people: a GPU with its name."""
    if not device.startswith("cuda"):
        return device
    return f"{device} ({torch.cuda.get_device_name(torch.device(device))})"


def pick_dtype(name: str, folder: Path, device: str, length: int) -> str:
    """What `auto` means here: bfloat16 where that is what the checkpoint holds and the device computes it natively.

    On a CPU below 4096 tokens it is float32 all the same: it costs seconds there, and rounds nothing.

    Args:
        name: "auto", or a dtype, which stays.
        folder: of the checkpoint.
        device: the torch device.
        length: of the longest pass, in tokens.
    """
    if name != "auto":
        return name
    with _load_errors(folder):
        # Read as it stands: the config class of a checkpoint with code of its own would have to be run.
        config = json.loads((folder / "config.json").read_text("utf-8"))
        nested = (config, *(config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)))
    named = [entry.get("dtype") or entry.get("torch_dtype") for entry in nested]
    stored = str(next(filter(None, named), "float32")).removeprefix("torch.")
    native = torch.cuda.is_bf16_supported() if device.startswith("cuda") else cpu_has_bfloat16()
    wanted = stored in ("bfloat16", "float16") and native
    return "bfloat16" if wanted and (device != "cpu" or length >= _BFLOAT16_FROM) else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices natively, and torch uses that."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    amx = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported is not None and supported() and amx is not None and amx())


def load_model(folder: Path, settings: VerifySettings, device: str) -> Any:
    """The causal LM in `folder` through transformers, in evaluation mode, in the settings' dtype, on `device`.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    with _load_errors(folder), quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, settings.dtype),
            trust_remote_code=settings.trust_remote_code,
            local_files_only=True,
        )
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(folder: Path, settings: VerifySettings) -> Any:
    """The tokenizer in `folder`; raises CheckpointError when transformers cannot load it."""
    from transformers import AutoTokenizer

    with _load_errors(folder), quiet_transformers():
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=settings.trust_remote_code, local_files_only=True
        )


def release(device: str) -> None:
    """Give back the memory of a model that is no longer referenced, before the next one is loaded."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


@contextmanager
def memory_errors(
    length: int, settings: VerifySettings, folder: Path | None = None, device: str = "cpu"
) -> Iterator[None]:
    """Turn torch's out-of-memory errors into a `ResourceError` that says what would fit.

    Args:
        length: tokens of the longest pass.
        settings: for the dtype.
        folder: the checkpoint, for an estimate.
        device: the torch device.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            text = str(error).lower()
            if "allocate memory" not in text and "out of memory" not in text:
                raise
        smaller = "" if settings.dtype == "bfloat16" else "--dtype bfloat16, "
        raise ResourceError(
            f"out of memory while measuring {length} tokens in {settings.dtype}.",
            f"Use {smaller}a shorter target length, or a device with more memory{_estimate(folder, device, settings)}.",
        ) from error


def _estimate(folder: Path | None, device: str, settings: VerifySettings) -> str:
    from transformers import AutoConfig

    from ctxforge.verification.memory import device_memory, longest_that_fits, weight_bytes

    if folder is None:
        return ""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code, local_files_only=True)
        size, memory = weight_bytes(folder, config), device_memory(device)
    except (OSError, ValueError, KeyError, AssertionError, RuntimeError):
        return ""
    fits = {dtype: longest_that_fits(config, size, memory, dtype) for dtype in ("float32", "bfloat16")}
    words = " and ".join(f"{tokens} tokens in {dtype}" for dtype, tokens in fits.items() if tokens)
    return f"; about {words} should fit into {memory / 1e9:.0f} GB" if words else "; the weights alone do not fit"


@contextmanager
def _load_errors(folder: Path) -> Iterator[None]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder.", "Give the folder of a checkpoint.")
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise ResourceError(f"out of memory while loading {folder}.", "Use --dtype bfloat16.") from error
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{folder} has modeling code of its own, which was not run.",
                "Read its .py files; if you trust them, add --trust-remote-code.",
            ) from error
        raise CheckpointError(
            f"transformers cannot load {folder}: {error}",
            "Run `ctxforge check` on it, or load it as transformers says.",
        ) from error
