"""Matrices multiplied out, defaults filled in, names given."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.batch.expanding import Job, chosen, count_jobs, expand
from ctxforge.batch.including import read_batch
from ctxforge.errors import UsageError
from tests.batch.files import write

MODELS = ["org/a", "org/b", "./c.gguf", "d/a"]
METHODS = ["yarn", "pi", "yarn+resonance", "yarn:beta_fast=64", "ntk"]
LENGTHS = ["4x", "64k", 4096, 8192]


def jobs(folder: Path, text: str) -> list[Job]:
    return expand(read_batch(write(folder / "b.yaml", text)))


subset = st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True)


@settings(max_examples=40, deadline=None)
@given(subset, st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True), subset, st.integers(0, 5))
def test_a_matrix_is_the_product_less_what_is_excluded(
    tmp_path_factory: pytest.TempPathFactory, models: list[int], methods: list[int], lengths: list[int], out: int
) -> None:
    folder = tmp_path_factory.mktemp("matrix")
    axes = [[MODELS[i] for i in models], [METHODS[i] for i in methods], [LENGTHS[i] for i in lengths]]
    cells = list(itertools.product(*axes))
    gone = cells[out % len(cells)]
    label = gone[1].partition(":")[0]
    exclude = f"- {{model: {gone[0]!r}, method: {label!r}, length: {gone[2]!r}}}"
    text = f"version: 1\nmatrix:\n  models: {axes[0]}\n  methods: {axes[1]}\n  lengths: {axes[2]}\n"
    contents = read_batch(write(folder / "b.yaml", text))
    assert count_jobs(contents) == len(cells)
    whole = expand(contents)

    def cell(job: Job) -> tuple[object, ...]:
        method = "+".join((job.spec.method.name, *job.spec.method.modifiers))
        inline = ",".join(f"{key}={value}" for key, value in job.spec.method.parameters.items())
        return job.spec.source, f"{method}:{inline}" if inline else method, job.spec.to

    assert [cell(job) for job in whole] == cells
    names = [job.name for job in whole]
    assert len(set(names)) == len(names)
    # Names come from contents: another order, or fewer jobs beside, changes none that was unique by itself.
    mirrored = text
    for axis in axes:
        mirrored = mirrored.replace(f"{axis}\n", f"{axis[::-1]}\n")
    assert {cell(job): job.name for job in jobs(folder, mirrored)} == {cell(job): job.name for job in whole}
    if len(cells) > 1 and (
        kept := [one for one in cells if (one[0], one[1].partition(":")[0], one[2]) != (gone[0], label, gone[2])]
    ):
        left = jobs(folder, text + f"  exclude:\n    {exclude}\n")
        assert [cell(job) for job in left] == kept


def test_entries_of_every_kind(tmp_path: Path) -> None:
    found = jobs(
        tmp_path,
        """
        version: 1
        defaults: {link: true, verify: {tier: smoke, strict: true}, resources: {cpus: 2}}
        jobs:
          - {name: one, source: s, method: {name: yarn, parameters: {beta_fast: 64}, temperature: 1.5}, to: 4x}
          - {name: two, source: s, method: pi, to: 8x, verify: quick, link: false}
          - {name: three, source: s, method: pi, to: 8x, verify: false, resources: {gpus: 1}}
        matrix:
          - models: [{source: org/m, revision: v1, trained_length: 4k}]
            methods: [{attach: "self-extend:group=8"}, {name: pi}, {method: ntk, portability: exact}]
            lengths: [16k]
          - models: [other]
            methods: [yarn]
        """,
    )
    by = {job.name: job.spec for job in found}
    assert by["one"].method.parameters == {"beta_fast": 64}
    assert by["one"].method.temperature == 1.5
    assert by["one"].verify is not None
    assert (by["one"].verify.tier, by["one"].verify.strict) == ("smoke", True)
    assert by["two"].verify is not None
    assert (by["two"].verify.tier, by["two"].verify.strict, by["two"].link) == ("quick", True, False)
    assert by["three"].verify is None
    assert (by["three"].resources.cpus, by["three"].resources.gpus) == (2, 1)
    attached = by["m-none-self-extend-16k"]
    assert attached.attach is not None
    assert attached.attach.parameters == {"group": "8"}
    assert (attached.revision, attached.trained_length) == ("v1", "4k")
    assert by["m-ntk-16k"].portability == "exact"
    assert by["other-yarn"].to is None


def test_derived_names_that_would_be_the_same_say_what_differs(tmp_path: Path) -> None:
    text = "version: 1\njobs:\n  - {source: x/m, method: yarn, to: 4x}\n  - {source: y/m, method: yarn, to: 4x}\n"
    names = [job.name for job in jobs(tmp_path, text)]
    assert all(name.startswith("m-yarn-4x-") and len(name) == len("m-yarn-4x-") + 8 for name in names)
    third = [job.name for job in jobs(tmp_path, text + "  - {name: m-pi-4x, source: z, method: yarn, to: 4x}\n")]
    assert third[:2] == names


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["a-1", "a-2", "b-1", "b-2"]), unique=True, min_size=1),
    st.sampled_from(["a*", "*-1", "*"]),
)
def test_only_keeps_the_order(tmp_path_factory: pytest.TempPathFactory, names: list[str], pattern: str) -> None:
    folder = tmp_path_factory.mktemp("only")
    found = jobs(folder, "version: 1\njobs:\n" + "".join(f"  - {{name: {n}, source: s, method: pi}}\n" for n in names))
    wanted = [n for n in names if pattern == "*" or n.startswith(pattern[:1]) or n.endswith(pattern[-2:])]
    if not wanted:
        with pytest.raises(UsageError, match="matches no job"):
            chosen(found, (pattern,))
    else:
        assert [job.name for job in chosen(found, (pattern,))] == wanted
        twice = Counter(job.name for job in chosen(found, (pattern, pattern)))
        assert set(twice.values()) == {1}
