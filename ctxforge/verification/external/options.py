"""What may be chosen about the benchmarks that lm-eval runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import UsageError
from ctxforge.verification.external.ruler_tasks import RULER

SHORT = ("arc_easy", "hellaswag", "piqa", "winogrande")
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "ruler": tuple(RULER),
    "longbench": ("longbench",),
    "short": SHORT,
}
"""Names that `Tier.external` uses, and lm-eval's tasks or groups behind them."""

LEAVE_OUT, REFUSE = "leave out", "refuse"


@dataclass(frozen=True)
class ExternalOptions:
    """Settings of a hand-over; all of them are part of the report.

    Attributes:
        tasks: lm-eval's names of tasks, groups or tags; `ruler` and `short` stand for those in `BENCHMARKS`.
        lengths: context lengths in tokens for RULER's tasks, prompt and generated tokens together.
        limit: documents a task, and for RULER a task and length; None for all (500 a length for RULER).
        batch_size: sequences in one forward. Shorter ones are padded.
        dtype: "float32", "bfloat16" or "float16", for both models.
        device: "auto", or a torch device.
        chat_template: whether prompts go through the tokenizer's chat template.
        fewshot: worked examples before each question; None for what the task says.
        include_path: folders with the user's own task files. Their `!function` entries are run.
        max_length: tokens that the result may see at once, prompt and generated ones; None for the model's own.
        source_max_length: the same for the source.
        too_long: "leave out" reports documents that do not fit, "refuse" stops at the first one.
        skip_missing: report tasks whose data can't be had, instead of stopping.
        seed: of the prompts that RULER draws, and of the choice of worked examples.
        trust_remote_code: whether code inside the checkpoints may run.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    limit: int | None = None
    batch_size: int = 1
    dtype: str = "float32"
    device: str = "auto"
    chat_template: bool = False
    fewshot: int | None = None
    include_path: tuple[str, ...] = ()
    max_length: int | None = None
    source_max_length: int | None = None
    too_long: str = LEAVE_OUT
    skip_missing: bool = False
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UsageError("no benchmark was named.", f"Name at least one: {', '.join(BENCHMARKS)}, or lm-eval's.")
        for name in ("limit", "batch_size", "max_length", "source_max_length"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UsageError(f"`{name}` is {value!r}, not a positive whole number.", f"Give `{name}` as 1 or more.")
        if any(length < 1 for length in self.lengths):
            raise UsageError(f"{min(self.lengths)} is not a length in tokens.", "Give lengths of 1 or more.")
        if self.fewshot is not None and self.fewshot < 0:
            raise UsageError(f"`fewshot` is {self.fewshot}.", "Give 0 or more worked examples.")
        if self.too_long not in (LEAVE_OUT, REFUSE):
            raise UsageError(f"`too_long` is {self.too_long!r}.", f"Use {LEAVE_OUT!r} or {REFUSE!r}.")
        if any(name in RULER for name in self.names) and not self.lengths:
            raise UsageError("RULER was asked for without a length.", "Give the context lengths to measure it at.")

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks with our own names expanded, each once, in the order given."""
        return expand(self.tasks)


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """lm-eval's names behind the names of `BENCHMARKS`, each once; other names stay as they are."""
    return tuple(dict.fromkeys(part for name in names for part in BENCHMARKS.get(name, (name,))))


def external_options(benchmarks: Sequence[str], lengths: Sequence[int], **choices: Any) -> ExternalOptions:
    """Options for the names that a tier lists, such as ("ruler", "longbench").

    Args:
        benchmarks: names of `BENCHMARKS`, or lm-eval's own.
        lengths: for RULER, in tokens; ignored where RULER is not among the benchmarks.
        choices: other fields of `ExternalOptions` by name.
    """
    return ExternalOptions(tasks=tuple(benchmarks), lengths=tuple(sorted(set(lengths))), **choices)
