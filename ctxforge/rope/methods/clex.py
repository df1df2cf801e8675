"""CLEX, frozen: the frequencies that a trained CLEX model's equation gives at one scale."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.methods.factor_lists import check_list
from ctxforge.rope.types import Rotation


@dataclass(frozen=True)
class Parameters:
    """Frozen CLEX's parameters: one of the two lists."""

    frequencies: tuple[float, ...] | None = parameter(
        None, "radians per token at one scale t, one a pair: a list, or a JSON or CSV file", kind="numbers"
    )
    factors: tuple[float, ...] | None = parameter(None, "the same as divisors of the plain frequencies", kind="numbers")


def compute(parameters: Parameters, request: Request) -> Rotation:
    """lambda_i = f_i / exp(z_i(t)), z(t) solving dz/dt = g(z, t), z(1) = ln f (2310.16450, section 3); a = 1.

    g is learned with the model's weights: `ctxforge.rope.clex_ode.clex_frequencies` integrates it from a CLEX
    checkpoint's two projections.

    Raises:
        UsageError: neither or both lists, or one of the wrong length or sign.
    """
    lists = {"frequencies": parameters.frequencies, "factors": parameters.factors}
    found = [(name, numbers) for name, numbers in lists.items() if numbers is not None]
    if len(found) != 1:
        raise UsageError(
            f"clex needs one list, frequencies or factors, and got {len(found)}: its frequencies are learned with the"
            " weights",
            "export them from the CLEX checkpoint (ctxforge.rope.clex_ode) and pass --param frequencies=FILE",
        )
    name, numbers = found[0]
    spectrum = request.spectrum
    check_list("clex", name, numbers, spectrum.pairs, monotone=False)
    divisors = numbers
    if name == "frequencies":
        divisors = tuple(f / given for f, given in zip(spectrum.frequencies, numbers, strict=True))
    return Rotation(divisors)


def warnings(_parameters: Parameters, _request: Request) -> tuple[str, ...]:
    """The weights must be a CLEX model's."""
    return ("these frequencies fit only the CLEX model that they were trained with",)


METHOD = Method(
    name="clex",
    title="CLEX frozen at one scale",
    reference="2310.16450 section 3; DAMO-NLP-SG/CLEX:CLEX/clex_layer.py",
    summary="Takes the frequencies of a trained CLEX model at one scale, so that stock loaders need none of its code.",
    evidence=(
        "CLEX-7B trained at 16k, not frozen, perplexity 5.88, 5.68, 5.52, 5.55, 5.64 at 4k to 64k; YaRN s=32 6.61 to"
        " 6.22 (2310.16450)",
        "freezing is this tool's inference: no paper reports it",
    ),
    costs=(
        "frozen at t, short prompts get the frequencies of the longest length; clex-dynamic doesn't, with custom code",
        "checkpoints with log_scale also scale the logits by the length: no config key expresses that",
        "the source must be a CLEX checkpoint; its ode_up_proj and ode_down_proj are dropped with its code",
    ),
    needs="calibration",
    needs_training="the source is a model trained with CLEX; none after freezing",
    experimental=True,
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
)
