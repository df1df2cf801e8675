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

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "ctxforge" / "engines" / "measured.json"
PAGE = ROOT / "docs" / "engines.md"
PATCHED = "llama.cpp, ctxforge gguf"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="bundled, smollm2, or a folder")
    parser.add_argument("--to", help="target length (default: 4x for bundled, 2x otherwise)")
    parser.add_argument("--tokens", type=int, help="tokens compared (default: 1024 for bundled, 256 otherwise)")
    parser.add_argument("--engines", help="comma-separated (default: all that are installed)")
    parser.add_argument("--forms", help="semicolon-separated (default: all for bundled, the main ones otherwise)")
    parser.add_argument("--page-only", action="store_true", help="write the page from the data that there is")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(MEASURED.read_text())["rows"] if MEASURED.exists() else []
    if not options.page_only:
        rows = measure(options, rows)
    PAGE.write_text(page(rows), encoding="utf-8")
    return 0


def measure(options: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    bundled = options.model == "bundled"
    to, tokens = options.to or ("4x" if bundled else "2x"), options.tokens or (1024 if bundled else 256)
    engines = options.engines.split(",") if options.engines else [*RUNNERS, PATCHED]
    names = options.forms.split(";") if options.forms else [c.form for c in CASES] if bundled else list(MAIN_FORMS)
    for case in (case for case in CASES if case.form in names):
        with tempfile.TemporaryDirectory(prefix="engines-", dir=scratch_folder()) as scratch:
            folder = make(case, source(options.model), to, Path(scratch) / "model")
            for result in run(folder, engines, tokens, Path(scratch)):
                row = as_row(case, result, folder, options.model, tokens)
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
    from ctxforge.engines.run.convert import convert_to_gguf
    from ctxforge.gguf_rope import patch_gguf

    converted, out = scratch / "converted.gguf", scratch / "patched.gguf"
    if not convert_to_gguf(folder, converted):
        return []
    patch_gguf(converted, folder, out)
    [result] = run_engines(folder, ("llama.cpp",), tokens=tokens, gguf=out)
    return [RunResult(**{**vars(result), "engine": PATCHED})]


def source(model: str) -> str | Path:
    if model != "smollm2":
        return model
    sys.path.insert(0, str(ROOT))
    from tests.assets import smollm2_folder

    return smollm2_folder()


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
