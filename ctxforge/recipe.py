"""What a user asked for. The command line, the Python API and recipe files fill the same objects.

Frozen dataclasses and not pydantic models, because every command pays for what is imported here. `validated` checks
plain data against them with pydantic, unknown keys forbidden, when a file or a Python caller brings it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ctxforge.errors import UsageError

Scalar = bool | int | float | str
Given = Scalar | list[float]


@dataclass(frozen=True, kw_only=True)
class MethodChoice:
    """A method and its parameters.

    Attributes:
        name: a method of `ctxforge methods`.
        parameters: the method's own parameters; a list of numbers may stand as one or as a path.
        modifiers: steps after the method, in order, such as `resonance`.
        temperature: replaces the method's temperature a (on cos and sin; q.k gets its square).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    parameters: dict[str, Given] = field(default_factory=dict)
    temperature: float | None = None
    modifiers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttachmentChoice:
    """An attention system and its parameters.

    Attributes:
        name: an attachment of `ctxforge attachments`.
        parameters: its own parameters.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    parameters: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ConversionRecipe:
    """One conversion, from a source to a plan.

    Attributes:
        source: a folder, a .gguf file, a Hub id org/name[@revision], or `bundled`.
        method: what to do.
        revision: branch, tag or commit of a Hub source.
        to: target length: 64k, 8x, 65536.
        original_length: drop any scaling in force and start from this trained length.
        trained_length: the length the source works at now, where its config doesn't tell or is wrong.
        attach: an attention system for the result.
        portability: which engines the result is written for: widest, exact or transformers.
        version: of this format.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    source: str
    method: MethodChoice
    revision: str | None = None
    to: str | int | None = None
    original_length: str | int | None = None
    trained_length: str | int | None = None
    attach: AttachmentChoice | None = None
    portability: str = "widest"
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How a conversion is written.

    Attributes:
        out: folder to write.
        link: hardlink untouched files instead of copying.
        overwrite: replace an existing output, at the very end.
        checksum: record the sha256 of copied weights too.
    """

    out: Path
    link: bool = False
    overwrite: bool = False
    checksum: bool = False


def validated(values: Mapping[str, Any]) -> ConversionRecipe:
    """A recipe from plain data, checked strictly: unknown keys and wrong types are refused.

    Raises:
        UsageError: names the first wrong entry.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(ConversionRecipe).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{name}: {first['msg']}", "see ctxforge extend --help for what each entry takes") from None


def parse_method(text: str, parameters: tuple[str, ...] = (), temperature: float | None = None) -> MethodChoice:
    """`NAME[+MODIFIER...][:key=value,...]`, such as `yarn+resonance:beta_fast=64`, with further `key=value` entries.

    Raises:
        UsageError: an empty name or modifier, an entry without `=`, or the same parameter twice.
    """
    head, _, inline = text.partition(":")
    name, *modifiers = (part.strip() for part in head.split("+"))
    if not name or not all(modifiers):
        raise UsageError(f"{text!r} names no method", "write a method, or a method and modifiers: yarn+resonance")
    entries = [entry for entry in inline.split(",") if entry] + list(parameters)
    values: dict[str, Given] = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        key = key.strip()
        if not equals or not key or not value:
            raise UsageError(f"{entry!r} is not a parameter", "write parameters as key=value")
        if key in values:
            raise UsageError(f"parameter {key!r} is given twice", "keep one of the two")
        values[key] = value.strip()
    return MethodChoice(name=name, parameters=values, temperature=temperature, modifiers=tuple(modifiers))


def parse_attachment(text: str) -> AttachmentChoice:
    """`NAME[:key=value,...]`, such as `lm-infinite:window=4096`.

    Raises:
        UsageError: an empty name, an entry without `=`, or the same parameter twice.
    """
    if not text.partition(":")[0].strip():
        raise UsageError(f"{text!r} names no attachment", "give one of `ctxforge attachments`")
    chosen = parse_method(text)
    if chosen.modifiers:
        raise UsageError(f"{text!r} names more than one attachment", "give one: --attach NAME[:key=value,...]")
    return AttachmentChoice(name=chosen.name, parameters={key: str(value) for key, value in chosen.parameters.items()})
