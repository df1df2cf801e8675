"""Deferred rotation: the part that every attention system shares.

The rotary module of a stock model hands out the identity (cos 1, sin 0), so query and key reach the attention function
unrotated and the cache holds unrotated keys. The attention function, registered under this checkpoint's own name, then
rotates them with the positions and the tables that its system wants. Positions of cached keys stand in the cache
itself, as one more layer, so that reordering, cropping and repeating move them together with the keys.

What this cannot serve it refuses: other caches than dynamic ones, an attention implementation that would replace ours
(a serving engine's, `sdpa`, `eager`), and a stock model that was given our attention's name.

Depends on torch and transformers alone (5.12 and later; runs on 4.57 too). Shapes
as in ctxforge_attention.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import AttentionInterface, PreTrainedModel

from .ctxforge_attention import Call

try:  # transformers 5: names and shapes of stored weights that differ from the module's
    from transformers import conversion_mapping
except ImportError:
    conversion_mapping = None

PREFIX = "ctxforge_"
CLASS_PREFIX = "Ctxforge"
POSITIONS = "ctxforge_positions"
SYSTEM = "ctxforge_system"
_FOREIGN = "this checkpoint's attention runs inside its own model class only: load it with trust_remote_code=True"
_CLASS_NAME = re.compile(rf"{CLASS_PREFIX}(\w+?(?:ForCausalLM|Model|Config))")


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

    def wire(self, model: nn.Module) -> None:
        """Attach this system to the modules of a freshly built model."""
        raise NotImplementedError

    def attend(self, module: nn.Module, call: Call) -> torch.Tensor:
        """Attention's output [B, H, T, Dv]."""
        raise NotImplementedError

    def remember(self, cache: Cache, layer: int, positions: torch.Tensor) -> torch.Tensor:
        """Positions of all keys of `layer` once this call's [B, T] are added, [B, past + T]; see `_remember`."""
        return _remember(cache, layer, positions, self)

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
    cos, sin = output
    return torch.ones_like(cos), torch.zeros_like(sin)


def refuse_changed(model: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the model: its attention is still ours, and nothing is asked that it cannot give.

    Raises:
        RuntimeError: the attention implementation was changed behind our back.
        NotImplementedError: attention weights were asked for.
    """
    name = model.config.ctxforge["attention"]
    _refuse_replaced(model.config._attn_implementation, name)
    if kwargs.get("output_attentions"):
        raise NotImplementedError(f"{name} returns no attention weights")


def bring_positions(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of an attention module: hand the positions of queries and keys, and the cache, on to attention.

    Raises:
        RuntimeError: the attention implementation was changed behind our back, or no positions arrive.
        NotImplementedError: a cache that is not dynamic, or positions in several axes.
    """
    system = getattr(module, SYSTEM)
    _refuse_replaced(module.config._attn_implementation, system.name)
    positions = kwargs.get("position_ids")
    hidden = args[0] if args else kwargs["hidden_states"]
    if positions is None:
        raise RuntimeError(f"{type(module).__name__} gets no position_ids: {system.name} cannot serve it")
    if positions.ndim != 2:
        raise NotImplementedError(f"{system.name} serves text positions [rows, tokens] only")
    positions = positions.expand(hidden.shape[0], -1)
    caches = [value for value in (*args, *kwargs.values()) if isinstance(value, Cache)]
    keys = system.remember(caches[0], module.layer_idx, positions) if caches else positions
    return args, {**kwargs, POSITIONS: (positions, keys, caches[0] if caches else None)}


def _remember(cache: Cache, layer: int, positions: torch.Tensor, system: System) -> torch.Tensor:
    """Positions of all keys of `layer` once this call's are added, [B, past + T].

    They are kept as the keys of one more cache layer, past the model's own.
    """
    refuse_static(cache, layer, system.name)
    index = system.layers
    while len(cache.layers) < index:
        cache.layers.append(DynamicLayer())
    if len(cache.layers) == index:
        cache.layers.append(DynamicLayer())
    holder = cache.layers[index]
    past, held, new = cache.get_seq_length(layer), holder.get_seq_length(), positions.shape[1]
    if held == past:
        held_positions = positions[:, None, :, None]
        holder.update(held_positions, held_positions)
    elif held != past + new:
        raise RuntimeError(
            f"the cache holds {past} keys in layer {layer} but {held} positions: {system.name} needs a cache that this"
            " model filled itself"
        )
    return holder.keys[:, 0, :, 0]


def refuse_static(cache: Cache, layer: int, name: str) -> None:
    """Raise NotImplementedError for a cache whose layer does not simply grow."""
    if layer < len(cache.layers) and not isinstance(cache.layers[layer], DynamicLayer):
        raise NotImplementedError(
            f"{name} runs with a dynamic cache only, not with {type(cache.layers[layer]).__name__}"
        )


def system_of(module: nn.Module) -> Any:
    """The system that an attention module was wired with.

    Raises:
        RuntimeError: none: a stock model that was given our attention's name.
    """
    system = getattr(module, SYSTEM, None)
    if system is None:
        raise RuntimeError(_FOREIGN)
    return system


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The registered attention function: answers for the system that the module was wired with.

    Raises:
        RuntimeError: the module belongs to a stock model, which must not run under our name.
        NotImplementedError: attention weights, or attention to later tokens, were asked for.
    """
    system = system_of(module)
    if POSITIONS not in kwargs:
        raise RuntimeError(f"{type(module).__name__} does not pass its arguments on: {system.name} cannot serve it")
    if kwargs.get("output_attentions"):
        raise NotImplementedError(f"{system.name} returns no attention weights")
    if kwargs.get("is_causal") is False:
        raise NotImplementedError(f"{system.name} is causal")
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask >= 0  # a 4D mask that the caller made: 0 where visible
    query_positions, key_positions, cache = kwargs[POSITIONS]
    call = Call(
        query=query,
        key=key,
        value=value,
        query_positions=query_positions,
        key_positions=key_positions[:, -key.shape[2] :],  # a windowed layer keeps the newest keys
        mask=attention_mask if attention_mask is None else system.fit_mask(attention_mask, key.shape[2]),
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
        cache=cache,
    )
    return system.attend(module, call).transpose(1, 2).contiguous(), None


def register(system: type[System]) -> None:
    """Make transformers know the system's attention and mask functions under its name."""

    def mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
        """A bool mask [B, 1, T, S], or None when it would be plainly causal and the system can do without."""
        config = kwargs.get("config")
        if config is not None and not getattr(type(config), "ctxforge_served", False):
            raise RuntimeError(_FOREIGN)
        if system.needs_mask:
            kwargs["allow_is_causal_skip"] = False
        return system.make_mask(*args, **kwargs)

    AttentionInterface.register(system.name, attention)
    AttentionMaskInterface.register(system.name, mask)


class ServedConfig:
    """Mixed into the stock config: on disk the model type is ours, so that no stock class loads the checkpoint."""

    ctxforge_served = True

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """The stock type's dictionary."""
        found, unused = super().get_config_dict(*args, **kwargs)
        if found.get("model_type") == PREFIX + cls.model_type:
            found = {**found, "model_type": cls.model_type}
        return found, unused

    def to_dict(self) -> dict[str, Any]:
        """As it stands in config.json."""
        return self._on_disk(super().to_dict())

    def to_diff_dict(self) -> dict[str, Any]:
        """As it stands in config.json, defaults left out."""
        return self._on_disk(super().to_diff_dict())

    def _on_disk(self, found: dict[str, Any]) -> dict[str, Any]:
        settings = getattr(self, "ctxforge", None)
        if settings is not None:
            found["model_type"] = PREFIX + type(self).model_type
            found["attn_implementation"] = settings["attention"]
        return found


class ServedModel:
    """Mixed into the stock model: refuses a foreign attention implementation and wires the system."""

    ctxforge_system_class: Any = None

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        system = self.ctxforge_system_class
        settings = getattr(config, "ctxforge", None)
        if not isinstance(settings, dict) or settings.get("attention") != system.name:
            raise RuntimeError(f"config.json holds no `ctxforge` entry for {system.name}")
        if config._attn_implementation is None:
            config._attn_implementation = system.name
        _refuse_replaced(config._attn_implementation, system.name)
        super().__init__(config, *args, **kwargs)
        system(settings, config.num_hidden_layers).wire(self)
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.register_forward_pre_hook(refuse_changed, with_kwargs=True)

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse any other than ours."""
        _refuse_replaced(attn_implementation, self.ctxforge_system_class.name)
        super().set_attn_implementation(attn_implementation, *args, **kwargs)


def build_class(name: str, system: type[System], module: dict[str, Any]) -> type:
    """The class called `name` for a modeling file: the stock class of that name, served by `system`.

    Called by the file's module-level `__getattr__`: `CtxforgeLlamaForCausalLM` derives from `LlamaForCausalLM`,
    `CtxforgeLlamaConfig` from `LlamaConfig`. The class is kept in the module, where pickle finds it again.

    Args:
        name: as in config.json's `auto_map`.
        system: of the file.
        module: the file's globals().

    Raises:
        AttributeError: no such name.
    """
    matched = _CLASS_NAME.fullmatch(name)
    stock = getattr(transformers, matched[1], None) if matched else None
    if stock is None:
        raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
    body: dict[str, Any] = {"__module__": module["__name__"], "__qualname__": name, "__doc__": stock.__doc__}
    if name.endswith("Config"):
        built = type(name, (ServedConfig, stock), body)
    else:
        config_name = CLASS_PREFIX + stock.config_class.__name__
        config = module.get(config_name) or build_class(config_name, system, module)
        body |= {"config_class": config, "ctxforge_system_class": system}
        built = type(name, (ServedModel, stock), body)
        _share_conversions(name, stock)
    module[name] = built
    return built


def _share_conversions(name: str, stock: type) -> None:
    """Let our class read and write the stock checkpoint's weights: transformers gives remote classes no conversion."""
    if conversion_mapping is None:
        return
    for known in (stock.__name__, stock.config_class.model_type):
        conversions = conversion_mapping.get_checkpoint_conversion_mapping(known)
        if conversions is not None:
            conversion_mapping.register_checkpoint_conversion_mapping(name, conversions, overwrite=True)
            return


def _refuse_replaced(found: Any, ours: str) -> None:
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
