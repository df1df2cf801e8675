"""ALiBi with scaled slopes, on BLOOM, MPT and Falcon (2310.13017).

The bias of a key at distance m - n is -slope_h (m - n) times a factor below 1: distances up to the target length then
give the biases that the weights know. `factor` is L0 / L' for every query; with `dynamic` a query that sees l keys uses
min(1, L0 / l) instead. Either is a function of the query's own past, so one pass, chunks and token by token agree.

The stock classes build their bias from hard-coded slopes and have no attention interface, so their attention modules'
forward is replaced here. Distances are counted over the keys that are not padding. The bias is computed in float32 from
distances; stock Falcon rounds slope * position to bfloat16, which loses single tokens past position 256 and cannot hold
at a longer context, so only its slopes are rounded here, as they were when it was trained.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.models.falcon.modeling_falcon import FALCON_ATTENTION_CLASSES, FalconAttention
from transformers.models.mpt import modeling_mpt
from transformers.models.mpt.modeling_mpt import MptAttention

from .ctxforge_attention import Call, softmax_attention
from .ctxforge_caches import refuse_static
from .ctxforge_runtime import SYSTEM, System, build_class, register, system_of

# Queries attended to at once: bounds the bias [B, H, t, S].
_BLOCK = 512
# transformers 4 builds MPT's mask itself, true where a key is hidden; later it comes from our mask function.
_MPT_MASK_HIDES = not hasattr(modeling_mpt, "create_causal_mask")


class Alibi(System):
    """Scaled ALiBi: parameters `factor`, `dynamic`, `original_length`."""

    name = "ctxforge_alibi"
    needs_mask = True

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.factor = float(self.parameters["factor"])
        self.dynamic = bool(self.parameters["dynamic"])
        self.original_length = int(self.parameters["original_length"])

    def wire(self, model: nn.Module) -> None:
        """Give every attention module its replacement's forward."""
        wired = 0
        for module in model.modules():
            for stock, replacement in _REPLACEMENTS:
                if isinstance(module, stock):
                    module.__class__ = replacement
                    object.__setattr__(module, SYSTEM, self)
                    wired += 1
            if getattr(module, "use_alibi", False):
                module.use_alibi = False  # Falcon would fold its own bias into the mask
        if wired != self.layers:
            raise RuntimeError(f"{type(model).__name__} has {wired} attention modules that {self.name} knows")

    def run(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        slopes: torch.Tensor,
        scaling: float,
        dropout: float,
    ) -> torch.Tensor:
        """Attention's output [B, T, H * D].

        Args:
            module: the attention module.
            query, key, value: [B, H, T, D], [B, K, S, D], [B, K, S, D].
            mask: bool [B, 1, T, S], or the float mask of a caller: 0 where visible.
            slopes: [H], as the stock model has them, in units of scores after `scaling`.
            scaling: factor on q.k.
            dropout: of the attention weights.
        """
        if mask is None:
            raise RuntimeError(f"{type(module).__name__} got no mask: {self.name} needs one")
        if mask.dtype != torch.bool:
            mask = mask >= 0
        mask = mask.to(query.device)
        place = mask.any(dim=2)[:, 0].cumsum(dim=-1)  # counts the keys that are not padding
        empty = place[:, :0]
        call = Call(query, key, value, empty, empty, mask, scaling, dropout if module.training else 0.0)
        total, behind = query.shape[2], key.shape[2] - query.shape[2]
        blocks = []
        for start in range(0, total, _BLOCK):
            stop = min(start + _BLOCK, total)
            seen = slice(0, behind + stop)
            visible = mask[:, :, start:stop, seen]
            distance = place[:, None, behind + start : behind + stop, None] - place[:, None, None, seen]
            bias = -slopes[None, :, None, None] * self._factor(visible) * distance.clamp(min=0)
            blocks.append(
                softmax_attention(call, query[:, :, start:stop], key[:, :, seen], value[:, :, seen], visible, bias=bias)
            )
        output = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
        return output.transpose(1, 2).flatten(2)

    def _factor(self, visible: torch.Tensor) -> torch.Tensor | float:
        """What the slopes are multiplied by, [B, 1, t, 1] or one number."""
        if not self.dynamic:
            return self.factor
        length = visible.sum(dim=-1, keepdim=True)
        return (self.original_length / length.clamp(min=1)).clamp(max=1.0)


def power_slopes(heads: int, device: torch.device) -> torch.Tensor:
    """Slopes of BLOOM and Falcon, float32 [H]: 2^(-8 h / H) for a power of two, else those and odd ones between."""
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (h + 1) / whole) for h in range(whole)]
    slopes += [2 ** (-4 * (2 * h + 1) / whole) for h in range(heads - whole)]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


def mpt_slopes(heads: int, device: torch.device) -> torch.Tensor:
    """Slopes of MPT, float32 [H]: 2^(-8 h / P), P the next power of two; every second first where H < P."""
    whole = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** (-8 * (h + 1) / whole) for h in range(whole)]
    if whole != heads:
        slopes = (slopes[1::2] + slopes[::2])[:heads]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


def _grown(module: nn.Module, cache: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with the cached ones before them."""
    if cache is None:
        return key, value
    refuse_static(cache, module.layer_idx, system_of(module).name)
    return cache.update(key, value, module.layer_idx)


def _cache(given: dict[str, Any]) -> Cache | None:
    """The cache among the arguments: its name changed with transformers' versions."""
    return next((value for value in given.values() if isinstance(value, Cache)), None)


class ScaledBloomAttention(BloomAttention):
    """BLOOM's attention under `Alibi`."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        alibi: torch.Tensor | None = None,  # noqa: ARG002 (the stock bias, not used)
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """The stock forward with our bias; attention weights are not returned."""
        system = _system(self, kwargs)
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        key, value = _grown(self, _cache(kwargs), key, value)
        slopes = power_slopes(self.num_heads, query.device)
        output = system.run(
            self, query, key, value, attention_mask, slopes, self.inv_norm_factor, self.attention_dropout.p
        )
        return residual + F.dropout(self.dense(output), p=self.hidden_dropout, training=self.training), None


class ScaledMptAttention(MptAttention):
    """MPT's attention under `Alibi`."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None = None,  # noqa: ARG002 (the stock bias, not used)
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """The stock forward with our bias; attention weights are not returned."""
        system = _system(self, kwargs)
        fused = self.Wqkv(hidden_states)
        if self.clip_qkv:
            fused = fused.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        shape = (*hidden_states.shape[:2], self.n_heads, self.head_dim)
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in fused.chunk(3, dim=2))
        key, value = _grown(self, _cache(kwargs), key, value)
        if _MPT_MASK_HIDES and attention_mask is not None:
            attention_mask = ~attention_mask
        slopes = mpt_slopes(self.n_heads, query.device)
        output = system.run(self, query, key, value, attention_mask, slopes, self.softmax_scale, self.attn_dropout_p)
        return self.out_proj(output), None


class ScaledFalconAttention(FalconAttention):
    """Falcon's attention under `Alibi`."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        alibi: torch.Tensor | None = None,  # noqa: ARG002 (the stock bias, not used)
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """The stock forward with our bias; attention weights are not returned."""
        system = _system(self, kwargs)
        heads = (part.transpose(1, 2) for part in self._split_heads(self.query_key_value(hidden_states)))
        query, key, value = heads
        key, value = _grown(self, _cache(kwargs), key, value)
        slopes = power_slopes(self.num_heads, query.device).bfloat16().float() * self.inv_norm_factor
        output = system.run(
            self, query, key, value, attention_mask, slopes, self.inv_norm_factor, self.attention_dropout.p
        )
        return self.dense(output), None


def _system(module: nn.Module, given: dict[str, Any]) -> Alibi:
    """The system of a wired module.

    Raises:
        RuntimeError: a stock model that was given our attention's name.
        NotImplementedError: attention weights were asked for.
    """
    system: Alibi = system_of(module)
    if given.get("output_attentions"):
        raise NotImplementedError(f"{system.name} returns no attention weights")
    return system


_REPLACEMENTS = (
    (BloomAttention, ScaledBloomAttention),
    (MptAttention, ScaledMptAttention),
    (FalconAttention, ScaledFalconAttention),
)

register(Alibi)
FALCON_ATTENTION_CLASSES[Alibi.name] = ScaledFalconAttention  # Falcon looks its class up by the implementation's name


def __getattr__(name: str) -> Any:
    return build_class(name, Alibi, globals())
