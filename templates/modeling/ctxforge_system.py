"""What an attention system is: how it takes a model's rotation over, and how it answers a call.

The model's classes, and the functions that transformers calls, are in ctxforge_runtime. Shapes as in
ctxforge_attention.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import sdpa_mask
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .ctxforge_attention import Call
from .ctxforge_caches import claim, refuse_static, remember_positions
from .ctxforge_identity import identity_rotation

POSITIONS = "ctxforge_positions"
SYSTEM = "ctxforge_system"
FOREIGN = "this checkpoint's attention runs inside its own model class only: load it with trust_remote_code=True"
NO_WEIGHTS = "{} returns no attention weights: load the checkpoint it was made from with attn_implementation='eager'"


class System:
    """An attention system: what stands in config.json under `ctxforge`, and how a call is answered.

    A subclass gives `name` (the attention implementation's) and `attend`; `needs_mask` when a call without an explicit
    mask is of no use to it.
    """

    name: str
    needs_mask = False

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        self.settings = settings
        self.parameters: dict[str, Any] = settings.get("parameters", {})
        self.layers = layers
        self.owner = json.dumps(settings, sort_keys=True)

    def wire(self, model: nn.Module) -> None:
        """Attach this system to the modules of a freshly built model."""
        raise NotImplementedError

    def attend(self, module: nn.Module, call: Call) -> torch.Tensor:
        """Attention's output [B, H, T, Dv]."""
        raise NotImplementedError

    def remember(self, cache: Cache, layer: int, positions: torch.Tensor) -> torch.Tensor:
        """Positions of all keys of `layer` once this call's [B, T] are added, [B, past + T]."""
        return remember_positions(cache, layer, positions, self.layers, self.name)

    @torch.compiler.disable
    def answer(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """What the registered attention function gives for a module of ours, [B, T, H, Dv], and None.

        Geometry depends on the data, so a compiled model runs this as it stands: a break in its graph.

        Raises:
            RuntimeError: an architecture that does not pass its layers' arguments on.
            NotImplementedError: attention weights, or attention to later tokens, were asked for.
        """
        if POSITIONS not in kwargs:
            raise RuntimeError(f"{type(module).__name__} does not pass its arguments on: {self.name} cannot serve it")
        if kwargs.get("output_attentions"):
            raise NotImplementedError(NO_WEIGHTS.format(self.name))
        if kwargs.get("is_causal") is False:
            raise NotImplementedError(f"{self.name} is causal: leave is_causal=False out")
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            attention_mask = attention_mask >= 0  # a 4D mask that the caller made: 0 where visible
        query_positions, key_positions, cache = kwargs[POSITIONS]
        call = Call(
            query=query,
            key=key,
            value=value,
            query_positions=query_positions,
            key_positions=key_positions[:, -key.shape[2] :],  # a windowed layer keeps the newest keys
            mask=attention_mask if attention_mask is None else self.fit_mask(attention_mask, key.shape[2]),
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            dropout=dropout,
            softcap=kwargs.get("softcap"),
            sinks=kwargs.get("s_aux"),
            cache=cache,
        )
        return self.attend(module, call).transpose(1, 2).contiguous(), None

    @staticmethod
    def make_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
        """The mask of a call, as transformers' `sdpa_mask` makes it."""
        return sdpa_mask(*args, **kwargs)

    @staticmethod
    def fit_mask(mask: torch.Tensor, keys: int) -> torch.Tensor:
        """A mask [..., S'] for this many keys."""
        return mask[..., :keys]


class RotarySystem(System):
    """A system on a model with RoPE: takes over the rotation of every layer that has one."""

    def __init__(self, settings: dict[str, Any], layers: int) -> None:
        super().__init__(settings, layers)
        self.interleaved = settings["layout"] == "interleaved"
        self.unrotated = frozenset(settings.get("unrotated_layers", ()))

    def wire(self, model: nn.Module) -> None:
        """Make the rotary module hand out the identity, and let each attention module know this system."""
        rotary = [module for name, module in model.named_modules() if name.split(".")[-1] == "rotary_emb"]
        attentions = [module for module in model.modules() if _is_attention(module)]
        if len(rotary) != 1 or not attentions:
            raise RuntimeError(
                f"{type(model).__name__} has {len(rotary)} rotary modules and {len(attentions)} attention modules:"
                f" {self.name} cannot serve it"
            )
        rotary[0].register_forward_hook(hand_out_identity)
        for attention in attentions:
            object.__setattr__(attention, SYSTEM, self)
            object.__setattr__(attention, "ctxforge_rotary", rotary[0])
            attention.register_forward_pre_hook(bring_positions, with_kwargs=True)

    def rotates(self, module: nn.Module) -> bool:
        """False for layers without RoPE."""
        return module.layer_idx not in self.unrotated

    def frequencies(self, module: nn.Module, device: torch.device) -> tuple[torch.Tensor, float]:
        """The stock table: radians per token [d/2] in float32 on `device`, and the factor on cos and sin."""
        rotary = module.ctxforge_rotary
        table, temperature = rotary.inv_freq, float(rotary.attention_scaling)
        if table.dtype != torch.float32:  # a model cast as a whole carries its table along; the config still knows it
            table, temperature = _compute_table(rotary, table.device)
        return table.to(device), temperature


def hand_out_identity(_rotary: nn.Module, _args: Any, output: Any) -> Any:
    """Forward hook of a rotary module: cos 1, sin 0, whatever it computed."""
    return identity_rotation(output[0])


def bring_positions(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of an attention module: hand the positions of queries and keys, and the cache, on to attention.

    Raises:
        RuntimeError: the attention implementation was changed behind our back, no positions arrive, or another
            system's cache.
        NotImplementedError: a cache that is not dynamic, or positions in several axes.
    """
    system = getattr(module, SYSTEM)
    refuse_replaced(module.config._attn_implementation, system.name)
    positions = kwargs.get("position_ids")
    hidden = args[0] if args else kwargs["hidden_states"]
    if positions is None:
        raise RuntimeError(f"{type(module).__name__} gets no position_ids: {system.name} cannot serve it")
    if positions.ndim != 2:
        raise NotImplementedError(f"{system.name} serves text positions [rows, tokens] only")
    positions = positions.expand(hidden.shape[0], -1)
    cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
    keys = positions
    if cache is not None:
        refuse_static(cache, module.layer_idx, system.name)
        claim(cache, module.layer_idx, system.owner, system.name)
        keys = system.remember(cache, module.layer_idx, positions)
    return args, {**kwargs, POSITIONS: (positions, keys, cache)}


def system_of(module: nn.Module) -> Any:
    """The system that an attention module was wired with.

    Raises:
        RuntimeError: none: a stock model that was given our attention's name.
    """
    system = getattr(module, SYSTEM, None)
    if system is None:
        raise RuntimeError(FOREIGN)
    return system


def refuse_replaced(found: Any, ours: str) -> None:
    """Raise RuntimeError for an attention implementation that is not ours."""
    if found != ours:
        raise RuntimeError(
            f"attn_implementation={found!r} would replace this checkpoint's attention and compute something else:"
            f" leave it out, or give {ours!r}"
        )


def _is_attention(module: nn.Module) -> bool:
    return isinstance(getattr(module, "layer_idx", None), int) and "Attention" in type(module).__name__


def _compute_table(rotary: nn.Module, device: torch.device) -> tuple[torch.Tensor, float]:
    """The table that a stock rotary module computes from its config, in float32."""
    if rotary.rope_type != "default":
        initialise = ROPE_INIT_FUNCTIONS[rotary.rope_type]
    else:
        initialise = getattr(rotary, "compute_default_rope_parameters", None) or rotary.rope_init_fn
    table, temperature = initialise(rotary.config, device=device)
    return table.to(device, torch.float32), float(temperature)
