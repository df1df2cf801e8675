"""Every job planned, from headers only, before any is run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ctxforge import pipeline
from ctxforge.batch.expanding import Job, method_label, source_label
from ctxforge.batch.keys import calibration_key, key_of, push_key, verify_key, work_key
from ctxforge.batch.objects import conversion_recipe, verify_arguments
from ctxforge.batch.publishing import needs_folder, plan_push
from ctxforge.batch.sizes import parse_bytes
from ctxforge.batch.sources import Source, Sources
from ctxforge.batch.templates import filled
from ctxforge.batch.texts import guard_texts, verify_text
from ctxforge.errors import CtxforgeError, UsageError
from ctxforge.lengths import format_length
from ctxforge.pipeline import Conversion
from ctxforge.recipe import ConversionRecipe

CONVERT, VERIFY, PUSH = STAGES = ("convert", "verify", "push")


@dataclass(frozen=True)
class Planned:
    """A job that can be run.

    Attributes:
        job: with everything filled in, templates included.
        recipe: its conversion.
        out: absolute.
        revision: the commit that a Hub source was when it was planned.
        fingerprint: of the source.
        work: the key of what the conversion does to which bytes; jobs that share it have the same weights.
        keys: of each stage that the job has, in order.
        method, original_length, target_length: of the plan.
        bytes_to_download, bytes_to_read, bytes_to_write: of the conversion, were it alone.
        bytes_to_upload: of its publication; of a conversion without its fine-tune where there is one.
        shareable: bytes of weight files that it doesn't change; 0 where they have to be imported first.
        light: whether it imports no torch and holds no model, so that this process may do it.
        warnings: of the plan.
    """

    job: Job
    recipe: ConversionRecipe
    out: Path
    revision: str | None
    fingerprint: str
    work: str
    keys: dict[str, str]
    method: str
    original_length: int | None
    target_length: int
    bytes_to_download: int
    bytes_to_read: int
    bytes_to_write: int
    bytes_to_upload: int
    shareable: int
    light: bool
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.name

    @property
    def key(self) -> str:
        """Of the first stage, on which the others build."""
        return next(iter(self.keys.values()))

    @property
    def written(self) -> bool:
        """Whether the result is a folder here."""
        return CONVERT in self.keys


@dataclass(frozen=True)
class Refused:
    """A job that can't be run, with the reason."""

    job: Job
    error: CtxforgeError

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.name


def plan_jobs(
    jobs: Sequence[Job],
    sources: Sources,
    output: Path,
    *,
    yes: bool = False,
    told: Callable[[int, int], None] | None = None,
) -> list[Planned | Refused]:
    """Plan every job; a source is read once.

    Args:
        jobs: what to plan.
        sources: reads them.
        output: folder for outputs.
        yes: what the user agreed to, for publishing.
        told: called with (jobs planned, of how many).
    """
    found: dict[str, Planned | Refused] = {}
    # By source, because only a few sources are kept open.
    for job in sorted(jobs, key=lambda job: (job.spec.source, job.spec.revision or "")):
        try:
            found[job.name] = _plan(job, sources, output, yes=yes)
        except CtxforgeError as error:
            found[job.name] = Refused(job, _placed(job, error))
        if told is not None:
            told(len(found), len(jobs))
    return [found[job.name] for job in jobs]


def _plan(job: Job, sources: Sources, output: Path, *, yes: bool) -> Planned:
    spec = job.spec
    if spec.version != 1:
        raise UsageError(f"version {spec.version} of a job is not known", "leave it out")
    if (
        spec.method.name == "none"
        and spec.attach is None
        and not spec.method.modifiers
        and "method" not in job.node.mapping
    ):
        raise UsageError(
            "neither a method nor an attachment was chosen", "write `method: yarn`, say (ctxforge methods)"
        )
    if spec.resources.memory is not None:
        parse_bytes(spec.resources.memory)
    if spec.verify is not None:
        verify_arguments(spec.verify)
    text, guards = verify_text(spec), guard_texts(spec)
    calibration = None if spec.calibrate is None else calibration_key(spec.calibrate, guards)
    recipe = conversion_recipe(spec)
    source = sources.open(recipe)
    conversion = pipeline.plan(recipe, source.checkpoint)
    filled_in, out = _placed_output(job, conversion, output)
    job, spec = filled_in, filled_in.spec
    work = work_key(conversion, source.fingerprint, calibration)
    converted = key_of(work, repr(recipe), spec.link, spec.checksum, str(out))
    keys = {CONVERT: converted} if needs_folder(job.spec) else {}
    if spec.verify is not None:
        keys[VERIFY] = verify_key(converted, spec.verify, text)
    upload = 0
    if spec.push is not None:
        upload = plan_push(conversion, spec, yes=yes).to_upload
        keys[PUSH] = push_key(converted, spec.push)
    return _planned(job, recipe, out, source, conversion, work, keys, upload)


def _planned(
    job: Job,
    recipe: ConversionRecipe,
    out: Path,
    source: Source,
    conversion: Conversion,
    work: str,
    keys: dict[str, str],
    upload: int,
) -> Planned:
    checkpoint, spec = conversion.checkpoint, job.spec
    estimate = conversion.estimate(out)
    ready = source.checkpoint.weights == "safetensors"
    untouched = set(estimate.copied) & set(checkpoint.shards) if ready else set()
    heavy = spec.calibrate is not None or spec.verify is not None or spec.push is not None
    return Planned(
        job=job,
        recipe=recipe,
        out=out,
        revision=source.checkpoint.revision,
        fingerprint=source.fingerprint,
        work=work,
        keys=keys,
        method=conversion.plan.method,
        original_length=conversion.plan.original_length,
        target_length=conversion.plan.target_length,
        bytes_to_download=estimate.bytes_to_download,
        bytes_to_read=estimate.bytes_to_read,
        bytes_to_write=estimate.bytes_to_write if CONVERT in keys else 0,
        bytes_to_upload=upload,
        shareable=sum(checkpoint.file_sizes[name] for name in untouched),
        light=ready and not heavy,
        warnings=tuple(conversion.plan.warnings),
    )


def _placed_output(job: Job, conversion: Conversion, output: Path) -> tuple[Job, Path]:
    """The job with its templates filled in, and its output."""
    spec = job.spec
    method = "-".join((method_label(spec), *([spec.attach.name] if spec.attach is not None else [])))
    values = {
        "name": job.name,
        "source": source_label(spec.source),
        "method": method,
        "length": format_length(conversion.plan.target_length),
        "to": "" if spec.to is None else str(spec.to),
    }
    template = spec.out
    if template is None:
        # Jobs whose derived names had to be told apart are told apart here too.
        alike = not job.named and job.name.endswith(job.digest)
        template = "{name}" if job.named else "{source}-{method}-{length}" + (f"-{job.digest}" if alike else "")
    out = Path(filled(template, values, job.node.at(["out"]))).expanduser()
    if spec.verify is not None:
        section, verify = job.node, spec.verify

        def named(entry: str, given: str | None) -> str | None:
            return None if given is None else filled(given, values, section.at(["verify", entry]))

        plot, report, junit = named("plot", verify.plot), named("report", verify.report), named("junit", verify.junit)
        spec = replace(spec, verify=replace(verify, plot=plot, report=report, junit=junit))
    if spec.push is not None and spec.push.repo is not None:
        repo = filled(spec.push.repo, values, job.node.at(["push", "repo"]))
        spec = replace(spec, push=replace(spec.push, repo=repo))
    return replace(job, spec=spec), Path(os.path.normpath(output / out))


def _placed(job: Job, error: CtxforgeError) -> CtxforgeError:
    """The error with the job's place and name, unless it has them."""
    if error.cause.startswith(f"{job.node.place.file}:"):
        return error
    return type(error)(f"{job.node.place}: job {job.name}: {error.cause}", error.remedy)
