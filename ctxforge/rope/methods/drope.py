"""DroPE: RoPE is dropped after pre-training; the causal mask alone orders the tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.rope.methods.base import Method, Request
from ctxforge.rope.types import UNROTATED, RopeForm, Rotation


@dataclass(frozen=True)
class Parameters:
    """DroPE has none."""


def compute(_parameters: Parameters, request: Request) -> Rotation:
    """No pair rotates; a = 1 (2512.12167, section 4). L' is only declared: nothing depends on it."""
    return Rotation(
        (UNROTATED,) * request.spectrum.pairs, form=RopeForm("proportional", {"partial_rotary_factor": 0.0})
    )


def warnings(_parameters: Parameters, _request: Request) -> tuple[str, ...]:
    """Without recalibration nothing of the model is left."""
    return ("DroPE needs recalibration: until the result is trained at the original length, it is not a working model",)


METHOD = Method(
    name="drope",
    title="DroPE (positions dropped)",
    reference="2512.12167; SakanaAI/DroPE",
    summary="Stops every pair: attention sees no positions but through the causal mask.",
    evidence=(
        "needle retrieval at twice the trained length with no long training: 74.92 % where scaled RoPE fails"
        " (2512.12167, as reported by secondary sources)",
        "LongBench average of SmolLM more than ten times the base model's (the same)",
    ),
    costs=(
        "recalibration at the original length for 0.5 % to 2 % of the pre-training tokens: Llama-2-7B 5000 steps of 512"
        " x 4096 tokens at lr 1e-4 (SakanaAI/DroPE:cfgs/run_cfg)",
        "attention flattens with length: the published evaluation scales the softmax at long lengths; --temperature"
        " sets one value for all lengths",
        "positions can't be brought back by another config: the recalibrated weights expect none",
    ),
    needs="calibration",
    needs_training="recalibration at the original length, always",
    any_target=True,
    parameters=Parameters,
    compute=compute,
    warnings=warnings,
)
