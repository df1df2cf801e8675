"""Deferred rotation: the part that every attention system shares. A modeling file imports what it needs from here.

The rotary module of a stock model hands out the identity (cos 1, sin 0), so query and key reach the attention function
unrotated and the cache holds unrotated keys. The attention function, registered under this checkpoint's own name, then
rotates them with the positions and the tables that its system wants. Positions of cached keys stand in the cache
(ctxforge_caches).

What this cannot serve it refuses: other caches than dynamic ones, an attention implementation that would replace ours
(a serving engine's, `sdpa`, `eager`), and a stock model that was given our attention's name. The registered functions
hand every call on to the system that the module was wired with, so that checkpoints that carry different versions of
this code, or different systems, can be loaded side by side.

What a system is stands in ctxforge_system; here, the classes that carry one, and the functions that transformers calls.
Depends on torch and transformers alone (5.12 and later; runs on 4.57 too). Shapes as in ctxforge_attention.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface, PreTrainedModel

from .ctxforge_caches import refuse_cache
from .ctxforge_system import FOREIGN, NO_WEIGHTS, SYSTEM, RotarySystem, System, refuse_replaced, system_of

try:  # transformers 5: names and shapes of stored weights that differ from the module's
    from transformers import conversion_mapping
except ImportError:
    conversion_mapping = None

__all__ = ["SYSTEM", "RotarySystem", "System", "build_class", "register", "system_of"]

PREFIX = "ctxforge_"
CLASS_PREFIX = "Ctxforge"
_CLASS_NAME = re.compile(rf"{CLASS_PREFIX}(\w+?(?:ForCausalLM|Model|Config))")


def refuse_changed(model: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the model: its attention is still ours, and nothing is asked that it cannot give.

    Raises:
        RuntimeError: the attention implementation was changed behind our back.
        NotImplementedError: attention weights, or a cache that cannot serve.
    """
    name = model.config.ctxforge["attention"]
    refuse_replaced(model.config._attn_implementation, name)
    if kwargs.get("output_attentions"):
        raise NotImplementedError(NO_WEIGHTS.format(name))
    refuse_cache(kwargs, name)


def attention(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """The registered attention function: answered by the system that the module was wired with; see `System.answer`."""
    return system_of(module).answer(module, *args, **kwargs)


def register(system: type[System]) -> None:
    """Make transformers know the system's attention and mask functions under its name."""

    def mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
        """A bool mask [B, 1, T, S], or None when it would be plainly causal and the system can do without."""
        config = kwargs.get("config")
        asked = system if config is None else getattr(type(config), "ctxforge_system_class", None)
        if asked is None:
            raise RuntimeError(FOREIGN)
        if asked.needs_mask:
            kwargs["allow_is_causal_skip"] = False
        return asked.make_mask(*args, **kwargs)

    AttentionInterface.register(system.name, attention)
    AttentionMaskInterface.register(system.name, mask)


class ServedConfig:
    """Mixed into the stock config: on disk the model type is ours, so that no stock class loads the checkpoint."""

    ctxforge_system_class: Any = None

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """The stock type's dictionary."""
        found, unused = super().get_config_dict(*args, **kwargs)
        if found.get("model_type") == PREFIX + cls.model_type:
            found = {**found, "model_type": cls.model_type}
        return found, unused

    @property
    def output_attentions(self) -> bool:
        """Never true: see the setter."""
        return False

    @output_attentions.setter
    def output_attentions(self, value: bool) -> None:
        if value:
            raise NotImplementedError(NO_WEIGHTS.format(self.ctxforge["attention"]))

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
        refuse_replaced(config._attn_implementation, system.name)
        super().__init__(config, *args, **kwargs)
        system(settings, config.num_hidden_layers).wire(self)
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.register_forward_pre_hook(refuse_changed, with_kwargs=True)

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse any other than ours."""
        refuse_replaced(attn_implementation, self.ctxforge_system_class.name)
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
    body["ctxforge_system_class"] = system
    if name.endswith("Config"):
        built = type(name, (ServedConfig, stock), body)
    else:
        config_name = CLASS_PREFIX + stock.config_class.__name__
        config = module.get(config_name) or build_class(config_name, system, module)
        body["config_class"] = config
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
