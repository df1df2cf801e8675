"""What a comparison of two checkpoints, A and B, says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ctxforge.checkpoint import DTYPE_BITS, TensorInfo

Path = tuple[str | int, ...]
"""The keys and indices that lead to a value of a JSON document."""

ChangeKind = Literal["added", "removed", "changed"]
FileKind = Literal["added", "removed", "changed", "not compared"]
TensorKind = Literal["added", "removed", "shape", "dtype", "bytes", "not compared"]


@dataclass(frozen=True)
class JsonChange:
    """One value that was added in B, removed from A, or changed; `before` and `after` are None where there is none."""

    path: Path
    kind: ChangeKind
    before: Any = None
    after: Any = None


@dataclass(frozen=True)
class JsonDifference:
    """A JSON file that both have and whose bytes differ; without `changes` only its formatting or key order does."""

    file: str
    changes: tuple[JsonChange, ...]


@dataclass(frozen=True)
class RotaryDifference:
    """What becomes of one rotary table, or of all positions.

    Args:
        layer_type: the table's layers; None where there is one table.
        before, after: each side's scaling in words; an error's cause where it is not understood.
        changed: whether the rotation, or the length that the model works at, differs.
        largest_change: the largest ratio of a pair's speeds, slower to faster, as "A turns x times as fast as B": above
            1 where B is slower. None where the two can't be compared.
        pair: the index of that pair.
        pairs_changed, pairs: how many pairs turn at another speed (beyond 1e-9 relative), of how many.
        temperature: a of A and of B, None where not understood.
        lengths: the tokens that A and B work at, None where unknown.
        folded: the factor on q.k that the weights of A and of B carry, as their `ctxforge.json` records it; 1 where
            nothing is recorded. It takes back, or adds to, the square of the temperature.
    """

    layer_type: str | None
    before: str
    after: str
    changed: bool
    largest_change: float | None = None
    pair: int | None = None
    pairs_changed: int = 0
    pairs: int = 0
    temperature: tuple[float | None, float | None] = (None, None)
    lengths: tuple[int | None, int | None] = (None, None)
    folded: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Amounts:
    """By how much the elements of a tensor differ.

    Args:
        elements: how many were compared.
        changed: how many differ in their bits.
        largest: the largest |b - a|; None where the dtype packs several numbers into a byte.
        largest_relative: the largest |b - a| / max(|a|, |b|), between 0 and 2.
        not_finite: changed elements of which a or b is infinite or not a number; they don't count for the two above.
    """

    elements: int
    changed: int = 0
    largest: float | None = 0.0
    largest_relative: float | None = 0.0
    not_finite: int = 0

    @classmethod
    def none_of(cls, elements: int, dtype: str) -> Amounts:
        """No difference in so many elements; for a dtype below eight bits they are bytes, and have no amounts."""
        return cls(elements) if DTYPE_BITS[dtype] >= 8 else cls(elements, 0, None, None)

    @property
    def share(self) -> float:
        """Changed elements of all; 0 for an empty tensor."""
        return self.changed / self.elements if self.elements else 0.0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            self.elements + other.elements,
            self.changed + other.changed,
            _largest(self.largest, other.largest),
            _largest(self.largest_relative, other.largest_relative),
            self.not_finite + other.not_finite,
        )


def _largest(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that differs, or whose bytes could not be compared."""

    name: str
    kind: TensorKind
    before: TensorInfo | None = None
    after: TensorInfo | None = None
    amounts: Amounts | None = None


@dataclass(frozen=True)
class HeaderDifference:
    """A weight file of both whose header differs: its `__metadata__`, or only spelling, order and padding.

    Args:
        file: its name.
        metadata: changes of `__metadata__`.
        spelling: True where the JSON text differs beyond that.
    """

    file: str
    metadata: tuple[JsonChange, ...]
    spelling: bool


@dataclass(frozen=True)
class Sharding:
    """How the tensors are laid out in files; not a difference of the model.

    Args:
        files: how many weight files A and B have.
        moved: tensors of both that lie in a file of another name.
        shifted: tensors that lie at another place of a file of the same name.
    """

    files: tuple[int, int]
    moved: int
    shifted: int

    @property
    def differs(self) -> bool:
        """Whether anything lies elsewhere."""
        return self.files[0] != self.files[1] or self.moved > 0 or self.shifted > 0


@dataclass(frozen=True)
class FileDifference:
    """A file that one lacks, that differs, or that could not be compared; sizes in bytes, None where it isn't there."""

    file: str
    kind: FileKind
    sizes: tuple[int | None, int | None]


@dataclass(frozen=True)
class Differences:
    """All of it.

    Args:
        sources: A and B as they were named.
        revisions: their commits on the Hub, None for local ones.
        json: JSON files of both whose bytes differ.
        rotary: each rotary table's before and after.
        tensors: the tensors that differ or were not compared, by name.
        tensor_counts: how many tensors A and B have.
        headers: weight files of one name whose headers differ.
        sharding: the layout in files.
        files: other files that differ.
        notes: what could not be compared and why, one line each.
        bytes_read: tensor bytes that were read of each side.
        bytes_skipped: tensor bytes known to be equal without reading them.
        every_tensor: the names of all tensors of both, for counts by group.
    """

    sources: tuple[str, str]
    revisions: tuple[str | None, str | None]
    json: tuple[JsonDifference, ...]
    rotary: tuple[RotaryDifference, ...]
    tensors: tuple[TensorDifference, ...]
    tensor_counts: tuple[int, int]
    headers: tuple[HeaderDifference, ...]
    sharding: Sharding
    files: tuple[FileDifference, ...]
    notes: tuple[str, ...] = ()
    bytes_read: int = 0
    bytes_skipped: int = 0
    every_tensor: frozenset[str] = field(default_factory=frozenset, repr=False)

    @property
    def differ(self) -> bool:
        """Whether a value, a tensor or a file differs. Layout in files, formatting and padding don't count."""
        return (
            any(found.changes for found in self.json)
            or any(kind != "not compared" for kind in self._kinds)
            or any(found.metadata for found in self.headers)
        )

    @property
    def complete(self) -> bool:
        """Whether everything was compared: where not, equality is not known."""
        return "not compared" not in self._kinds

    @property
    def _kinds(self) -> list[str]:
        return [*(found.kind for found in self.tensors), *(found.kind for found in self.files)]

    @property
    def by_group(self) -> Mapping[str, tuple[TensorDifference, ...]]:
        """The tensor differences by group: names that differ only in numbers, which stand as `*`."""
        groups: dict[str, list[TensorDifference]] = {}
        for found in self.tensors:
            groups.setdefault(group_of(found.name), []).append(found)
        return {name: tuple(members) for name, members in groups.items()}


def group_of(name: str) -> str:
    """A tensor's group: `model.layers.*.mlp.up_proj.weight` for the one of every layer."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
