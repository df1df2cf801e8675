"""What a method is: a name, its parameters, and one pure function from frequencies to divisors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.rope.methods.parameters import given_parameters, parameter
from ctxforge.rope.spectrum import Spectrum
from ctxforge.rope.types import Rotation

__all__ = ["NEEDS", "Method", "Request", "parameter"]

NEEDS = ("nothing", "calibration", "custom code")


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
        evidence: published results, one sentence each.
        needs_training: what the literature says about use without a fine-tune.
        parameters: a frozen dataclass; its fields are the method's parameters.
        compute: (parameters, request) -> Rotation, with divisors relative to the request's spectrum.
        warnings: (parameters, request) -> lines that the plan shows.
        scheme: the kind of positions that it extends: rope, learned (a table of embeddings) or alibi.
        needs_code: the result loads with custom modeling code only.
        needs: what the result needs before it is of use: one of `NEEDS`; training on the result is `calibration`.
        costs: what is known to get worse or to go wrong, one sentence each.
        aliases: other names in use for it.
        experimental: no published success as a conversion of a trained model.
        any_target: the target may be left out, or equal the trained length.
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
    needs: str = "nothing"
    costs: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    experimental: bool = False
    any_target: bool = False

    def build_parameters(self, given: Mapping[str, object]) -> Any:
        """The parameter dataclass filled from `given`, each value checked against its field's kind.

        Raises:
            UsageError: an unknown name, a value of the wrong kind, or a file that holds no list of numbers.
        """
        fields = {field.name: field for field in dataclasses.fields(self.parameters)}
        return self.parameters(**given_parameters(self.name, fields, given))
