"""What an engine makes of a checkpoint: the types that the readers, the comparison and the report share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ctxforge.rope.architectures import Architecture

Verdict = Literal["honours", "honours with flags", "computes something else", "refuses", "unknown"]
VERDICTS: tuple[Verdict, ...] = (
    "honours",
    "honours with flags",
    "computes something else",
    "refuses",
    "unknown",
)
Evidence = Literal["by reading", "measured"]
Tables = Mapping[str | None, "Rotary"]


@dataclass(frozen=True)
class Rotary:
    """One rotary table as an engine computes it.

    Attributes:
        dims: d, the rotated dimensions of a head.
        base: of the plain frequencies.
        frequencies: radians per token, pair by pair; for tables that follow the length, those at the longest.
        temperature: what cos and sin are multiplied by.
        scaling: the scaling in words, for people: "no scaling", "yarn".
        follows: how the table changes with the length, in words; empty for a fixed table. Two tables that change are
            the same only where these words are.
        softmax_scale: what the attention multiplies q.k by because of the rope dict (latent attention).
    """

    dims: int
    base: float
    frequencies: tuple[float, ...]
    temperature: float = 1.0
    scaling: str = "no scaling"
    follows: str = ""
    softmax_scale: float = 1.0


@dataclass(frozen=True)
class Spec:
    """A rope dict as it reaches an engine's formulas, after the config class has put it in order.

    Attributes:
        rope_type: default, linear, dynamic, yarn, llama3, longrope, proportional or a name that nobody knows.
        dims: d.
        base: rope_theta.
        original: the length that the scaling starts from, max_position_embeddings where nothing says.
        longest: max_position_embeddings.
        values: the dict itself.
    """

    rope_type: str
    dims: int
    base: float
    original: int
    longest: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """What an engine's loader makes of a config.

    Attributes:
        tables: by layer type, None in a flat config.
        served: longest prompt that the engine takes by default; None where it doesn't derive one from the config.
        remarks: keys that it ignores and the like, one line each; told where its tables differ from what is meant.
        notes: what to know even where it computes the right thing.
        settings: what must be set besides the length, such as environment variables.
        refusal: why it stops, loudly; no tables then.
        doubt: why neither its source nor a run tells; no tables then.
    """

    tables: Tables = field(default_factory=dict)
    served: int | None = None
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    refusal: str | None = None
    doubt: str | None = None


@dataclass(frozen=True)
class Context:
    """A config and what is known about it.

    Attributes:
        config: config.json, whole.
        inner: the text model's part.
        model_type: the stock text model's type.
        class_name: first of `architectures`, by which most engines choose their model class; None when absent.
        architecture: the row of `ctxforge.rope.architectures`; None for models without RoPE.
        scheme: rope, learned or alibi.
        meant: the tables as transformers 5 computes them.
        target: the longest length that the config means, in tokens.
        code: the name of our custom code, where the checkpoint runs any.
    """

    config: Mapping[str, Any]
    inner: Mapping[str, Any]
    model_type: str
    class_name: str | None
    architecture: Architecture | None
    scheme: str
    meant: Tables
    target: int
    code: str | None


@dataclass(frozen=True)
class Engine:
    """An engine in a range of versions.

    Attributes:
        name: as users know it.
        versions: the range that the rules hold for.
        source: where they were read, repo:path at a version.
        read: the emulation of its loader, for RoPE without custom code.
        serve: the exact command for a folder and the length to serve.
        length_setting: the setting that limits or raises the served length, with {n} for the tokens; empty when the
            engine has none.
        raise_setting: what else it takes to serve more than the config's length.
        classes: the key of `classes.json` that lists what models it has.
        by_model_type: whether that list holds model types instead of class names.
        fallback: what it does with a model that it doesn't have.
        code: why custom code of a checkpoint doesn't run there; None where it does.
        runs: its name and the prefix of its version in `measured.json`; None where it was never run.
    """

    name: str
    versions: str
    source: str
    read: Callable[[Context], Reading]
    serve: Callable[[Context, str, int], str]
    length_setting: str = ""
    raise_setting: str = ""
    classes: str | None = None
    by_model_type: bool = False
    fallback: Literal["refuses", "transformers"] = "refuses"
    code: str | None = "it has no model of that type"
    runs: tuple[str, str] | None = None


@dataclass(frozen=True)
class EngineVerdict:
    """One row of the report.

    Attributes:
        engine, versions: which engine.
        verdict: what it does with this checkpoint.
        detail: one line: what it computes instead, why it refuses, what to know.
        flags: settings that the verdict needs.
        serve_command: the exact command that serves the checkpoint.
        source: where the rule was read.
        evidence: `measured` where a run of this form and type says the same.
    """

    engine: str
    versions: str
    verdict: Verdict
    detail: str
    flags: tuple[str, ...]
    serve_command: str
    source: str
    evidence: Evidence


@dataclass(frozen=True)
class EngineReport:
    """What every engine makes of one checkpoint."""

    rows: tuple[EngineVerdict, ...]

    @property
    def silently_wrong(self) -> tuple[EngineVerdict, ...]:
        """The engines that compute something else without a word."""
        return tuple(row for row in self.rows if row.verdict == "computes something else")
