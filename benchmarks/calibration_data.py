"""Documents to token ids on disk, and back: ctxforge's token cache against `datasets.map`.

    python benchmarks/calibration_data.py [--megabytes 100] [--repeats 3] [--tokenizer FOLDER] [--check]

Each side reads the same jsonl file with the same tokenizer in a process of its own, in turn; imports and the loading
of the tokenizer are not counted. All must give the same ids (SHA-256 over all documents) or the run fails. `datasets`
takes part where it is installed, in one process and in one for each core; else the comparison is with one text after
another, which says nothing about `datasets`. Goals: 1.5 times as fast as the better of its two, and a warm opening in
50 ms. Processor seconds, children included, are printed too: on a shared machine they say more than the clock.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

GOAL_RATIO = 1.5
GOAL_WARM_MILLISECONDS = 50.0
SEED = 0
OURS, MAPPED, MAPPED_PROCESSES, PLAIN = "ctxforge", "datasets.map", "datasets.map, processes", "one by one"


def write_data(path: Path, megabytes: float) -> int:
    """English sentences in random order, as documents of 500 to 50 000 characters, log-uniform; how many."""
    from ctxforge.sources import bundled_text

    sentences = [f"{one.strip()}. " for one in bundled_text().split(". ")]
    random = np.random.default_rng(SEED)
    written = count = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            wanted, parts, size = float(np.exp(random.uniform(np.log(500), np.log(50_000)))), [], 0
            while size < wanted:
                parts.append(sentences[int(random.integers(len(sentences)))])
                size += len(parts[-1])
            written += file.write(json.dumps({"id": count, "text": f"{count} {''.join(parts)}"}) + "\n")
            count += 1
    return count


def run_ours(file: Path, tokenizer: Any) -> Iterable[np.ndarray]:
    from ctxforge.calibrate.data import Filters, open_or_build, parse_source

    cache = open_or_build(parse_source(str(file)), tokenizer, filters=Filters(deduplicate=False))
    return (cache.document(i) for i in range(len(cache)))


def run_mapped(file: Path, tokenizer: Any, processes: int | None) -> Iterable[np.ndarray]:
    import datasets

    datasets.disable_progress_bars()
    end = [tokenizer.eos_token_id]

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)
        return {"input_ids": [ids + end for ids in found["input_ids"]]}

    cache = os.environ["CTXFORGE_CACHE"]
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=cache)
    rows = rows.map(tokenise, batched=True, remove_columns=rows.column_names, num_proc=processes)
    return (np.asarray(row) for batch in rows.with_format("numpy").iter(256) for row in batch["input_ids"])


def run_plain(file: Path, tokenizer: Any) -> Iterable[np.ndarray]:
    with file.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return [
        np.array([*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id])
        for text in texts
    ]


def child(side: str, file: Path, folder: str) -> None:
    """One side, cold and then warm; prints what it took as JSON."""
    import hashlib

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if side.startswith(MAPPED):
        import datasets  # noqa: F401
    else:
        import ctxforge.calibrate.data  # noqa: F401

    def once() -> Iterable[np.ndarray]:
        if side == OURS:
            return run_ours(file, tokenizer)
        if side == PLAIN:
            return run_plain(file, tokenizer)
        return run_mapped(file, tokenizer, None if side == MAPPED else os.cpu_count())

    before, began = processor_seconds(), time.perf_counter()
    documents = once()
    seconds, processor = time.perf_counter() - began, processor_seconds() - before
    digest, count = hashlib.sha256(), 0
    for ids in documents:
        digest.update(ids.astype("<u4").tobytes())
        count += len(ids)
    warm = warm_processor = 0.0
    if side != PLAIN:
        before, began = processor_seconds(), time.perf_counter()
        once()
        warm, warm_processor = 1000 * (time.perf_counter() - began), 1000 * (processor_seconds() - before)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    print(json.dumps([seconds, processor, warm, warm_processor, peak, count, digest.hexdigest()]))


def processor_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def measure(side: str, file: Path, folder: str) -> list[Any]:
    with tempfile.TemporaryDirectory(dir=file.parent) as cache:
        env = {**os.environ, "CTXFORGE_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--child", side, "--file", str(file), "--tokenizer", folder]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
        found: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def main(arguments: list[str] | None = None) -> int:
    from ctxforge.sources import bundled_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokenizer", default=str(bundled_model()), help="a folder with a tokenizer")
    parser.add_argument("--sides", nargs="*", help="leave out the others")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options.child, options.file, options.tokenizer)
        return 0
    peers = [MAPPED, MAPPED_PROCESSES] if importlib.util.find_spec("datasets") else [PLAIN]
    if peers == [PLAIN]:
        print("datasets is not installed: compared with one text after another\n")
    sides = [one for one in (OURS, *peers) if not options.sides or one in options.sides]
    found: dict[str, list[list[Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.jsonl"
        count = write_data(file, options.megabytes)
        size = file.stat().st_size / 1e6
        for _ in range(options.repeats):
            for side in sides:
                found[side].append(measure(side, file, options.tokenizer))
    ids = {(one[5], one[6]) for runs in found.values() for one in runs}
    if len(ids) != 1:
        raise SystemExit(f"the sides do not agree on the ids: {ids}")
    medians = {side: [statistics.median(one[i] for one in runs) for i in range(5)] for side, runs in found.items()}
    print(f"{size:.1f} MB of jsonl, {count} documents, {ids.pop()[0]} tokens, the same ids on every side\n")
    print(f"{'':26}{'seconds':>9}{'MB/s':>8}{'processor s':>13}{'peak MB':>9}{'warm ms':>9}{'processor':>11}")
    for side, (seconds, processor, warm, warm_processor, peak) in medians.items():
        print(
            f"{side:26}{seconds:9.2f}{size / seconds:8.1f}{processor:13.2f}{peak:9.0f}{warm:9.1f}{warm_processor:11.1f}"
        )
    rest = [side for side in sides if side != OURS]
    ratio = min((medians[side][0] for side in rest), default=0.0) / medians[OURS][0]
    processor = min((medians[side][1] for side in rest), default=0.0) / medians[OURS][1]
    print(f"\n{ratio:.2f} times as fast by the clock, {processor:.2f} by processor seconds; goal {GOAL_RATIO}")
    if options.json:
        figures = {"megabytes": size, "medians": medians, "ratio": ratio, "processor_ratio": processor}
        options.json.write_text(json.dumps(figures, indent=1))
    missed = ratio < GOAL_RATIO or medians[OURS][2] > GOAL_WARM_MILLISECONDS
    return int(options.check and missed)


if __name__ == "__main__":
    sys.exit(main())
