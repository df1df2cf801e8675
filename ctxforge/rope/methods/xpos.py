"""xPos, and xPos under an adjusted base: rotation with a decay for each pair, which needs custom modeling code."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.rope.methods.base import Method, Request, parameter
from ctxforge.rope.types import CustomCode, RopeForm, Rotation

_SCALE_BASE = "B, tokens per factor zeta_i of decay; none: L'/2, the paper's ratio; 1e11 is RoPE itself"
_BLOCK_LENGTH = (
    "blockwise causal attention with blocks of this many tokens (the paper: half the training length): a query sees its"
    " own block and the one before; none: full attention"
)


@dataclass(frozen=True)
class Parameters:
    """xPos's parameters."""

    scale_base: float | None = parameter(None, _SCALE_BASE)
    block_length: int | None = parameter(None, _BLOCK_LENGTH, kind="count")


@dataclass(frozen=True)
class AbfParameters:
    """The parameters of xPos under an adjusted base."""

    base: float = parameter(500000.0, "the new base; 2309.16039 takes 500 000 for 4k -> 32k")
    scale_base: float | None = parameter(None, _SCALE_BASE)
    block_length: int | None = parameter(None, _BLOCK_LENGTH, kind="count")


def compute(parameters: Parameters, request: Request) -> Rotation:
    """q_i scaled by zeta_i^(n/B), k_i by zeta_i^(-m/B), zeta_i = (2i + 0.4 d)/(1.4 d); lambda_i = 1 (2212.10554, 3.2).

    Raises:
        UsageError: blocks of less than two tokens.
    """
    plain = (1.0,) * request.spectrum.pairs
    code = _code(parameters.scale_base, parameters.block_length, request)
    return Rotation(plain, form=RopeForm("default"), code=code)


def compute_abf(parameters: AbfParameters, request: Request) -> Rotation:
    """xPos over the base b' = base: lambda_i = (b'/b)^(2i/d) (2309.16039, section 4.1).

    Raises:
        UsageError: the new base is not above the model's own, or blocks of less than two tokens.
    """
    spectrum = request.spectrum
    if parameters.base <= spectrum.base:
        raise UsageError(
            f"xpos-abf: base={parameters.base:g} is not above the model's own base {spectrum.base:g}",
            "give a larger one: --param base=...",
        )
    ratio = parameters.base / spectrum.base
    divisors = tuple(ratio ** (2 * i / spectrum.rotated_dims) for i in range(spectrum.pairs))
    code = _code(parameters.scale_base, parameters.block_length, request)
    return Rotation(divisors, form=RopeForm("default", {"rope_theta": parameters.base}), code=code)


def _code(scale_base: float | None, block_length: int | None, request: Request) -> CustomCode:
    if block_length is not None and block_length < 2:
        raise UsageError(
            f"xpos: block_length={block_length} is less than two tokens",
            "give about half the trained length, or leave it out for full attention",
        )
    base = request.target_length / 2 if scale_base is None else scale_base
    return CustomCode("xpos", {"scale_base": base, "block_length": block_length})


def warnings(parameters: Parameters | AbfParameters, request: Request) -> tuple[str, ...]:
    """What nobody has shown, the layout trap, and what the parameters cost."""
    lines = [
        "experimental, needs training: no RoPE model has been published that became an xPos model without it; Giraffe's"
        " fine-tune never converged (2308.10882), 2309.16039 needed 80B tokens and gained nothing over plain ABF",
        "Giraffe's negative result is confounded: its code rotates interleaved pairs on half-split LLaMA weights"
        " (abacusai/Long-Context:python/models/xpos.py); ctxforge keeps the model's own layout",
        "the decay is on from the first step; to bring it in gradually, train with a large scale_base and lower it",
    ]
    if parameters.scale_base is not None and parameters.scale_base < request.target_length / 2:
        slowest = (2 * request.spectrum.pairs - 2 + 0.8 * request.spectrum.pairs) / (2.8 * request.spectrum.pairs)
        left = slowest ** (request.target_length / parameters.scale_base)
        lines.append(
            f"at scale_base {parameters.scale_base:g} even the slowest pair keeps {left:.2g} of its weight at"
            f" {request.target_length} tokens"
        )
    if parameters.block_length is not None:
        reach = 2 * parameters.block_length - 1
        lines.append(
            f"blockwise causal attention: nothing farther back than {reach} tokens is seen; perplexity stays low and"
            " far retrieval is impossible"
        )
    return tuple(lines)


_COSTS = (
    "loads with trust_remote_code in transformers only: vLLM, SGLang, llama.cpp, TGI and mlx-lm can't serve it",
    "without blockwise causal attention it degrades past the training length all the same: about +8 of perplexity at"
    " four times (2212.10554, table 5)",
    "about 6 % slower than RoPE (2212.10554)",
)

METHOD = Method(
    name="xpos",
    title="xPos",
    reference="2212.10554 section 3.2, section 3.3 for blockwise causal attention",
    summary="Keeps the frequencies and lets each pair's share of q.k decay with distance, by zeta_i^((n - m)/B).",
    evidence=(
        "from scratch at 1024 tokens: validation perplexity 17.54, RoPE 17.74 (2212.10554, table 4)",
        "as a conversion of LLaMA: did not converge (2308.10882), on code with the wrong pair layout",
    ),
    needs_training="yes: from scratch in the paper, no published success as a conversion",
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
    needs_code=True,
    needs="custom code",
    costs=_COSTS,
    experimental=True,
)

METHODS = (
    METHOD,
    Method(
        name="xpos-abf",
        title="xPos with an adjusted base",
        reference="2309.16039 section 4.1; 2212.10554 section 3.2",
        summary="Sets the base to a given value, and lets each pair's share of q.k decay with distance.",
        evidence=(
            "Llama-2-7B with 80B tokens at 32k: Books 6.331, plain ABF 6.323 (2309.16039, table 5)",
            "at 70B it extrapolates no better than plain ABF (2309.16039, appendix C)",
        ),
        needs_training="yes, long: 80B tokens in the paper",
        parameters=AbfParameters,
        compute=compute_abf,
        warnings=warnings,
        needs_code=True,
        needs="custom code",
        costs=_COSTS,
        experimental=True,
    ),
)
