"""The stages in order: read, understand, plan, lower, prove, write, verify. Read this first.

Source --> Checkpoint --> RopeGeometry --> RopePlan --> Edits --> a folder, renamed into place once
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge import origins, provenance, schemes
from ctxforge.attention import Attached, attach, refuse_attached
from ctxforge.checkpoint import (
    Checkpoint,
    Edits,
    WriteEstimate,
    WriteReport,
    check_output,
    dump_json_like,
    estimate_write,
    fetch,
    read_checkpoint,
    write_checkpoint,
)
from ctxforge.errors import CheckpointError, UnsupportedError, UsageError
from ctxforge.lengths import parse_length
from ctxforge.origins import local, recorded_source, understand_checkpoint
from ctxforge.positions.types import PositionGeometry
from ctxforge.recipe import ConversionRecipe, OutputOptions
from ctxforge.rope import Lowered, RopeGeometry, RopePlan
from ctxforge.schemes import Geometry, Plan
from ctxforge.sources import resolve_source

if TYPE_CHECKING:
    from ctxforge.engines import EngineReport
    from ctxforge.verification import VerifyReport, VerifySettings

Progress = Callable[[int, int], None]
VerifyProgress = Callable[[str, int, int], None]
_TOKENIZER_CONFIG = "tokenizer_config.json"
_SMOKE_CHOICES = ("dtype", "device", "trust_remote_code")


@dataclass(frozen=True)
class Inspection:
    """A checkpoint and what its positions are."""

    checkpoint: Checkpoint
    geometry: Geometry


@dataclass(frozen=True)
class Conversion:
    """A conversion that is planned, lowered and proved, and not yet written.

    Attributes:
        recipe: what was asked for.
        checkpoint, geometry, plan, lowered: the stages' results.
        edits: what the writer is told.
        attached: the attention system that the result was given; None without one.
        agreement: largest relative difference in frequency between plan and emitted config, by dialect.
    """

    recipe: ConversionRecipe
    checkpoint: Checkpoint
    geometry: Geometry
    plan: Plan
    lowered: Lowered
    edits: Edits
    agreement: Mapping[str, float]
    attached: Attached | None = None

    @property
    def config_diff(self) -> str:
        """Unified diff of config.json; empty when nothing changes."""
        import difflib

        before = self.checkpoint.config_text.splitlines(keepends=True)
        after = self.edits.files.get("config.json", self.checkpoint.config_text.encode())
        lines = difflib.unified_diff(before, after.decode().splitlines(keepends=True), "config.json", "config.json")
        return "".join(line if line.endswith("\n") else line + "\n" for line in lines)

    @property
    def emitted_config(self) -> dict[str, Any]:
        """config.json as it will be written."""
        config: dict[str, Any] = json.loads(self.edits.files.get("config.json", self.checkpoint.config_text))
        return config

    @cached_property
    def engines(self) -> EngineReport:
        """What each engine will make of the emitted config, by its reader's rules."""
        from ctxforge.engines import report

        return report(self.emitted_config)

    def estimate(self, out: Path) -> WriteEstimate:
        """Bytes to download, read and write, without doing it."""
        return estimate_write(self.checkpoint, self.edits, out)


@dataclass(frozen=True)
class Converted:
    """A finished conversion and the folder that holds it."""

    conversion: Conversion
    report: WriteReport

    @property
    def out(self) -> Path:
        """The folder that was written."""
        return self.report.out


def inspect(source: str, *, revision: str | None = None, trained_length: int | None = None) -> Inspection:
    """Read headers and config of `source` and work out its positions; no weight is opened.

    Raises:
        CtxforgeError: see `read_checkpoint` and `understand`.
    """
    checkpoint = read_checkpoint(resolve_source(source), revision=revision)
    return Inspection(checkpoint, understand_checkpoint(checkpoint, trained_length))


def plan(recipe: ConversionRecipe, checkpoint: Checkpoint | None = None) -> Conversion:
    """Everything that `extend` would do, short of writing: planned, lowered, and proved on the emitted config.

    Args:
        recipe: what is asked for.
        checkpoint: its source, where it was read already.

    Raises:
        CtxforgeError: bad input, an unsupported model or combination.
        InternalError: the emitted config doesn't compute the plan.
    """
    checkpoint = checkpoint or read_checkpoint(resolve_source(recipe.source), revision=recipe.revision)
    try:
        return _plan_on(checkpoint, recipe)
    except CheckpointError:
        # A fold needs the tensors' names, which GGUF and .bin sources have no header for: import them first.
        if checkpoint.tensors:
            raise
        return _plan_on(fetch(checkpoint), recipe)


def plan_to_publish(
    recipe: ConversionRecipe, checkpoint: Checkpoint | None = None, progress: Progress | None = None
) -> Conversion:
    """The conversion as `ctxforge.publish.publish` takes it: as `plan`, but always of safetensors.

    Of a Hub source with safetensors only headers are read. Other weights are fetched and imported, once they can't be
    refused any more.

    Raises:
        CtxforgeError: as `extend`.
    """
    checkpoint = checkpoint or read_checkpoint(resolve_source(recipe.source), revision=recipe.revision)
    if checkpoint.weights != "safetensors":
        plan(recipe, checkpoint)
        checkpoint = fetch(checkpoint, progress)
    return _plan_on(checkpoint, recipe)


def extend(
    recipe: ConversionRecipe,
    output: OutputOptions,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> Converted:
    """Convert: the result appears under its final name whole, or not at all; the source is not touched.

    Args:
        recipe: what is asked for.
        output: where and how it is written.
        progress: called with (bytes done, bytes in all).
        checkpoint: the recipe's source, where it was read already.

    Raises:
        CtxforgeError: bad input, an unsupported combination, no space, an output that exists or is being written.
        InternalError: the emitted config doesn't compute the plan; nothing was written.
    """
    checkpoint = checkpoint or read_checkpoint(resolve_source(recipe.source), revision=recipe.revision)
    check_output(checkpoint, output.out, overwrite=output.overwrite)
    if checkpoint.root is None or checkpoint.weights != "safetensors":
        plan(recipe, checkpoint)  # before anything is downloaded or imported, whatever can be refused is refused
        checkpoint = fetch(checkpoint, progress)
    conversion = _plan_on(checkpoint, recipe)

    def finish(report: WriteReport) -> Mapping[str, bytes]:
        return {provenance.FILE_NAME: provenance.record(conversion, report.sha256, report.tensor_sha256)}

    report = write_checkpoint(
        checkpoint,
        conversion.edits,
        output.out,
        link=output.link,
        overwrite=output.overwrite,
        checksum=output.checksum,
        finish=finish,
        progress=progress,
    )
    return Converted(conversion, report)


def verify(
    folder: Path,
    *,
    text: str,
    source: str | None = None,
    trained_length: int | None = None,
    target_length: int | None = None,
    settings: VerifySettings | None = None,
    tier: str = "quick",
    choices: Mapping[str, Any] | None = None,
    gates: Mapping[str, Any] | None = None,
    strict: bool = False,
    fresh: bool = False,
    lm_eval: Mapping[str, Any] | None = None,
    progress: VerifyProgress | None = None,
) -> VerifyReport:
    """Measure the checkpoint in `folder`, and judge it by the gates of a tier.

    The lengths come from its provenance where the arguments are silent, then from its config and the source's. The
    source that its provenance records is taken when it is within reach and no other is given.

    Args:
        folder: a converted checkpoint (or any other).
        text: what to measure on; the smoke tier reads none.
        source: the checkpoint it was made from; measured on the same tokens.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        settings: see `VerifySettings`; None for the tier's.
        tier: smoke, quick, standard or full.
        choices: fields of `VerifySettings` that replace the tier's.
        gates: thresholds of gates by name, as `read_gates` reads them from a file.
        strict: let an inconclusive gate count as a failed one.
        fresh: forget what an interrupted run of the same measurement left.
        lm_eval: fields of `ExternalOptions` for what lm-eval is asked besides; the full tier asks RULER, LongBench and
            multiple choice unless `tasks` names others.
        progress: called with (what, done, of how many).

    Raises:
        CtxforgeError: a folder, the text or a length won't do.
    """
    from ctxforge import verification
    from ctxforge.static_checks import check
    from ctxforge.verification.external.hand_over import hand_over
    from ctxforge.verification.gates import tier as find_tier
    from ctxforge.verification.settings import tier_settings
    from ctxforge.verification.verdict import judged

    chosen = find_tier(tier)
    if (choices or {}).get("retrieval") is False:
        chosen = chosen.without("retrieval")
    checkpoint = read_checkpoint(resolve_source(str(folder)))
    here = local(checkpoint)
    source = source or recorded_source(checkpoint)
    origin = None if source is None else local(read_checkpoint(resolve_source(source)))
    target = target_length or origins.target_length(checkpoint)
    trained = trained_length or origins.trained_length(checkpoint, origin)
    if trained > target:
        raise UsageError(
            f"the trained length of {trained} exceeds the target of {target} tokens", "pass --to with a longer length"
        )
    asked = hand_over(chosen, trained, target, {**(choices or {}), **(lm_eval or {})}, _root(here))
    calibrated = bool((checkpoint.json_files.get(provenance.FILE_NAME) or {}).get("calibrations"))
    failures = sum(one.verdict == "fail" for one in check(_root(here)).checks)
    if not chosen.needs_text:
        from ctxforge.verification.smoke import smoke

        quick = {name: value for name, value in (choices or {}).items() if name in _SMOKE_CHOICES}
        short = verification.VerifySettings(seeds=1, **quick)
        seen = smoke(_root(here), trained_length=trained, target_length=target, settings=short)
        return judged(seen, chosen, config_failures=failures, calibrated=calibrated, overrides=gates, strict=strict)
    external = None
    if asked is not None:
        from ctxforge.verification.external import run_external

        # First, because missing data is found out there.
        origin_root = None if origin is None else _root(origin)
        external = run_external(_root(here), options=asked, source=origin_root, progress=progress)
    report = verification.verify(
        _root(here),
        source_dir=None if origin is None else _root(origin),
        text=text,
        trained_length=trained,
        target_length=target,
        settings=settings or tier_settings(chosen, trained, target, choices or {}, cpu=_on_cpu(choices or {})),
        fresh=fresh,
        progress=progress,
    )
    report = replace(report, external=external)
    return judged(report, chosen, config_failures=failures, calibrated=calibrated, overrides=gates, strict=strict)


def _on_cpu(choices: Mapping[str, Any]) -> bool:
    from ctxforge.verification.load import pick_device

    return pick_device(str(choices.get("device") or "auto")) == "cpu"


def _plan_on(checkpoint: Checkpoint, recipe: ConversionRecipe) -> Conversion:
    stated = None if recipe.trained_length is None else parse_length(recipe.trained_length)
    geometry = understand_checkpoint(checkpoint, stated)
    original = None if recipe.original_length is None else parse_length(recipe.original_length)
    base_length = original or geometry.trained_length
    # Without a known length `make_plan` refuses with the reason, whatever the target.
    target = None if recipe.to is None or base_length is None else parse_length(recipe.to, relative_to=base_length)
    made = schemes.make_plan(geometry, recipe.method, target, original)
    refuse_attached(checkpoint.config)
    lowered = schemes.lower(made, geometry, checkpoint.config, checkpoint.tensors, recipe.portability)
    attached = None
    if recipe.attach is not None:
        if not isinstance(made, RopePlan) or not isinstance(geometry, RopeGeometry):
            biased = isinstance(geometry, PositionGeometry) and geometry.scheme == "alibi"
            raise UnsupportedError(
                f"attachments work on RoPE, and {geometry.model_type} has none",
                f"leave --attach out: --method {'alibi' if biased else 'learned'}-interpolation works on it",
            )
        lowered, attached = attach(recipe.attach, lowered, made, geometry, checkpoint.config)
    edits = _edits(checkpoint, made, lowered, always=attached is not None)
    emitted = json.loads(edits.files.get("config.json", checkpoint.config_text))
    agreement = schemes.prove(made, lowered, emitted) if made.changed else {}
    return Conversion(recipe, checkpoint, geometry, made, lowered, edits, agreement, attached)


def _edits(checkpoint: Checkpoint, made: Plan, lowered: Lowered, *, always: bool = False) -> Edits:
    files: dict[str, bytes] = {}
    if made.changed or always:
        files["config.json"] = dump_json_like(checkpoint.config_text, lowered.config)
        files |= lowered.files
        tokenizer = checkpoint.json_files.get(_TOKENIZER_CONFIG)
        if tokenizer is not None:
            patched: dict[str, Any] = {**tokenizer, "model_max_length": made.target_length}
            files[_TOKENIZER_CONFIG] = dump_json_like(checkpoint.json_texts[_TOKENIZER_CONFIG], patched)
    return Edits(files=files, tensors=lowered.tensors, removed=())


def _root(checkpoint: Checkpoint) -> Path:
    assert checkpoint.root is not None
    return checkpoint.root
