"""Measure the rotation that q and k undergo in each layer of a model, without looking at its config.

Every modeling file of transformers rotates q and k in a function called apply_...rotary... or apply_...rope....
While the model runs, each such call is answered as always, and the same call, with the same tables, is made once more
on unit vectors: that gives the whole matrix R_t that the call applies at each token t. From the matrices follow, pair
by pair, which input dimensions turn together, how fast, and by how much they are stretched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.architectures.watch import TOKENS, Place, RotaryCall, Watch, run


@dataclass(frozen=True)
class Turn:
    """One rotation of the vectors that a layer passes to its rotary function.

    Attributes:
        rotated_dims: twice the number of pairs, still ones (frequency 0) among the turning ones included.
        frequencies: radians a token of each pair, in the order of the pairs' first dimensions.
        layout: `half-split` or `interleaved`, of the input.
        temperature: factor on the rotated dimensions.
        direction: 1 where pair (i, j) turns from i to j, -1 the other way.
        first: first rotated dimension among those passed.
        width: dimensions passed.
        pooled: the vectors stand for groups of tokens; `frequencies` are radians a group, up to whole turns and sign.
    """

    rotated_dims: int
    frequencies: tuple[float, ...]
    layout: str
    temperature: float
    direction: int
    first: int
    width: int
    pooled: bool = False


@dataclass
class Layer:
    """What one decoder layer was seen to do: the rotations of its attention, and of modules deeper inside it."""

    index: int
    module: str
    main: list[Turn] = field(default_factory=list)
    others: dict[str, list[Turn]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A whole model: its layers, its position embedding tables (name, rows, offset, sinusoidal), its ALiBi calls."""

    layers: tuple[Layer, ...]
    tables: tuple[tuple[str, int, int, bool], ...]
    alibi: bool


class NotARotationError(Exception):
    """The matrices of a call are not those of a rotary embedding."""


def measure(model: Any, *, positions: list[int] | None = None, inputs: dict[str, Any] | None = None) -> Measured:
    """Run `model` once on random tokens and measure each layer.

    Args:
        model: any causal LM of transformers.
        positions: position ids of the tokens, ascending from 0; None leaves them to the model.
        inputs: what to call the model with instead of tokens.

    Raises:
        NotARotationError: a rotary function does something else.
    """
    calls: list[tuple[Place, torch.Tensor]] = []

    def answer(call: RotaryCall) -> None:
        calls.extend((call.place, matrices) for matrices in _matrices(call))

    seen, _logits = run(model, answer, positions, inputs)
    at = positions or list(range(TOKENS))
    return Measured(_layers(model, seen, calls, at), _tables(seen, at), seen.alibi)


def _layers(
    model: Any, watch: Watch, calls: list[tuple[Place, torch.Tensor]], positions: list[int]
) -> tuple[Layer, ...]:
    lists = sorted(watch.visited)
    if len(lists) > 1:
        attended = {place.layers for place, _ in calls}
        lists = [path for path in lists if path in attended] or lists
    layers: dict[tuple[str, int], Layer] = {}
    for path in lists:
        for index in range(len(model.get_submodule(path))):
            layers[path, index] = Layer(len(layers), f"{path}.{index}")
    seen: dict[tuple[str, int], dict[str, list[Turn]]] = {}
    for place, matrices in calls:
        turn = turn_of(matrices, positions)
        if turn is not None:
            turns = seen.setdefault((place.layers, place.index), {}).setdefault(place.module, [])
            if not any(close(turn, other) for other in turns):
                turns.append(turn)
    for key, by_module in seen.items():
        depth = min(name.count(".") - (1 if name[-1:].isdigit() else 0) for name in by_module)
        for name, turns in by_module.items():
            if name.count(".") - (1 if name[-1:].isdigit() else 0) == depth:
                layers[key].main += [t for t in turns if not any(close(t, other) for other in layers[key].main)]
            else:
                layers[key].others[name] = turns
    return tuple(layers.values())


def close(one: Turn, other: Turn, tolerance: float = 1e-5) -> bool:
    """True when two turns are the same rotation of q and k (its inverse included)."""
    return (
        (one.rotated_dims, one.layout, one.pooled) == (other.rotated_dims, other.layout, other.pooled)
        and abs(one.temperature - other.temperature) <= tolerance
        and all(abs(a - b) <= tolerance * max(a, b) for a, b in zip(one.frequencies, other.frequencies, strict=True))
    )


def pooled_alike(turn: Turn, frequencies: tuple[float, ...], tolerance: float = 1e-4) -> bool:
    """True when groups of some whole number of tokens, rotated with `frequencies`, would turn as measured."""
    for size in range(1, 65):
        errors = [
            abs(math.remainder(abs(math.remainder(size * wanted, math.tau)) - abs(measured), math.tau))
            for wanted, measured in zip(frequencies, turn.frequencies, strict=True)
        ]
        if max(errors) < tolerance:
            return True
    return False


def turn_of(matrices: torch.Tensor, positions: list[int]) -> Turn | None:
    """The rotation in R_t, [tokens, out, in]; None when the vectors come back as they were.

    Raises:
        NotARotationError: the matrices are something else.
    """
    width = matrices.shape[-1]
    pooled = len(matrices) != len(positions)
    if pooled:
        # Groups of tokens: their positions ascend in equal steps, of a size that only the model knows.
        positions = list(range(len(matrices)))
    if len(matrices) == 1:
        return None
    stretch = matrices[0].norm(dim=0)
    relative = torch.einsum("ai,taj->tij", matrices[0], matrices) / (stretch[:, None] * stretch[None, :])
    partners: dict[int, int] = {}
    moved = relative.abs().amax(0)
    for i in range(width):
        found = [j for j in range(width) if j != i and moved[j, i] > 1e-25]
        if len(found) > 1:
            raise NotARotationError(f"dimension {i} turns into {found}")
        if found:
            partners[i] = found[0]
    if not partners:
        if (stretch - 1).abs().max() > 1e-6:
            raise NotARotationError(f"vectors are stretched by {stretch.max():.6g} and not rotated")
        return None
    if any(partners.get(j) != i for i, j in partners.items()):
        raise NotARotationError(f"dimensions don't pair up: {partners}")
    layout, first, pairs = _pairs(partners, width)
    frequencies, signs = [], []
    for i, j in pairs:
        frequency = _frequency(relative[:, [i, j]][:, :, [i, j]], positions)
        frequencies.append(abs(frequency))
        signs.append(0 if frequency == 0 else (1 if frequency > 0 else -1))
    if not pooled and len({sign for sign in signs if sign}) > 1:
        raise NotARotationError("pairs turn in different directions")
    inside = stretch[[i for pair in pairs if partners.get(pair[0]) is not None for i in pair]]
    if (inside / inside.mean() - 1).abs().max() > 1e-6:
        raise NotARotationError(f"rotated dimensions are stretched differently: {inside.tolist()}")
    outside = stretch[[i for i in range(width) if i not in {k for pair in pairs for k in pair}]]
    if len(outside) and (outside - 1).abs().max() > 1e-6:
        raise NotARotationError("dimensions outside the rotated ones are stretched")
    return Turn(
        rotated_dims=2 * len(pairs),
        frequencies=tuple(frequencies),
        layout=layout,
        temperature=float(inside.mean()),
        direction=next(sign for sign in signs if sign),
        first=first,
        width=width,
        pooled=pooled,
    )


def _pairs(partners: dict[int, int], width: int) -> tuple[str, int, list[tuple[int, int]]]:
    """Layout, first rotated dimension and all pairs, those that stand still between turning ones included."""
    turning = sorted((i, j) for i, j in partners.items() if i < j)
    gaps = {j - i for i, j in turning}
    if len(gaps) != 1:
        raise NotARotationError(f"pairs at distances {sorted(gaps)}")
    gap = gaps.pop()
    first = turning[0][0]
    if gap == 1 and not (len(turning) == 1 and width == 2):
        last = turning[-1][0]
        if any((i - first) % 2 for i, _ in turning):
            raise NotARotationError(f"pairs {turning}")
        return "interleaved", first, [(i, i + 1) for i in range(first, last + 1, 2)]
    # Half-split over 2 * gap dimensions: pairs past the last turning one stand still (frequency 0).
    if any(i >= first + gap for i, _ in turning):
        raise NotARotationError(f"pairs {turning}")
    return "half-split", first, [(i, i + gap) for i in range(first, first + gap)]


def _frequency(blocks: torch.Tensor, positions: list[int]) -> float:
    """Radians a token of one pair, from its 2 x 2 blocks [tokens, out, in]; checked to be linear in the position."""
    angles = torch.atan2(blocks[:, 1, 0] - blocks[:, 0, 1], blocks[:, 0, 0] + blocks[:, 1, 1])
    steps = torch.tensor([p - positions[0] for p in positions], dtype=torch.float64)
    frequency = float(angles[1] / steps[1])
    expected = frequency * steps
    error = torch.remainder(angles - expected + torch.pi, 2 * torch.pi) - torch.pi
    if (error.abs() > 1e-6 * (steps + 1)).any():
        raise NotARotationError(f"angles {angles.tolist()} are not proportional to positions {positions}")
    unit = (blocks[:, 0, 0] ** 2 + blocks[:, 1, 0] ** 2).sqrt()
    if (unit - 1).abs().max() > 1e-5:
        raise NotARotationError("a pair is stretched by another factor at other positions")
    return frequency


def _matrices(call: RotaryCall) -> list[torch.Tensor]:
    """R_t, [tokens, out, in], of each rotated argument: the call repeated with unit vectors in their places."""
    found = []
    for place, (name, tensor) in enumerate(zip(call.rotated, call.inputs, strict=True)):
        columns = []
        for i in range(tensor.shape[-1]):
            unit = torch.zeros(tensor.shape, dtype=torch.float64)
            unit[..., i] = 1
            output = call.outputs(**{name: unit})[place]
            if output.shape != tensor.shape:
                raise NotARotationError(f"{name} changes its shape")
            columns.append(output.double())
        found.append(_by_token(torch.stack(columns), tensor.shape[-1]))
    return found


def _by_token(values: torch.Tensor, width: int) -> torch.Tensor:
    """[in, ..., out] with tokens and heads between them -> [tokens, out, in]; heads must agree."""
    middle = list(range(1, values.ndim - 1))
    spreads = {axis: float((values - values.narrow(axis, 0, 1)).abs().max()) for axis in middle}
    varying = [axis for axis in middle if spreads[axis] > 0]
    if len(varying) > 1:
        raise NotARotationError("heads are rotated differently")
    axis = varying[0] if varying else max(middle, key=lambda a: values.shape[a] == TOKENS)
    for other in middle:
        if other != axis:
            values = values.narrow(other, 0, 1)
    values = values.movedim(axis, 0)
    return values.reshape(values.shape[0], width, -1).transpose(1, 2)


def _tables(seen: Watch, positions: list[int]) -> tuple[tuple[str, int, int, bool], ...]:
    """Embeddings looked up by position: one row a token, as far apart as the positions, or one after the other."""
    found = {}
    count = len(positions)
    for name, rows, weight in seen.lookups:
        flat = rows.reshape(-1)[:count].tolist()
        steps = [row - flat[0] for row in flat]
        if steps in (positions, list(range(count))):
            still = weight[flat[0]].double()
            waves = bool(((still.abs() < 1e-6) | ((still - 1).abs() < 1e-6)).all())
            found[name] = (name, weight.shape[0], flat[0], waves and flat[0] == 0)
    return tuple(found.values())


# Positions that enter without a rotary function, an embedding look-up or an ALiBi function that could be watched; by
# reading transformers 5.24.
_READ = {
    "cpmant": "relative",
    "ctrl": "sinusoidal",
    "inkling_text": "relative",
    "inkling2_text": "relative",
    "inkling2_loop_text": "relative",
    "musicgen": "sinusoidal",
    "musicgen_melody": "sinusoidal",
    "reformer": "axial",
    "whisper": "learned",
    "xglm": "sinusoidal",
    "xlnet": "relative",
}


def scheme(model_type: str, measured: Measured) -> str:
    """How a model knows positions: rope, learned, sinusoidal, alibi, relative, axial or none."""
    if any(layer.main for layer in measured.layers):
        return "rope"
    if measured.alibi:
        return "alibi"
    if model_type in _READ:
        return _READ[model_type]
    if measured.tables:
        return "sinusoidal" if measured.tables[0][3] else "learned"
    return "none"
