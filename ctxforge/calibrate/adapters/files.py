"""An adapter's folder: `adapter.json` says what is trained on which base, `adapter.safetensors` holds the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge.calibrate.adapters.recipe import AdapterRecipe
from ctxforge.checkpoint import TensorInfo, parse_json_object, read_tensor
from ctxforge.checkpoint.files import read_small
from ctxforge.checkpoint.header import read_header
from ctxforge.checkpoint.jsonio import MAX_JSON_BYTES
from ctxforge.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from ctxforge.calibrate.adapters.rounding import Numbers

RECORD = "adapter.json"
WEIGHTS = "adapter.safetensors"
SCHEMA_VERSION = 1
_REMEDY = "take the adapter's folder as ctxforge wrote it, or train it again"


@dataclass(frozen=True)
class Entry:
    """One trained parameter.

    Attributes:
        parameter: its name in the model.
        role: what it was chosen as, or "other".
        tensors: the checkpoint's tensors that hold it: two where a tied tensor is stored twice.
        shape: its shape, in the model as in the checkpoint.
        kind: "low-rank" or "whole".
        scale: the factor on the low-rank product.
        transposed: the matrix is stored [inputs, outputs], so that the change is scale * (B A)'.
    """

    parameter: str
    role: str
    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    kind: str
    scale: float = 1.0
    transposed: bool = False

    def stored(self) -> dict[str, tuple[int, ...]]:
        """The adapter's tensors of this entry with their shapes; a 0 stands for the rank."""
        if self.kind == "whole":
            return {self.parameter: self.shape}
        outputs, inputs = self.shape[::-1] if self.transposed else self.shape
        return {f"{self.parameter}.lora_A": (0, inputs), f"{self.parameter}.lora_B": (outputs, 0)}


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, checked against itself.

    Attributes:
        root: its folder.
        recipe: what was asked for.
        source: the name of the base as the trainer knew it.
        digest: `weights_digest` of the base.
        entries: what was trained.
        tensors: the tensors of its file.
        notes: what the trainer recorded besides.
    """

    root: Path
    recipe: AdapterRecipe
    source: str
    digest: str
    entries: tuple[Entry, ...]
    tensors: Mapping[str, TensorInfo]
    notes: Mapping[str, Any]

    def numbers(self, name: str) -> Numbers:
        """One of its tensors, float32.

        Raises:
            CheckpointError: it holds a NaN or an infinity.
        """
        import numpy as np

        found = read_tensor(self.root, self.tensors[name]).astype(np.float32, copy=False)
        if not np.isfinite(found).all():
            raise CheckpointError(f"the adapter's {name} holds a NaN or an infinity", "go back to an earlier state")
        return found


def document(
    recipe: AdapterRecipe, source: str, digest: str, entries: tuple[Entry, ...], notes: Mapping[str, Any]
) -> dict[str, Any]:
    """What `adapter.json` says."""
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe.document(),
        "base": {"source": source, "weights_digest": digest},
        "entries": [asdict(entry) for entry in entries],
        "notes": dict(notes),
    }


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter's folder: names, shapes and dtypes are checked, no number is read.

    Raises:
        CheckpointError: a file is missing or damaged, or the two don't fit each other.
        UsageError: the folder isn't one of ctxforge's adapters.
    """
    root = Path(folder)
    if not (root / RECORD).is_file():
        raise UsageError(f"{folder} is not an adapter of ctxforge: it has no {RECORD}", "give the adapter's folder")
    found, _ = parse_json_object(read_small(root / RECORD, RECORD, MAX_JSON_BYTES), RECORD)
    if found.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{RECORD} has the schema version {found.get('schema_version')}, not {SCHEMA_VERSION}",
            "use the version of ctxforge that wrote it",
        )
    try:
        recipe = AdapterRecipe.from_document(found["recipe"])
        base = found["base"]
        entries = tuple(_entry(one) for one in found["entries"])
        source, digest = str(base["source"]), str(base["weights_digest"])
        notes = dict(found["notes"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{RECORD} is malformed: {error}", _REMEDY) from error
    tensors = {info.name: info for info in read_header(root / WEIGHTS, WEIGHTS).tensors}
    adapter = Adapter(root, recipe, source, digest, entries, tensors, notes)
    for problem in _problems(adapter):
        raise CheckpointError(problem, _REMEDY)
    return adapter


def _entry(found: Mapping[str, Any]) -> Entry:
    entry = Entry(
        parameter=str(found["parameter"]),
        role=str(found["role"]),
        tensors=tuple(str(name) for name in found["tensors"]),
        shape=tuple(int(size) for size in found["shape"]),
        kind=str(found["kind"]),
        scale=float(found["scale"]),
        transposed=bool(found["transposed"]),
    )
    if entry.kind not in ("low-rank", "whole") or not entry.tensors:
        raise ValueError(f"{entry.parameter} is neither low-rank nor whole, or is nowhere in the checkpoint")
    if entry.kind == "low-rank" and len(entry.shape) != 2:
        raise ValueError(f"{entry.parameter} has a low-rank change but is no matrix")
    return entry


def _problems(adapter: Adapter) -> Iterator[str]:
    """Where record and numbers contradict each other."""
    expected: set[str] = set()
    places: set[str] = set()
    for entry in adapter.entries:
        rank = adapter.recipe.rank
        for name, shape in entry.stored().items():
            if name in expected:
                yield f"{RECORD} names {name} twice"
            expected.add(name)
            info = adapter.tensors.get(name)
            if info is None:
                yield f"{WEIGHTS} lacks {name}"
            elif info.dtype != "F32" or info.shape != tuple(size or rank for size in shape):
                yield f"{name} is {info.dtype} {list(info.shape)}, which its entry in {RECORD} contradicts"
        for place in entry.tensors:
            if place in places:
                yield f"{RECORD} writes the tensor {place} twice"
            places.add(place)
    for name in sorted(set(adapter.tensors) - expected):
        yield f"{WEIGHTS} holds {name}, which {RECORD} does not know"
