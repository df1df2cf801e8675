"""What the battery runs on: settings for tiny models of every attachment system, and a dense stock model.

A system that is registered without a row here fails test_battery_forward.py. A row is called as the system is, and
where a system has several, a space and a word follow. Settings are for a trained length of 64
and texts of up to 256 tokens, small enough that the geometry bites inside the window of 24 that tiny Mistral and
Gemma 2 models have themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

import ctxforge
from ctxforge.attention import attachments
from ctxforge.attention.reference import Pattern, causal, dense_attention, distances
from ctxforge.attention.types import Attachment
from ctxforge.errors import CtxforgeError
from tests.modeling.emitted import TARGET, difference, read_config, remote, stock, tokens, whole

ARCHITECTURES = ("llama", "qwen3", "gpt_neox", "glm", "gemma2", "mistral")
LENGTH = 150
REFUSALS = (CtxforgeError, NotImplementedError, RuntimeError, ValueError)
_DENSE = "battery_dense"


@dataclass(frozen=True)
class Row:
    """How a system is tested.

    Attributes:
        settings: of `--attach`, after the name.
        degenerate: settings that make it the stock model on texts of `same_until` tokens.
        same_until: see `degenerate`.
        to: target length of the conversion.
        dense: settings under which the dense reference is a pattern; None for `settings`.
        pattern: the pattern under `dense`, for systems whose pattern depends on the data; None for the system's own.
        refusals: points of the battery, or architectures, that are refused, with what the refusal must say.
    """

    settings: str
    degenerate: str
    same_until: int = LENGTH
    to: int = TARGET
    dense: str | None = None
    pattern: Callable[[Mapping[str, Any], int, int], Pattern] | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)


def within(window: int) -> Callable[[Mapping[str, Any], int, int], Pattern]:
    """Everything is seen, at most `window` tokens away: InfLLM that chooses all blocks."""

    def pattern(_parameters: Mapping[str, Any], length: int, _heads: int) -> Pattern:
        return Pattern(causal(length), distances(length).clamp(max=window))

    return pattern


ROWS: dict[str, Row] = {
    "blockwise-causal": Row("block=12", "block=32", 64),
    "lm-infinite": Row("window=16,sinks=4", "window=60,sinks=4", 60),
    "lm-infinite keeping": Row("window=16,sinks=4,evict=false", "window=60,sinks=4,evict=false", 60),
    "streaming-llm": Row("window=16,sinks=4", "window=60,sinks=4", 60),
    "infllm": Row(
        "window=16,sinks=3,block=5,topk=2,representatives=2",
        "window=60,sinks=4,block=5",
        60,
        dense="window=16,sinks=3,block=5,topk=1000",
        pattern=within(16),
    ),
    "infllm offloading": Row(
        "window=16,sinks=3,block=5,topk=2,representatives=2,offload=true",
        "window=60,sinks=4,block=5,offload=true",
        60,
        dense="window=16,sinks=3,block=5,topk=1000,offload=true",
        pattern=within(16),
    ),
    "longnet": Row("segments=12/48/192,dilations=1/2/3", "segments=256,dilations=1"),
    "self-extend": Row("window=12,group=6", "window=60,group=60", 60),
    "rerope": Row("window=12", "window=60", 60),
    "leaky-rerope": Row("window=12,factor=6", "window=60,factor=70", 60),
    "dual-chunk": Row("chunk=20,local=6", "chunk=63,local=1", 62),
    "string": Row("shift=20,window=4", "shift=60,window=40", 60, to=80),
}


def attachment_of(row: str) -> str:
    """The system that a row is about."""
    return row.split(" ")[0]


def systems() -> dict[str, Attachment]:
    """The attachments whose checkpoints carry code."""
    return {name: found for name, found in attachments().items() if found.exported and found.system}


TESTED = tuple(row for row in ROWS if attachment_of(row) in systems())
every_system = pytest.mark.parametrize("name", TESTED)
every_architecture = pytest.mark.parametrize("kind", ARCHITECTURES)


def attach(source: Path, name: str, settings: str, out: Path, **options: Any) -> Path:
    """`source` extended with the attachment, to what its row says."""
    chosen = attachment_of(name) + (f":{settings}" if settings else "")
    ctxforge.extend(source, attach=chosen, to=ROWS[name].to, out=out, **options)
    return out


def holds_or_is_refused(name: str, point: str, kind: str, check: Callable[[], None]) -> None:
    """Run `check`; where the system's row says that the point or the architecture is refused, it must be."""
    refusals = ROWS[name].refusals
    said = refusals.get(point, refusals.get(kind))
    if said is None:
        check()
        return
    with pytest.raises(REFUSALS, match=said):
        check()


def pattern_of(name: str, folder: Path, length: int, heads: int = 4) -> Pattern:
    """The dense reference's geometry for what config.json in `folder` says."""
    own = ROWS[name].pattern or systems()[attachment_of(name)].pattern
    assert own is not None, f"{name} has neither a pattern nor a row that gives one"
    return own(read_config(folder)["ctxforge"]["parameters"], length, heads)


def wrong_distances(pattern: Pattern) -> Pattern:
    """A control: what stands five tokens back is taken to be one token farther away."""
    return replace(pattern, distance=torch.where(_apart(pattern) == 5, pattern.distance + 1, pattern.distance))


def one_key_too_few(pattern: Pattern) -> Pattern:
    """A control: nobody sees the token five back."""
    return replace(pattern, visible=pattern.visible & (_apart(pattern) != 5))


def _apart(pattern: Pattern) -> torch.Tensor:
    index = torch.arange(pattern.visible.shape[-1])
    return index[:, None] - index[None, :]


def equals_dense(folder: Path, source: Path, pattern: Pattern, *, interleaved: bool) -> bool:
    """Whether the emitted model in `folder` computes what the dense one does.

    In float32 to 1e-5, or to what the formula itself loses to rounding where that is more; in float64 to 1e-6 (the
    emitted model's table is float32).
    """
    ids = tokens(2, LENGTH)
    wanted = whole(dense_model(source, pattern, interleaved=interleaved), ids)
    rounding = difference(
        whole(dense_model(source, pattern, interleaved=interleaved, dtype=torch.float32), ids), wanted
    )
    model = remote(folder)
    found = difference(whole(model, ids), wanted), difference(whole(model.double(), ids), wanted)
    return found[0] < max(1e-5, 2 * rounding) and found[1] < 1e-6


def dense_model(source: Path, pattern: Pattern, *, interleaved: bool, dtype: torch.dtype = torch.float64) -> Any:
    """The stock model in `source`, attending by `pattern`, nothing of the emitted code in it.

    Its rotary module hands out the identity, and a registered function attends by the formula. The architecture's own
    windows hide what they hide besides.
    """
    model = stock(source).to(dtype)
    rotary = next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))
    frequencies, temperature = rotary.inv_freq.double(), float(rotary.attention_scaling)
    rotary.register_forward_hook(lambda _module, _args, out: (torch.ones_like(out[0]), torch.zeros_like(out[1])))

    def attention(_module: Any, query: Any, key: Any, value: Any, *_args: Any, scaling: float, **kwargs: Any) -> Any:
        seen = pattern
        if kwargs.get("sliding_window") is not None:
            seen = replace(pattern, visible=pattern.visible & (_apart(pattern) < kwargs["sliding_window"]))
        output = dense_attention(
            query,
            key,
            value,
            frequencies,
            seen,
            scaling=scaling,
            interleaved=interleaved,
            temperature=temperature,
            softcap=kwargs.get("softcap"),
            sinks=kwargs.get("s_aux"),
        )
        return output.transpose(1, 2), None

    for module in model.modules():
        object.__setattr__(module, _DENSE, attention)
    model.config._attn_implementation = _DENSE
    return model


def _attend(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Each dense model's own function: several may be alive."""
    return getattr(module, _DENSE)(module, *args, **kwargs)


AttentionInterface.register(_DENSE, _attend)
