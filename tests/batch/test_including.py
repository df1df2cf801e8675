"""Includes: one file's contents before another's, each once, never in a circle."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxforge.batch.including import read_batch
from ctxforge.errors import UsageError
from tests.batch.files import write


def test_defaults_and_jobs_of_included_files_come_first(tmp_path: Path) -> None:
    write(
        tmp_path / "a.yaml",
        """
        version: 1
        include: [more/b.yaml, more/c.json]
        defaults: {to: 8x, verify: {strict: true}}
        jobs: [{name: own}]
        """,
    )
    write(
        tmp_path / "more" / "b.yaml",
        """
        version: 1
        output: there
        defaults: {to: 4x, method: yarn, verify: smoke}
        jobs: [{name: from-b}]
        matrix: {lengths: [4x]}
        """,
    )
    write(tmp_path / "more" / "c.json", '{"version": 1, "include": ["b.yaml"], "jobs": [{"name": "from-c"}]}')
    found = read_batch(tmp_path / "a.yaml")
    assert [job.plain["name"] for job in found.jobs] == ["from-b", "from-c", "own"]
    assert found.defaults.plain["to"] == "8x"
    assert found.defaults.plain["method"] == {"name": "yarn"}
    assert found.defaults.plain["verify"] == {"tier": "smoke", "strict": True}
    assert len(found.matrices) == 1  # though b is included twice
    assert found.output == "there"
    assert found.defaults.at(["method"]).line == 3


def test_a_circle_is_shown(tmp_path: Path) -> None:
    for one, other in ("ab", "bc", "ca"):
        write(tmp_path / f"{one}.yaml", f"version: 1\ninclude:\n  - {other}.yaml\n")
    with pytest.raises(UsageError) as caught:
        read_batch(tmp_path / "a.yaml")
    a, b, c = (str(tmp_path / f"{name}.yaml") for name in "abc")
    assert caught.value.cause == f"{c}:3:5: includes go in a circle: {a} -> {b} -> {c} -> {a}"
    write(tmp_path / "a.yaml", "version: 1\ninclude: [a.yaml]\n")
    with pytest.raises(UsageError, match="includes go in a circle"):
        read_batch(tmp_path / "a.yaml")


def test_a_mistake_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "version: 1\ninclude: [b.yaml]\n")
    write(tmp_path / "b.yaml", "version: 1\njbos: []\n")
    with pytest.raises(UsageError, match=r"b\.yaml:2:1: a batch file has no entry 'jbos'"):
        read_batch(tmp_path / "a.yaml")


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(0, 5), st.lists(st.integers(0, 5), max_size=3), max_size=6))
def test_any_graph_ends_with_each_file_once_or_a_circle(
    tmp_path_factory: pytest.TempPathFactory, graph: dict[int, list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("graph")
    for i in range(6):
        names = ", ".join(f"f{other}.yaml" for other in graph.get(i, []))
        write(folder / f"f{i}.yaml", f"version: 1\ninclude: [{names}]\njobs: [{{name: j{i}}}]\n")

    def reaches(start: int, seen: frozenset[int]) -> bool:
        return any(other in seen or reaches(other, seen | {other}) for other in graph.get(start, []))

    def order(start: int, found: list[int]) -> list[int]:
        for other in graph.get(start, []):
            if other not in found:
                order(other, found)
        if start not in found:
            found.append(start)
        return found

    if reaches(0, frozenset({0})):
        with pytest.raises(UsageError, match="circle"):
            read_batch(folder / "f0.yaml")
    else:
        found = read_batch(folder / "f0.yaml")
        assert [job.plain["name"] for job in found.jobs] == [f"j{i}" for i in order(0, [])]
