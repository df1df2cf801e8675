"""From what was written to jobs: matrices multiplied out, defaults filled in, names given."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ctxforge.batch.checking import checked
from ctxforge.batch.including import Contents
from ctxforge.batch.specs import ExcludeSpec, JobSpec, MatrixSpec
from ctxforge.batch.tree import Node, mapping_of, merged, wrong
from ctxforge.batch.words import over_defaults, refuse_unknown, with_sections
from ctxforge.errors import UsageError

MANY = 1000
"""Jobs of one file beyond which the user is asked."""

LARGEST = 100_000
"""Jobs of one file, at most."""

AXES = ("models", "methods", "lengths")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_STRANGE = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True)
class Job:
    """A job with everything filled in.

    Attributes:
        name: unique in its file.
        spec: what is to be done.
        node: its entries with their places.
        named: whether the file gave the name.
        digest: of its entries; part of a derived name where several jobs would have the same.
    """

    name: str
    spec: JobSpec
    node: Node
    named: bool
    digest: str


def count_jobs(contents: Contents) -> int:
    """How many jobs there are before any is left out; cheap, however many."""
    total = len(contents.jobs)
    for matrix in contents.matrices:
        axes = [matrix.mapping[axis] for axis in AXES if axis in matrix.mapping]
        size = 1
        for axis in axes:
            size *= len(axis.items("an axis of the matrix"))
        total += size if axes else 0
    return total


def expand(contents: Contents) -> list[Job]:
    """All jobs, in the order of the file, matrices after jobs.

    Raises:
        UsageError: an unknown entry, a wrong value, a name given twice, no job at all, more than `LARGEST`.
    """
    total = count_jobs(contents)
    if total > LARGEST:
        raise UsageError(f"{contents.files[-1]} makes {total} jobs, more than {LARGEST}", "split it into several files")
    nodes = [over_defaults(contents.defaults, job) for job in contents.jobs]
    for matrix in contents.matrices:
        nodes += [over_defaults(contents.defaults, job) for job in _multiplied(matrix, contents.defaults)]
    if not nodes:
        raise UsageError(f"{contents.files[-1]} has no jobs", "write `jobs:`, a list, or `matrix:`")
    return _named([(checked(node, JobSpec, "the job"), node) for node in nodes])


def method_label(spec: JobSpec) -> str:
    """A job's method with modifiers, as `--method` takes it."""
    return "+".join((spec.method.name, *spec.method.modifiers))


def source_label(source: str) -> str:
    """The last part of a source's name."""
    return Path(source.partition("@")[0]).name.removesuffix(".gguf") or "model"


def _multiplied(matrix: Node, defaults: Node) -> Iterator[Node]:
    refuse_unknown(matrix, MatrixSpec, "a matrix")
    axes = {axis: matrix.mapping[axis].items(axis) for axis in AXES if axis in matrix.mapping}
    if not axes:
        raise wrong(matrix.place, "the matrix has no axis", "write models, methods or lengths, each a list")
    for axis, items in axes.items():
        if not items:
            raise wrong(matrix.at([axis]), f"{axis} of the matrix is empty", "name at least one, or leave it out")
    models: list[Node | None] = [*(_entries(node, "source") for node in axes.get("models", ()))] or [None]
    methods: list[Node | None] = [*(_method_entries(node) for node in axes.get("methods", ()))] or [None]
    lengths: list[Node | None] = [*(mapping_of({"to": node}, node.place) for node in axes.get("lengths", ()))] or [None]
    written = matrix.mapping["exclude"].items("exclude") if "exclude" in matrix.mapping else []
    excludes = [(checked(node, ExcludeSpec, "an exclude"), node) for node in written]
    used: set[int] = set()
    for model in models:
        for method in methods:
            for length in lengths:
                job = mapping_of({}, matrix.place)
                for part in (model, method, length):
                    job = job if part is None else merged(job, part)
                hit = [i for i, (one, _) in enumerate(excludes) if _matches(one, over_defaults(defaults, job))]
                used.update(hit)
                if not hit:
                    yield replace(job, place=matrix.place)
    for i, (_, node) in enumerate(excludes):
        if i not in used:
            raise wrong(node.place, "this exclude leaves no combination out", "check its words: source, method, length")


def _entries(node: Node, key: str) -> Node:
    return with_sections(node) if isinstance(node.value, dict) else mapping_of({key: node}, node.place)


def _method_entries(node: Node) -> Node:
    """A method as text or as its own fields, or entries of a job."""
    if isinstance(node.value, dict) and "name" not in node.value:
        return with_sections(node)
    return with_sections(mapping_of({"method": node}, node.place))


def _matches(exclude: ExcludeSpec, job: Node) -> bool:
    plain = job.plain
    method, attach = plain.get("method"), plain.get("attach")
    label = "none"
    if isinstance(method, dict):
        label = "+".join((str(method.get("name")), *map(str, method.get("modifiers") or ())))
    found = {
        "model": str(plain.get("source")),
        "method": label,
        "length": str(plain.get("to")),
        "attach": str(attach.get("name")) if isinstance(attach, dict) else "none",
    }
    patterns = {key: getattr(exclude, key) for key in found}
    named = {key: str(pattern) for key, pattern in patterns.items() if pattern is not None}
    return bool(named) and all(fnmatch.fnmatchcase(found[key], pattern) for key, pattern in named.items())


def _named(found: Sequence[tuple[JobSpec, Node]]) -> list[Job]:
    derived = Counter(_derived(spec) for spec, _ in found if spec.name is None)
    given = Counter(spec.name for spec, _ in found if spec.name is not None)
    jobs: dict[str, Job] = {}
    for spec, node in found:
        name, digest = spec.name, _digest(node)
        if name is None:
            name = _derived(spec)
            # By content and not by number: the name must not change when another job is added.
            if derived[name] > 1 or name in given:
                name = f"{name}-{digest}"
        elif not _NAME.fullmatch(name):
            raise wrong(node.at(["name"]), f"{name!r} is no name for a job", "use letters, digits and . _ + -")
        if name in jobs:
            first = jobs[name].node
            where = first.at(["name"]) if spec.name is not None else first.place
            raise wrong(
                node.at(["name"]), f"two jobs are called {name} (the first at {where})", "name one of them otherwise"
            )
        jobs[name] = Job(name, spec, node, spec.name is not None, digest)
    return list(jobs.values())


def _derived(spec: JobSpec) -> str:
    parts = [source_label(spec.source), method_label(spec)]
    if spec.attach is not None:
        parts.append(spec.attach.name)
    if spec.to is not None:
        parts.append(str(spec.to))
    return (_STRANGE.sub("-", "-".join(parts)).lstrip("-.+_") or "job")[:180]


def _digest(node: Node) -> str:
    return hashlib.sha256(json.dumps(node.plain, sort_keys=True).encode()).hexdigest()[:8]


def chosen(jobs: Sequence[Job], patterns: Sequence[str]) -> list[Job]:
    """The jobs whose names match one of the patterns; all where there is none.

    Raises:
        UsageError: a pattern matches no job.
    """
    if not patterns:
        return list(jobs)
    names = [job.name for job in jobs]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            import difflib

            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names[:8])}"
            raise UsageError(f"--only {pattern} matches no job", hint)
    return [job for job in jobs if any(fnmatch.fnmatchcase(job.name, pattern) for pattern in patterns)]
