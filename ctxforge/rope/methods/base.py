"""What a method is: a name, its parameters, and one pure function from frequencies to divisors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import UsageError
from ctxforge.rope.spectrum import Spectrum
from ctxforge.rope.types import Rotation

Parameter = float | int | bool | None


def parameter(default: Parameter, explanation: str) -> Any:
    """A dataclass field of a method's parameters: the default, and the line that `ctxforge methods` shows."""
    return dataclasses.field(default=default, metadata={"explanation": explanation})


@dataclass(frozen=True)
class Request:
    """What a method is asked for: the spectrum that the weights know, L0, L', and s = L'/L0."""

    spectrum: Spectrum
    original_length: int
    target_length: int

    @property
    def scale(self) -> float:
        """s = L'/L0."""
        return self.target_length / self.original_length


@dataclass(frozen=True)
class Method:
    """One row of the method table.

    Attributes:
        name: what the user types.
        title: the field's name for it.
        reference: arXiv number with equation, or repository:path.
        summary: what it does to the frequencies, one sentence.
        evidence: published results and known costs, one sentence each.
        needs_training: what the literature says about use without a fine-tune.
        parameters: a frozen dataclass; its fields are the method's parameters.
        compute: (parameters, request) -> Rotation, with divisors relative to the request's spectrum.
        warnings: (parameters, request) -> lines that the plan shows.
        scheme: the kind of positions that it extends: rope, learned (a table of embeddings) or alibi.
        needs_code: the result loads with custom modeling code only.
    """

    name: str
    title: str
    reference: str
    summary: str
    evidence: tuple[str, ...]
    needs_training: str
    parameters: type[Any]
    compute: Callable[[Any, Request], Rotation]
    warnings: Callable[[Any, Request], tuple[str, ...]] = lambda _parameters, _request: ()
    scheme: str = "rope"
    needs_code: bool = False

    def build_parameters(self, given: Mapping[str, object]) -> Any:
        """The parameter dataclass filled from `given`, each value checked against its default's type.

        Raises:
            UsageError: an unknown name, or a value of the wrong type.
        """
        fields = {field.name: field for field in dataclasses.fields(self.parameters)}
        values: dict[str, object] = {}
        for name, value in given.items():
            if name not in fields:
                known = ", ".join(fields) or "none"
                raise UsageError(
                    f"method {self.name} has no parameter {name!r}", f"its parameters are: {known} (ctxforge methods)"
                )
            values[name] = _coerce(self.name, name, value, fields[name].default)
        return self.parameters(**values)


def _coerce(method: str, name: str, value: object, default: object) -> object:
    """`value` as the type of `default` (float when the default is None); text is parsed, anything else refused."""
    if isinstance(default, bool):
        accepted = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in accepted:
            return accepted[value.lower()]
        raise UsageError(f"{method}: {name}={value!r} is not true or false", f"write {name}=true or {name}=false")
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 < number < 1e12:
        raise UsageError(f"{method}: {name}={value!r} is not a positive number", f"give {name} a positive number")
    return number
