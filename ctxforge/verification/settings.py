"""What a user may choose about a verification, and the lengths that are measured when they choose nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxforge.errors import UsageError
from ctxforge.verification.gates.tiers import Tier

# Tokens: below, the cold start of a window outweighs what the positions do.
_SHORTEST = 256
_QUICK_TOKENS = 16384
# Tokens: on a CPU a quick verification runs no more haystacks than these hold, and beyond the second number nothing
# that only informs.
_QUICK_CPU_HAYSTACKS, _QUICK_CPU_FULL = 49152, 8192
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class VerifySettings:
    """Knobs of a verification; every one of them is written into the report's protocol.

    Attributes:
        lengths: context lengths in tokens at which cumulative perplexity and retrieval are reported; None means half
            the trained length, then the trained length doubled up to the target. The target is always among them.
        buckets: number of equal position buckets between 0 and the target.
        documents: how many consecutive windows of the target length are taken from the text.
        needles: depth strata of the retrieval grid (fewer at lengths too short to hold so many needles).
        seeds: haystacks, each with its own needles, values and stretch of text.
        dtype: "float32", "bfloat16" or "float16", for every model of the comparison; "auto" as `load.pick_dtype` says.
        device: "auto" (a GPU if torch sees one), or a torch device such as "cpu" or "cuda:0".
        head_slice: rows of hidden states that go through the output head at a time. 256 keeps the logits of a
            vocabulary of 128k at 134 MB and costs no time against larger slices.
        retrieval: whether the retrieval grid is measured.
        source_curve: whether the source is measured up to the target too, so that its collapse shows.
        short_windows: most windows in the short-context comparison.
        short_length: tokens of such a window; None for the trained length.
        truncated_source: whether the source is measured on truncated contexts beyond the trained length, for the gate
            on use.
        fewer_documents: take as many windows as the text holds where it holds fewer than `documents`.
        tasks: names of tasks that are asked beside the grid, see `ctxforge.verification.tasks`.
        optional_tasks: leave out tasks that this tokenizer or these lengths don't allow, instead of refusing.
        task_data: the user's copies of data sets, as (task, file).
        task_depths: depth strata of a task's prompts.
        task_seeds: prompts of each depth.
        chat: whether tasks go through the tokenizer's chat template; None where it has one.
        protocols: perplexity protocols that are run beside the one pass, see `ctxforge.verification.protocols`.
        far_context: whether short passes over every window are run, for LongPPL and the worth of far context.
        attention: "auto", or the name of an attention implementation of transformers.
        trust_remote_code: whether code inside the checkpoints may run.
    """

    lengths: tuple[int, ...] | None = None
    buckets: int = 8
    documents: int = 1
    needles: int = 10
    seeds: int = 2
    dtype: str = "float32"
    device: str = "auto"
    head_slice: int = 256
    retrieval: bool = True
    source_curve: bool = True
    short_windows: int = 4
    short_length: int | None = None
    truncated_source: bool = False
    fewer_documents: bool = False
    tasks: tuple[str, ...] = ()
    optional_tasks: bool = False
    task_data: tuple[tuple[str, Path], ...] = ()
    task_depths: int = 5
    task_seeds: int = 2
    chat: bool | None = None
    protocols: tuple[str, ...] = ()
    far_context: bool = False
    attention: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in (
            "buckets",
            "documents",
            "needles",
            "seeds",
            "head_slice",
            "short_windows",
            "task_depths",
            "task_seeds",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(
                    f"verify setting `{name}` is {value!r}, not a positive whole number.",
                    f"Give `{name}` as 1 or more.",
                )
        if self.dtype not in DTYPES:
            raise UsageError(f"verify dtype {self.dtype!r} is not known.", f"Use one of {', '.join(DTYPES)}.")


def measured_lengths(settings: VerifySettings, trained_length: int, target_length: int) -> tuple[int, ...]:
    """The context lengths to report, ascending and ending with the target.

    Args:
        settings: where `lengths` may name them.
        trained_length: L0 in tokens.
        target_length: L' in tokens, the length of the longest pass.

    Raises:
        UsageError: a length below 2 or above the target, or a trained or target length below 4.
    """
    for name, value in (("trained", trained_length), ("target", target_length)):
        if value < 4:
            raise UsageError(f"the {name} length is {value} tokens.", "Give a length of at least 4 tokens.")
    if settings.lengths is not None:
        wrong = [n for n in settings.lengths if not 2 <= n <= target_length]
        if wrong:
            raise UsageError(
                f"verify length {wrong[0]} lies outside 2 to {target_length}.",
                "Ask for lengths up to the target length of this verification.",
            )
        return tuple(sorted({*settings.lengths, target_length}))
    lengths = {target_length}
    step = max(2, min(trained_length, target_length) // 2)
    while step < target_length:
        lengths.add(step)
        step = trained_length if step < trained_length else 2 * step
    return tuple(sorted(lengths))


def tier_settings(
    tier: Tier, trained_length: int, target_length: int, overrides: Mapping[str, Any], *, cpu: bool = False
) -> VerifySettings:
    """What a tier measures between these lengths, with the user's own choices over it.

    Args:
        tier: its number of documents, prompts and lengths.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        overrides: fields of `VerifySettings` by name.
        cpu: whether it runs on a CPU, where the quick tier does less of what is long.
    """
    chosen: dict[str, Any] = {
        "lengths": tier.lengths(trained_length, target_length),
        "documents": _documents(tier, target_length),
        "fewer_documents": True,
        "needles": max(1, tier.depths),
        "seeds": max(1, tier.seeds),
        "short_windows": max(1, tier.short_documents),
        "short_length": min(trained_length, max(_SHORTEST, trained_length // 8)) if tier.name == "quick" else None,
        "truncated_source": "use" in tier.gates,
        "tasks": tier.prompt_tasks,
        "optional_tasks": "tasks" not in overrides,
        "far_context": "self-longppl" in tier.tasks,
    }
    if cpu and tier.name == "quick":
        chosen["seeds"] = max(1, min(tier.seeds, _QUICK_CPU_HAYSTACKS // target_length))
        if target_length > _QUICK_CPU_FULL:
            # One document gives `use` no interval, and the source's collapse beyond its length decides nothing.
            chosen |= {"source_curve": False, "truncated_source": False}
    given = {name: value for name, value in overrides.items() if value is not None}
    return VerifySettings(**{**chosen, **given})


def _documents(tier: Tier, target_length: int) -> int:
    """A tier's documents; short ones are cheap, so the quick tier takes as many as an interval needs there."""
    from ctxforge.verification.statistics import FEWEST_UNITS

    if tier.name != "quick":
        return max(1, tier.documents)
    return max(1, min(FEWEST_UNITS, _QUICK_TOKENS // target_length))


def short_window_length(settings: VerifySettings, trained_length: int, target_length: int) -> int:
    """Tokens of a window of the short-context comparison."""
    return min(settings.short_length or trained_length, trained_length, target_length)
