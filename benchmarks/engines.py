"""What engines compute: each form of config on each engine that is installed, against the plan, as data.

    python benchmarks/engines.py [--model bundled] [--tokens 1024] [--engines vllm,mlx-lm] [--forms 'yarn,linear']

Writes ctxforge/engines/measured.json (rows of other engines, forms and models are kept) and docs/engines.md.
Environments: `make engines` creates them and names their Pythons; see docs/engines.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine_cases import CASES, MAIN_FORMS, Case, clear, make
from engine_page import page

from ctxforge.engines.run import RUNNERS, RunResult, run_engines
from ctxforge.engines.run.convert import convert_to_gguf
from ctxforge.engines.run.worker import WorkerError
from ctxforge.errors import CtxforgeError
from ctxforge.gguf_rope import patch_gguf

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "ctxforge" / "engines" / "measured.json"
PAGE = ROOT / "docs" / "engines.md"
PATCHED = "llama.cpp+gguf"
TINY_KINDS = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma2",
    "stablelm",
    "olmo2",
    "smollm3",
    "gpt_oss",
)
TINY_FORMS = ("theta only", "yarn", "longrope, folded")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="bundled, smollm2, tiny, tiny:TYPE, or a folder")
    parser.add_argument("--to", help="target length (default: 4x for bundled, 2x otherwise)")
    parser.add_argument("--tokens", type=int, help="tokens compared (default: 1024 for bundled, 256 otherwise)")
    parser.add_argument("--engines", help="comma-separated (default: all that are installed)")
    parser.add_argument("--forms", help="semicolon-separated (default: all for bundled, fewer otherwise)")
    parser.add_argument("--page-only", action="store_true", help="write the page from the data that there is")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(MEASURED.read_text())["rows"] if MEASURED.exists() else []
    if not options.page_only:
        models = [f"tiny:{kind}" for kind in TINY_KINDS] if options.model == "tiny" else [options.model]
        for model in models:
            rows = measure(options, model, rows)
    PAGE.write_text(page(rows), encoding="utf-8")
    return 0


def measure(options: argparse.Namespace, model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    bundled, tiny = model == "bundled", model.startswith("tiny:")
    to, tokens = options.to or ("4x" if bundled or tiny else "2x"), options.tokens or (1024 if bundled else 256)
    engines = options.engines.split(",") if options.engines else [*RUNNERS, PATCHED]
    defaults = tuple(case.form for case in CASES) if bundled else TINY_FORMS if tiny else MAIN_FORMS
    names = options.forms.split(";") if options.forms else defaults
    for case in (case for case in CASES if case.form in names):
        with tempfile.TemporaryDirectory(prefix="engines-", dir=scratch_folder()) as scratch:
            folder = make(case, source(model), to, Path(scratch) / "model")
            for result in run(folder, engines, tokens, Path(scratch)):
                row = as_row(case, result, folder, model, tokens)
                if result.status == "not installed":
                    continue
                key = identity(row)
                rows = [old for old in rows if identity(old) != key] + [row]
                print(
                    f"{case.form}: {result.engine}: {result.status} {result.max_difference} {result.detail}", flush=True
                )
            clear(folder)
        document = {"about": "written by benchmarks/engines.py; differences of log-probabilities in nats", "rows": rows}
        MEASURED.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return rows


def scratch_folder() -> Path:
    """On the disk of the repository and of the bundled model, so that weights can be hardlinked."""
    folder = ROOT / ".cache"
    folder.mkdir(exist_ok=True)
    return folder


def run(folder: Path, engines: list[str], tokens: int, scratch: Path) -> list[RunResult]:
    """The engines asked for, one at a time; the patched GGUF is made by `ctxforge gguf` and run by llama.cpp."""
    stock = tuple(name for name in engines if name in RUNNERS)
    results = run_engines(folder, stock, tokens=tokens) if stock else []
    if PATCHED in engines:
        results += patched(folder, tokens, scratch)
    return results


def patched(folder: Path, tokens: int, scratch: Path) -> list[RunResult]:
    """llama.cpp on what `ctxforge gguf` makes of the conversion, for any graph: the point is to see which read it."""
    converted, out = scratch / "converted.gguf", scratch / "patched.gguf"
    try:
        if not convert_to_gguf(folder, converted):
            return []
        patch_gguf(converted, folder, out, graphs=None)
    except (WorkerError, CtxforgeError) as error:
        why = error.cause if isinstance(error, CtxforgeError) else str(error)
        return [RunResult(PATCHED, None, "failed", None, None, 0, why, None, RUNNERS["llama.cpp"].tolerance)]
    [result] = run_engines(folder, ("llama.cpp",), tokens=tokens, gguf=out)
    return [RunResult(**{**vars(result), "engine": PATCHED})]


def source(model: str) -> str | Path:
    sys.path.insert(0, str(ROOT))
    if model == "smollm2":
        from tests.assets import smollm2_folder

        return smollm2_folder()
    if not model.startswith("tiny:"):
        return model
    from tests import tiny_models

    # llama.cpp knows SmolLM3's own interval alone.
    tiny_models.TINY["smollm3"] = {"no_rope_layer_interval": 4, "num_hidden_layers": 4}
    kind = model.partition(":")[2]
    return tiny_models.save_tiny(kind, scratch_folder() / f"tiny-{kind}")


def as_row(case: Case, result: RunResult, folder: Path, model: str, tokens: int) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "engine": result.engine,
        "version": result.version,
        "form": case.form,
        "explanation": case.explanation,
        "by_hand": case.edit is not None,
        "architecture": config["model_type"],
        "model": model,
        "status": result.status,
        "tokens": result.tokens,
        "max_difference": result.max_difference,
        "mean_difference": result.mean_difference,
        "control_difference": result.control_difference,
        "tolerance": result.tolerance,
        "served_length": result.served_length,
        "configured_length": config["max_position_embeddings"],
        "detail": result.detail,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"python benchmarks/engines.py --model {model} --tokens {tokens} --forms '{case.form}'",
    }


def identity(row: dict[str, Any]) -> tuple[str, ...]:
    return row["engine"], row["form"], row["model"]


if __name__ == "__main__":
    raise SystemExit(main())
