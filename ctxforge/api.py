"""The public Python API: the commands as functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ctxforge import pipeline
from ctxforge.recipe import ConversionRecipe, Given, OutputOptions, parse_attachment, parse_method, validated
from ctxforge.static_checks import CheckReport
from ctxforge.static_checks import check as check

if TYPE_CHECKING:
    from ctxforge.batch import BatchResult
    from ctxforge.calibrate.run.request import Calibrated
    from ctxforge.differences import Differences
    from ctxforge.publish import Published
    from ctxforge.verification import VerifyReport, VerifySettings

__all__ = ["CheckReport", "calibrate", "check", "diff", "extend", "inspect", "plan", "push", "run", "verify"]


def extend(
    source: str | Path,
    *,
    method: str = "none",
    attach: str | None = None,
    to: str | int | None = None,
    out: str | Path,
    revision: str | None = None,
    parameters: Mapping[str, Given] | None = None,
    temperature: float | None = None,
    original_length: str | int | None = None,
    trained_length: str | int | None = None,
    portability: str = "widest",
    link: bool = False,
    overwrite: bool = False,
    checksum: bool = False,
    progress: pipeline.Progress | None = None,
) -> pipeline.Converted:
    """Convert `source` to a longer context and write it to `out`.

    Args:
        source: a folder, a .gguf file, a Hub id, or "bundled".
        method: as on the command line: a name of `ctxforge methods`, with modifiers (`yarn+resonance`).
        attach: an attention system with its parameters, as on the command line: "lm-infinite:window=4096".
        to: target length, such as "64k", "8x" or 65536.
        out: folder to write; must not exist unless `overwrite`.
        revision: branch, tag or commit of a Hub source.
        parameters: the method's own parameters.
        temperature: replaces the method's temperature a.
        original_length: start over from this trained length, dropping any scaling in force.
        trained_length: the length that the source works at now, where its config doesn't tell.
        portability: which engines it is written for: "widest", "exact" (weights untouched) or "transformers".
        link: hardlink untouched files.
        overwrite: replace an existing output at the very end.
        checksum: record the sha256 of copied weights too.
        progress: called with (bytes done, bytes in all).

    Raises:
        CtxforgeError: with `cause`, `remedy` and `exit_code`; nothing is written under `out` then.
    """
    recipe = _recipe(
        source, revision, method, attach, to, parameters, temperature, original_length, trained_length, portability
    )
    options = OutputOptions(out=Path(out), link=link, overwrite=overwrite, checksum=checksum)
    return pipeline.extend(recipe, options, progress)


def plan(
    source: str | Path,
    *,
    method: str = "none",
    attach: str | None = None,
    to: str | int | None = None,
    revision: str | None = None,
    parameters: Mapping[str, Given] | None = None,
    temperature: float | None = None,
    original_length: str | int | None = None,
    trained_length: str | int | None = None,
    portability: str = "widest",
) -> pipeline.Conversion:
    """What `extend` would do with the same arguments: planned, lowered and proved, nothing written.

    Raises:
        CtxforgeError: as `extend`.
    """
    return pipeline.plan(
        _recipe(
            source, revision, method, attach, to, parameters, temperature, original_length, trained_length, portability
        )
    )


def inspect(source: str | Path, *, revision: str | None = None) -> pipeline.Inspection:
    """What a checkpoint's RoPE really is, from its config and tensor headers alone.

    Raises:
        CtxforgeError: the source can't be read or is not understood.
    """
    return pipeline.inspect(str(source), revision=revision)


def calibrate(
    folder: str | Path,
    *,
    out: str | Path,
    recipe: str = "quick",
    data: Sequence[str] = (),
    changes: Sequence[str] = (),
    steps: int | None = None,
    seed: int = 0,
    source: str | None = None,
    guard_texts: Sequence[str] = (),
    work: str | Path | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: pipeline.VerifyProgress | None = None,
) -> Calibrated | None:
    """Fine-tune an extended checkpoint as a recipe says, and write the merged result to `out`.

    Args:
        folder: what `extend` wrote.
        out: folder to write; must not exist unless `overwrite`.
        recipe: a name of docs/reference/recipes.md, or a .toml or .json file.
        data: sources of documents, as `--data` takes them; empty for what was made from "bundled".
        changes: of the recipe, "section.field=value".
        steps: in place of the recipe's.
        seed: of everything that is drawn.
        source: the checkpoint before the extension; the recorded one by default.
        guard_texts: texts that will be verified on; documents that share a passage with one are left out.
        work: folder of the run, from which an interrupted one goes on; beside `out` by default.
        trust_remote_code: run the modeling code inside the checkpoint.
        overwrite: replace an existing output at the very end.
        progress: called with (what, done, of how many).

    Returns:
        What was done and measured; None in all processes but the first.

    Raises:
        CtxforgeError: with `cause`, `remedy` and `exit_code`; nothing is written under `out` then.
    """
    from ctxforge.calibrate.recipes import read_recipe
    from ctxforge.calibration import CalibrationOptions
    from ctxforge.calibration import calibrate as run

    options = CalibrationOptions(
        data=tuple(data),
        guard_texts=tuple(guard_texts),
        seed=seed,
        work=None if work is None else Path(work),
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
    )
    chosen = read_recipe(recipe, tuple(changes), steps=steps)
    return run(folder, Path(out), chosen, options, source=source, progress=progress)


def verify(
    folder: str | Path,
    *,
    text: str,
    source: str | Path | None = None,
    settings: VerifySettings | None = None,
) -> VerifyReport:
    """Measure a converted checkpoint: perplexity by position, retrieval, and the difference to `source` on short text.

    Args:
        folder: the converted checkpoint.
        text: at least as long as the target length, in tokens.
        source: the checkpoint it was made from.
        settings: lengths, buckets, needles, dtype; see `VerifySettings`.

    Raises:
        CtxforgeError: the checkpoint or the text won't do.
    """
    return pipeline.verify(Path(folder), text=text, source=None if source is None else str(source), settings=settings)


def diff(
    before: str | Path, after: str | Path, *, with_bytes: bool = False, trust_recorded: bool = False
) -> Differences:
    """How the checkpoint `after` differs from `before`: config, rotation, tensors by their bytes, other files.

    Args:
        before, after: folders, Hub ids with an optional revision (`org/name@revision`), or "bundled".
        with_bytes: download weight files whose hashes differ from the Hub, to compare their tensors.
        trust_recorded: take files for equal whose hashes in both `ctxforge.json` are, instead of reading them.

    Raises:
        CtxforgeError: a side can't be read; a GGUF file.
    """
    from ctxforge.differences import differences

    return differences(before, after, with_bytes=with_bytes, trust_recorded=trust_recorded)


def push(
    folder: str | Path,
    repo: str | None = None,
    *,
    private: bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    report: Mapping[str, Any] | None = None,
    yes: bool = False,
    force: bool = False,
) -> Published:
    """Publish a checkpoint folder on the Hub in one commit; what its source there has too is copied there.

    The Hub and the token are those of the environment: HF_ENDPOINT, HF_TOKEN or the login.

    Args:
        folder: what `extend` or `calibrate` wrote, or another checkpoint.
        repo: owner/name, or a name of your own; None for <you>/<model>-<method>-<length>.
        private: make a new repository private, or public; None for the owner's default.
        branch: commit there instead of to main.
        create_pr: open a pull request instead of committing.
        message: title of the commit.
        report: what `verify` measured (`VerifyReport.to_dict()`), for the card.
        yes: go on where publishing would stop and ask: a public copy of a gated or private model, a repository that
            holds something else, another licence.
        force: publish a folder that fails `check`.

    Raises:
        CtxforgeError: with `cause`, `remedy` and `exit_code`; the branch is as it was.
    """
    from ctxforge import publish

    options = publish.PushOptions(
        repo=repo, private=private, branch=branch, create_pr=create_pr, message=message, yes=yes, force=force
    )
    return publish.push(Path(folder), options, report=report)


def run(
    file: str | Path,
    *,
    only: Sequence[str] = (),
    output: str | Path | None = None,
    executor: Literal["local", "ray", "slurm"] = "local",
    jobs: int | None = None,
    keep_going: bool = False,
    resume: bool = False,
    fresh: bool = False,
    yes: bool = False,
    trust_remote_code: bool = False,
    progress: pipeline.VerifyProgress | None = None,
) -> BatchResult:
    """Run the jobs of a batch file.

    Args:
        file: .yaml, .json or .toml; `ctxforge schema` prints what it may hold.
        only: patterns of names; empty for all jobs.
        output: folder for outputs, in place of the file's.
        executor: where jobs run.
        jobs: how many at the same time.
        keep_going: go on after a job has failed, and leave out those that can't be planned.
        resume: go on with what an earlier run left.
        fresh: forget what an earlier run left; its outputs stay.
        yes: agree to what would be asked.
        trust_remote_code: let jobs that say so run the modeling code inside checkpoints.
        progress: called with (what, done, of how many).

    Returns:
        How each job ended, in the order of the file, and the worst exit code. A job that fails raises nothing.

    Raises:
        CtxforgeError: the file is wrong, or a job can't be planned; nothing was run.
    """
    from ctxforge import batch

    options = batch.BatchOptions(
        only=tuple(only),
        output=None if output is None else Path(output),
        executor=executor,
        jobs=jobs,
        keep_going=keep_going,
        resume=resume,
        fresh=fresh,
        yes=yes,
        trust_remote_code=trust_remote_code,
    )
    return batch.run(batch.prepare(Path(file), options, progress), options, told=progress)


def _recipe(
    source: str | Path,
    revision: str | None,
    method: str,
    attach: str | None,
    to: str | int | None,
    parameters: Mapping[str, Given] | None,
    temperature: float | None,
    original_length: str | int | None,
    trained_length: str | int | None,
    portability: str,
) -> ConversionRecipe:
    choice = parse_method(method)
    return validated(
        {
            "source": str(source),
            "revision": revision,
            "method": {
                "name": choice.name,
                "parameters": {**choice.parameters, **(parameters or {})},
                "temperature": temperature,
                "modifiers": choice.modifiers,
            },
            "attach": None if attach is None else dataclasses.asdict(parse_attachment(attach)),
            "to": to,
            "original_length": original_length,
            "trained_length": trained_length,
            "portability": portability,
        }
    )
