"""What an attachment is: an attention system that a checkpoint can be given, with its parameters and its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ctxforge.attention.reference import Pattern

Kind = Literal["int", "float", "bool", "text", "ints"]
Value = int | float | bool | str | list[int]


@dataclass(frozen=True)
class Parameter:
    """One parameter of an attachment.

    Attributes:
        name: as in `--attach NAME:key=value`.
        kind: how its text is read; `ints` is a list with slashes between, such as 1024/2048/4096.
        default: None where it follows from the lengths, see `explanation`.
        explanation: one line.
    """

    name: str
    kind: Kind
    default: Value | None
    explanation: str


@dataclass(frozen=True)
class Situation:
    """The model that an attachment is made for.

    Attributes:
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        heads: query heads.
        layers: layers of the model.
        model_type: the stock type.
        static: whether the rotation is one table for every length; False for dynamic methods and custom code.
        method: name of the RoPE method beside it; "none" where RoPE is left as it is.
    """

    trained_length: int
    target_length: int
    heads: int
    layers: int
    model_type: str
    static: bool
    method: str


@dataclass(frozen=True)
class Attachment:
    """An attention system.

    Attributes:
        name: as in `--attach`.
        title: its name in the field.
        reference: arXiv number and repo:path of the published code.
        summary: what it computes, in a sentence.
        can: what a user gains, a line each.
        cannot: what it does not do, a line each.
        needs: "nothing", "calibration" or "training" before its result is worth using.
        cost: of prefill and of a decoded token, and of the cache, in words.
        engines: which engines run it, in words.
        parameters: see `Parameter`.
        resolve: the parameters as the modeling file wants them; raises UsageError or UnsupportedError.
        pattern: the dense reference for `length` tokens; None where it depends on the data (see `note`).
        exported: False for training-time systems, whose checkpoints stay plain.
        system: key of `ctxforge.rope.custom_code.SYSTEMS`; empty for those without custom code.
        plain: for attachments that some architectures express in their own config: the keys to set there, or None
            where this model cannot and `system` must; raises UnsupportedError where there is no `system`.
    """

    name: str
    title: str
    reference: str
    summary: str
    can: tuple[str, ...]
    cannot: tuple[str, ...]
    needs: str
    cost: str
    engines: str
    parameters: tuple[Parameter, ...]
    resolve: Callable[[Mapping[str, Value], Situation], dict[str, Any]]
    pattern: Callable[[Mapping[str, Any], int, int], Pattern] | None
    exported: bool = True
    system: str = ""
    plain: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any] | None] | None = None
