"""What a user asked for. The command line and recipe files fill the same objects."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ctxforge.errors import UsageError

Scalar = bool | int | float | str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodChoice(_Strict):
    """A method and its parameters."""

    name: str = Field(description="a method of `ctxforge methods`")
    parameters: dict[str, Scalar] = Field(default_factory=dict, description="the method's own parameters")
    temperature: float | None = Field(
        default=None, description="replaces the method's temperature a (on cos and sin; q.k gets its square)"
    )


class ConversionRecipe(_Strict):
    """One conversion, from a source to a plan."""

    version: Literal[1] = 1
    source: str = Field(description="a folder, a .gguf file, a Hub id org/name[@revision], or `bundled`")
    revision: str | None = Field(default=None, description="branch, tag or commit of a Hub source")
    method: MethodChoice
    to: str | int | None = Field(default=None, description="target length: 64k, 8x, 65536")
    original_length: str | int | None = Field(
        default=None, description="drop any scaling in force and start from this trained length"
    )
    trained_length: str | int | None = Field(
        default=None, description="the length the source works at now, where its config doesn't tell or is wrong"
    )


class OutputOptions(_Strict):
    """How a conversion is written."""

    out: Path
    link: bool = Field(default=False, description="hardlink untouched files instead of copying")
    overwrite: bool = Field(default=False, description="replace an existing output, at the very end")
    checksum: bool = Field(default=False, description="record the sha256 of copied weights too")


def parse_method(text: str, parameters: tuple[str, ...] = (), temperature: float | None = None) -> MethodChoice:
    """`yarn` or `yarn:beta_fast=64,truncate=false`, with further `key=value` entries.

    Raises:
        UsageError: an entry without `=`, or the same parameter twice.
    """
    name, _, inline = text.partition(":")
    entries = [entry for entry in inline.split(",") if entry] + list(parameters)
    values: dict[str, Scalar] = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        key = key.strip()
        if not equals or not key or not value:
            raise UsageError(f"{entry!r} is not a parameter", "write parameters as key=value")
        if key in values:
            raise UsageError(f"parameter {key!r} is given twice", "keep one of the two")
        values[key] = value.strip()
    return MethodChoice(name=name.strip(), parameters=values, temperature=temperature)
