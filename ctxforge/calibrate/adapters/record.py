"""What a merge did, with what was measured while it did it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the checkpoint that the merge wrote anew.

    Attributes:
        name, dtype, shape: as in the checkpoint.
        role: what it was trained as.
        kind: "low-rank" or "whole".
        source_sha256, sha256: of its data before and after, hex.
        elements: how many numbers it has.
        changed: how many of them have other bits than before.
        norm: its Frobenius norm before.
        norm_of_change: of the change that was trained, before rounding.
        norm_written: of the change that the rounded numbers make.
        largest_rounding: largest |written - exact| in units of the written number's last place, over `audited`
            elements of the finished file; at most 0.5.
        audited: how many elements were computed again.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    kind: str
    source_sha256: str
    sha256: str
    elements: int
    changed: int
    norm: float
    norm_of_change: float
    norm_written: float
    largest_rounding: float
    audited: int


@dataclass(frozen=True)
class MergeRecord:
    """A finished merge.

    Attributes:
        out: the folder.
        adapter_source: the name of the base as the trainer knew it.
        base_digest: `weights_digest` of the base, which the adapter was trained on.
        recipe: of the adapter.
        tensors: what changed.
        untouched: how many tensors were carried over byte for byte.
        bytes_rewritten: size of the changed tensors.
        sha256: of the small files that were written beside the weights.
    """

    out: Path
    adapter_source: str
    base_digest: str
    recipe: Mapping[str, Any]
    tensors: tuple[MergedTensor, ...]
    untouched: int
    bytes_rewritten: int
    sha256: Mapping[str, str]

    @property
    def largest_rounding(self) -> float:
        """The largest |written - exact| over all audited elements, in units in the last place."""
        return max((tensor.largest_rounding for tensor in self.tensors), default=0.0)

    @property
    def relative_change(self) -> float:
        """Norm of the trained change over the norm of the tensors it is in."""
        before = sum(tensor.norm**2 for tensor in self.tensors)
        return float((sum(tensor.norm_of_change**2 for tensor in self.tensors) / before) ** 0.5) if before else 0.0

    def document(self) -> dict[str, Any]:
        """The record as JSON data, for the provenance of the output."""
        return {
            "base_digest": self.base_digest,
            "adapter_source": self.adapter_source,
            "recipe": dict(self.recipe),
            "untouched_tensors": self.untouched,
            "bytes_rewritten": self.bytes_rewritten,
            "largest_rounding_ulp": self.largest_rounding,
            "relative_change": self.relative_change,
            "tensors": [{**asdict(tensor), "shape": list(tensor.shape)} for tensor in self.tensors],
        }
