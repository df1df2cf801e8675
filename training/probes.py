"""What is measured on a model during and after training: bits per byte, perplexity, key-value retrieval."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.synthetic import digits


@torch.inference_mode()
def nll_by_position(model: nn.Module, text: bytes, length: int, windows: int) -> Tensor:
    """Mean nats per byte at each of the `length - 1` predicted positions, over evenly spaced windows."""
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    total = torch.zeros(length - 1, dtype=torch.float64)
    for n in range(windows):
        start = n * (len(ids) - length) // max(windows - 1, 1)
        row = ids[start : start + length][None]
        logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
        total += F.cross_entropy(logits, row[0, 1:], reduction="none").double()
    return total / windows


@dataclass(frozen=True)
class Prompt:
    """One question: ids ending in the answer, and where its needle stands (0 = at the start)."""

    ids: list[int]
    answer: int
    depth: float


def prompt(book: bytes, words: list[str], length: int, depth: float, rng: random.Random, distractors: int) -> Prompt:
    """Prose of exactly `length` bytes with needles in it, the query and its five-digit answer at the end."""
    keys = rng.sample(words, distractors + 1)
    values = [digits(rng) for _ in keys]
    needles = [f" The number of {k} is {v}.".encode() for k, v in zip(keys, values, strict=True)]
    query = f" The number of {keys[0]} is {values[0]}".encode()
    room = length - len(query) - sum(map(len, needles))
    at = rng.randrange(len(book) - room - 1)
    prose = book[at : at + room]
    spaces = [n for n, byte in enumerate(prose) if byte == 0x20]
    spots = [min(spaces, key=lambda s: abs(s - depth * room))] + [rng.choice(spaces) for _ in keys[1:]]
    out = bytearray()
    last = 0
    for spot, needle in sorted(zip(spots, needles, strict=True)):
        out += prose[last:spot] + needle
        last = spot
    out += prose[last:] + query
    assert len(out) == length
    return Prompt(list(out), len(values[0]), depth)


@torch.inference_mode()
def retrieval(
    model: nn.Module,
    book: bytes,
    words: list[str],
    length: int,
    count: int,
    seed: int = 0,
    distractors: int = 3,
) -> list[tuple[float, bool, float]]:
    """(depth, all digits right, mean nats per digit) of `count` teacher-forced prompts over even depths."""
    rng, rows = random.Random(seed), []
    for n in range(count):
        item = prompt(book, words, length, n / max(count - 1, 1), rng, distractors)
        ids = torch.tensor(item.ids)[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, -item.answer - 1 : -1].float()
        target = ids[0, -item.answer :]
        exact = bool((logits.argmax(-1) == target).all())
        rows.append((item.depth, exact, F.cross_entropy(logits, target).item()))
    return rows


def exact_rate(rows: list[tuple[float, bool, float]]) -> float:
    """Share of prompts answered exactly."""
    return sum(exact for _, exact, _ in rows) / len(rows)
