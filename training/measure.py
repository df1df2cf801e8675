"""Measure the bundled model against its targets, in float32 on its bfloat16 weights; prints a table.

All text is from the held-out book and all keys are words never used as keys in training. The methods are set
through `rope_parameters` of stock transformers, so these figures do not depend on ctxforge's own code.

Usage: python -m training.measure --model ctxforge/bundled/model --json training/runs/measured.json
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from training import books, probes, synthetic

FACTOR = 4
Row = dict[str, Any]


def methods(theta: float, head_dim: int, length: int) -> dict[str, dict[str, Any]]:
    """The `rope_parameters` of each method compared."""
    plain = {"rope_type": "default", "rope_theta": theta}
    yarn = {"rope_type": "yarn", "factor": float(FACTOR), "original_max_position_embeddings": length}
    return {
        "unmodified": plain,
        "PI": {"rope_type": "linear", "factor": float(FACTOR), "rope_theta": theta},
        "NTK": plain | {"rope_theta": theta * FACTOR ** (head_dim / (head_dim - 2))},
        "YaRN": yarn | {"rope_theta": theta},
    }


def load(path: Path, rope: dict[str, Any], length: int) -> torch.nn.Module:
    """The model in float32 with the given rope parameters and window."""
    config = AutoConfig.from_pretrained(path)
    config.rope_parameters, config.max_position_embeddings = rope, length
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=torch.float32)
    return model.eval()


def evaluate(model: torch.nn.Module, text: bytes, words: list[str], length: int, windows: int, prompts: int) -> Row:
    """Bits per byte (whole window and each quarter) and retrieval (by fifth of the depth) at one length."""
    nats = probes.nll_by_position(model, text, length, windows)
    rows = probes.retrieval(model, text, words, length, prompts)
    fifths = [[r for r in rows if min(int(r[0] * 5), 4) == n] for n in range(5)]
    return {
        "length": length,
        "bits_per_byte": nats.mean().item() / math.log(2),
        "perplexity": nats.mean().exp().item(),
        "perplexity_by_quarter": [q.mean().exp().item() for q in nats.chunk(4)],
        "retrieval": probes.exact_rate(rows),
        "retrieval_by_depth": [probes.exact_rate(f) for f in fifths],
        "nats_per_digit": sum(n for *_, n in rows) / len(rows),
    }


def line(name: str, row: Row) -> str:
    """One row of the printed table."""
    depth = " ".join(f"{x:.2f}" for x in row["retrieval_by_depth"])
    quarters = " ".join(f"{x:.2f}" for x in row["perplexity_by_quarter"])
    return (
        f"| {name} | {row['length']} | {row['perplexity']:.2f} | {quarters} "
        f"| {row['retrieval']:.2f} | {depth} | {row['nats_per_digit']:.2f} |"
    )


def verdicts(table: dict[str, dict[str, Row]]) -> dict[str, bool]:
    """Which targets are met."""
    short, far = table["unmodified"]["short"], {name: row["long"] for name, row in table.items()}
    return {
        "bits per byte <= 2.0 inside the window": short["bits_per_byte"] <= 2.0,
        "retrieval >= 90 % inside the window": short["retrieval"] >= 0.9,
        "perplexity at 4x unmodified >= 1.5 times": far["unmodified"]["perplexity"] >= 1.5 * short["perplexity"],
        "YaRN beats unmodified at 4x in perplexity": far["YaRN"]["perplexity"] < 0.8 * far["unmodified"]["perplexity"],
        "YaRN beats unmodified at 4x in retrieval": far["YaRN"]["retrieval"] > far["unmodified"]["retrieval"] + 0.1,
    }


def main() -> None:
    """Measure every method at the trained length and at four times it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=Path("ctxforge/bundled/model"))
    parser.add_argument("--cache", type=Path, default=Path("training/runs/books"))
    parser.add_argument("--words", type=Path, default=Path("ctxforge/bundled/words.txt"))
    parser.add_argument("--windows", type=int, default=40, help="windows at the long length; four times as many short")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    text = books.fetch(args.cache)[books.HELD_OUT].encode()
    _, words = synthetic.split_words(args.words)
    config = AutoConfig.from_pretrained(args.model)
    length, theta = config.max_position_embeddings, config.rope_parameters["rope_theta"]

    table: dict[str, dict[str, Row]] = {}
    print("| method | length | ppl/byte | by quarter of the window | exact | far..near | nats/digit |")
    print("|---|---|---|---|---|---|---|")
    for name, rope in methods(theta, config.head_dim, length).items():
        table[name] = {}
        for where, size, count in (
            ("short", length, 4 * args.windows),
            ("long", FACTOR * length, args.windows),
        ):
            model = load(args.model, rope, size)
            table[name][where] = evaluate(model, text, words, size, count, args.prompts)
            print(line(name, table[name][where]), flush=True)
    print(f"\nbits per byte inside the window: {table['unmodified']['short']['bits_per_byte']:.3f}")
    met = verdicts(table)
    for target, ok in met.items():
        print(f"{'met   ' if ok else 'MISSED'}  {target}")
    if args.json:
        args.json.write_text(json.dumps({"methods": table, "targets": met}, indent=2) + "\n")


if __name__ == "__main__":
    main()
