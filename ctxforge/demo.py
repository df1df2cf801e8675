"""The demonstration: the bundled model, extended with several methods, measured on its held-out text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ctxforge.lengths import parse_length
from ctxforge.pipeline import extend, inspect
from ctxforge.recipe import ConversionRecipe, OutputOptions, parse_method
from ctxforge.sources import BUNDLED, bundled_text

if TYPE_CHECKING:
    from ctxforge.verification import Measures

METHODS = ("none", "pi", "ntk", "ntk-by-parts", "yarn", "llama3")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Demonstration:
    """What `run` made: one measured conversion a method, in the order of `METHODS`."""

    trained_length: int
    target_length: int
    folders: dict[str, Path]
    measures: dict[str, Measures]

    def rows(self) -> list[tuple[str, ...]]:
        """Method, perplexity at L0, at L', in the last bucket, retrieval at L0 and at L', difference on short text."""
        base = self.measures["none"]
        return [
            (
                name,
                *(f"{_perplexity(found, length):.2f}" for length in (self.trained_length, self.target_length)),
                f"{found.buckets[-1].ppl:.2f}",
                *(_retrieval(found, length) for length in (self.trained_length, self.target_length)),
                f"{_mean(found) - _mean(base):+.3f}",
            )
            for name, found in self.measures.items()
        ]

    def header(self) -> tuple[str, ...]:
        """Column titles of `rows`."""
        trained, target = self.trained_length, self.target_length
        return (
            "method",
            f"ppl at {trained}",
            f"ppl at {target}",
            "ppl of the last 1/16",
            f"retrieval at {trained}",
            f"retrieval at {target}",
            "short text, nats",
        )


def run(out: Path, *, to: str = "4x", overwrite: bool = True, progress: Progress | None = None) -> Demonstration:
    """Convert the bundled model with each method into `out`/METHOD and measure all of them on the same tokens.

    Raises:
        CtxforgeError: the folder can't be written.
    """
    from ctxforge.verification import VerifySettings, evaluate_model
    from ctxforge.verification.load import load_model, load_tokenizer

    trained = inspect(BUNDLED).geometry.trained_length
    assert trained is not None
    target = parse_length(to, relative_to=trained)
    settings = VerifySettings(buckets=16, documents=4, needles=8, seeds=6, short_windows=8, device="cpu")
    folders: dict[str, Path] = {}
    measures: dict[str, Measures] = {}
    out.mkdir(parents=True, exist_ok=True)
    for name in METHODS:
        recipe = ConversionRecipe(source=BUNDLED, method=parse_method(name), to=to)
        folders[name] = extend(recipe, OutputOptions(out=out / name, overwrite=overwrite)).out
        measures[name] = evaluate_model(
            load_model(folders[name], settings, "cpu"),
            load_tokenizer(folders[name], settings),
            text=bundled_text(),
            trained_length=trained,
            target_length=target,
            settings=settings,
            label=name,
            progress=progress,
        )
    return Demonstration(trained, target, folders, measures)


def _perplexity(found: Measures, length: int) -> float:
    return next(score.ppl for score in found.lengths if score.length == length)


def _mean(found: Measures) -> float:
    return sum(found.short_windows) / len(found.short_windows)


def _retrieval(found: Measures, length: int) -> str:
    cells = [cell for cell in found.retrieval if cell.length == length]
    count = sum(cell.count for cell in cells)
    return f"{sum(cell.exact for cell in cells)}/{count}"
