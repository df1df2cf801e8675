"""How much is measured: four tiers, each data. What a tier declares is what its gates are judged on."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from ctxforge.errors import UsageError


@dataclass(frozen=True)
class Tier:
    """One answer to "how sure, and how long may it take".

    Attributes:
        name: as in `--tier`.
        budget: what it costs, in words.
        purpose: when to use it, in words.
        tasks: what is measured, by name.
        required: gates that are inconclusive when their quantity is missing.
        optional: gates that are judged where their quantity was measured.
        halvings: lengths below the trained one: L0 / 2, L0 / 4, ...
        most_lengths: lengths measured at most, the target and the trained one always among them.
        documents: documents of the target length for perplexity, where the text holds so many.
        short_documents: windows of the trained length for the short-context comparison.
        depths: depth strata of the retrieval grid.
        seeds: haystacks of the retrieval grid.
        needs_text: whether a text must be given.
        external: benchmarks handed over to lm-eval.
    """

    name: str
    budget: str
    purpose: str
    tasks: tuple[str, ...]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    halvings: int = 0
    most_lengths: int = 2
    documents: int = 0
    short_documents: int = 0
    depths: int = 0
    seeds: int = 0
    needs_text: bool = True
    external: tuple[str, ...] = ()

    @property
    def gates(self) -> tuple[str, ...]:
        """Every gate that the tier may judge."""
        return self.required + self.optional

    @property
    def prompt_tasks(self) -> tuple[str, ...]:
        """Those of the tasks that are prompts of their own, beside the grid."""
        apart = ("kv-grid", "config", "finite", "cache", "short_logits", "perplexity", "short-context", "delta-use")
        return tuple(name for name in self.tasks if name not in (*apart, "self-longppl", "lm-eval"))

    @property
    def prompts(self) -> int:
        """Retrieval prompts a length."""
        return self.depths * self.seeds

    def without(self, prefix: str) -> Tier:
        """The same tier without the gates whose names begin with `prefix`: what the user left out can't be missing."""
        return replace(
            self,
            required=tuple(name for name in self.required if not name.startswith(prefix)),
            optional=tuple(name for name in self.optional if not name.startswith(prefix)),
        )

    def lengths(self, trained_length: int, target_length: int) -> tuple[int, ...]:
        """The context lengths to measure, ascending: halvings of L0, L0, its doublings, L'.

        When that is more than `most_lengths`, the doublings nearest the target are kept: that is where it breaks.
        """
        top = min(trained_length, target_length)
        below = [top >> i for i in range(self.halvings, 0, -1) if top >> i >= 64]
        between: list[int] = []
        while (step := (between[-1] if between else trained_length) * 2) < target_length:
            between.append(step)
        room = max(0, self.most_lengths - len({top, target_length}))
        kept = between[len(between) - room :] if room < len(between) else between
        below = below[len(below) - min(len(below), room - len(kept)) :]
        return tuple(sorted({*below, top, *kept, target_length}))


_ALWAYS = ("config", "finite", "cache")
# Answer loss decides with forty prompts what right and wrong can't where the source itself misses some of them.
_RETRIEVAL = ("retrieval_nll", "retrieval_depth_nll")
_EXACT_MATCH = ("retrieval", "retrieval_depth")

TIERS: dict[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier(
            name="smoke",
            budget="seconds on a CPU, no text",
            purpose="after every conversion, and in CI",
            tasks=("config", "finite", "cache", "short_logits"),
            required=_ALWAYS,
            optional=("short_logits",),
            needs_text=False,
        ),
        Tier(
            name="quick",
            budget="up to 6 minutes: 135M at 16k on two cores, 7B at 64k on one GPU",
            purpose="the default",
            tasks=("config", "finite", "cache", "kv-grid", "perplexity", "short-context"),
            required=(*_ALWAYS, "short_nll", *_RETRIEVAL),
            # Not long_nll: on few documents it measures what comes late in them. `use` compares the same tokens.
            optional=("short_logits", *_EXACT_MATCH, "use"),
            halvings=2,
            most_lengths=6,
            documents=1,
            short_documents=16,
            depths=10,
            seeds=4,
        ),
        Tier(
            name="standard",
            budget="30 to 60 minutes for 7B on one GPU",
            purpose="before a release",
            tasks=(
                "config",
                "finite",
                "cache",
                "kv-grid",
                "uuid",
                "variable-tracking",
                "perplexity",
                "short-context",
                "delta-use",
                "self-longppl",
            ),
            required=(*_ALWAYS, "short_nll", "long_nll", "use", *_RETRIEVAL),
            optional=("short_logits", *_EXACT_MATCH),
            halvings=2,
            most_lengths=6,
            documents=16,
            short_documents=32,
            depths=10,
            seeds=5,
        ),
        Tier(
            name="full",
            budget="hours, needs lm-eval",
            purpose="figures to publish",
            tasks=(
                "config",
                "finite",
                "cache",
                "kv-grid",
                "uuid",
                "variable-tracking",
                "common-words",
                "frequent-words",
                "perplexity",
                "short-context",
                "delta-use",
                "self-longppl",
                "lm-eval",
            ),
            required=(*_ALWAYS, "short_nll", "long_nll", "use", *_RETRIEVAL),
            optional=("short_logits", *_EXACT_MATCH),
            halvings=2,
            most_lengths=8,
            documents=32,
            short_documents=64,
            depths=10,
            seeds=10,
            external=("ruler", "longbench", "short"),
        ),
    )
}


def tier(name: str) -> Tier:
    """The tier called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in TIERS:
        near = difflib.get_close_matches(name, TIERS, n=1)
        raise UsageError(
            f"there is no tier {name[:60]!r}", f"did you mean {near[0]}?" if near else f"there are {', '.join(TIERS)}"
        )
    return TIERS[name]
