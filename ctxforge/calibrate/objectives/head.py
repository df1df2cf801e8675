"""How a model turns hidden states into logits, found by asking the model itself.

Most heads are a matrix, perhaps with a bias, a factor (Cohere, Granite) and a soft cap (Gemma 2). Where the model's
own code agrees with that form on a few rows, the form is used, because its gradient can be written into the memory of
its logits. Where it does not, the model's own code is run on slices (`verification.head.SlicedHead`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ctxforge.errors import UnsupportedError
from ctxforge.verification.head import SlicedHead

_PROBE_ROWS = 8
# Relative to the largest logit: what rounding in the model's dtype leaves between two orders of the same operations.
_AGREEMENT = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
# Names under which configs keep a factor on the logits. Some multiply by it and some divide: the probe decides.
_FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_SOFTCAP = "final_logit_softcapping"


@dataclass(frozen=True)
class AffineForm:
    """logits = c tanh(s (W h + b) / c), or s (W h + b) without a cap.

    Attributes:
        scale: s.
        softcap: c; None for no cap.
    """

    scale: float = 1.0
    softcap: float | None = None

    def logits(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Logits [n, V], float32 or wider, of rows [n, d]."""
        found = F.linear(rows, weight, bias)
        found = found.to(torch.promote_types(found.dtype, torch.float32)) * self.scale
        return found if self.softcap is None else self.softcap * torch.tanh(found / self.softcap)


def causal_lm(model: Any) -> Any:
    """The causal LM inside peft's wrapper, with its adapters; the model itself where there is none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def affine_form(model: Any, output_class: type[Any]) -> AffineForm | None:
    """The form whose logits are those of the model's own code on a few random rows; None when no form's are.

    Args:
        model: a causal LM of transformers.
        output_class: the class of output that its decoder returns.
    """
    layer = model.get_output_embeddings()
    # A subclass, such as an adapter's wrapper, computes something of its own.
    if type(layer) is not torch.nn.Linear:
        return None
    weight = layer.weight
    if weight.is_meta:  # no values to compare: the form that needs most memory
        return _candidates(model)[-1]
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(_PROBE_ROWS, weight.shape[1], generator=draw)
    # Small rows tell factors apart, large ones caps.
    rows[_PROBE_ROWS // 2 :] *= 8
    rows = rows.to(weight)
    # The head's own rounding is compared, and not autocast's.
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        stock = SlicedHead(model).logits(rows, output_class).double()
        errors = {form: _error(form.logits(rows, weight, layer.bias).double(), stock) for form in _candidates(model)}
    best = min(errors, key=lambda form: errors[form])
    return best if errors[best] <= _AGREEMENT.get(weight.dtype, 1e-5) else None


def refuse_sharded(model: Any) -> None:
    """Raise unless the head's weights are whole at this moment.

    Raises:
        UnsupportedError: FSDP2 or tensor parallelism split the head and did not gather it.
    """
    layer = model.get_output_embeddings()
    for parameter in layer.parameters() if layer is not None else ():
        if hasattr(parameter, "placements"):
            raise UnsupportedError(
                "the model's head is sharded by itself, and a sliced loss needs it whole",
                "shard the module that holds model and loss as the root, and leave the head in its group",
            )


def _candidates(model: Any) -> list[AffineForm]:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    factors = {1.0}
    for name in _FACTORS:
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value:
            factors |= {float(value), 1.0 / value}
    cap = getattr(config, _SOFTCAP, None)
    caps = [None, float(cap)] if cap else [None]
    return [AffineForm(factor, cap) for factor in sorted(factors) for cap in caps]


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
