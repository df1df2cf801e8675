"""Which modules of a model are what: found from its structure, for architectures that nobody listed here.

Attention is what transformers' own classes call so, or what the architecture table says holds the query projection;
experts are what lies beside stacked matrices; norms are leaves with vectors only; embeddings and head are what the
model names itself. What fits none of these is left alone, and named with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ctxforge.calibrate.adapters.recipe import ROLES, Role
from ctxforge.errors import UnsupportedError
from ctxforge.rope.architectures import ARCHITECTURES

_QUANTISED = ("weight_scale", "weight_scale_inv", "qweight", "quant_state", "SCB")


@dataclass(frozen=True)
class Roles:
    """The modules of a model's text part.

    Attributes:
        modules: their names by role, in the model's order. A tied head is its embedding, and not listed.
        left: modules with weights that have no role, and why.
    """

    modules: Mapping[Role, tuple[str, ...]]
    left: Mapping[str, str]


def find_roles(model: Any) -> Roles:
    """The roles of a causal language model of transformers, of its text part where it has others.

    Args:
        model: as loaded, before anything is added to it.

    Raises:
        UnsupportedError: quantised weights, or no embedding or no attention was found.
    """
    prefix, text = text_part(model)
    _refuse_quantised(model)
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise UnsupportedError(
            f"{type(model).__name__} names no input embedding (get_input_embeddings gives {type(embedding).__name__})",
            "calibrate a causal language model of transformers",
        )
    names = {module: name for name, module in model.named_modules()}
    attentions = _attentions(model, prefix, text)
    experts = _experts(text)
    lengths = _table_lengths(model)
    found: dict[Role, list[str]] = {role: [] for role in ROLES}
    left: dict[str, str] = {}
    for module in text.modules():
        name = names[module]
        if not list(module.parameters(recurse=False)):
            continue
        role, reason = _role(name, module, embedding, attentions, experts, names, lengths)
        if role is not None:
            found[role].append(name)
        elif reason:
            left[name] = reason
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear) and head.weight is not embedding.weight:
        found["head"].append(names[head])
        left.pop(names[head], None)
    if not found["attention"]:
        raise UnsupportedError(
            f"no attention projection was found in {type(model).__name__}: neither linear layers in a module whose "
            "class is called Attention, nor a query projection that the architecture table names",
            "calibrate another model; this one's structure is not understood",
        )
    return Roles({role: tuple(some) for role, some in found.items()}, left)


def text_part(model: Any) -> tuple[str, nn.Module]:
    """The decoder of a model, without towers for images or sound, and its name; "" for the model itself."""
    embedding = model.get_input_embeddings()
    names = {module: name for name, module in model.named_modules()}
    candidates = (
        model.get_decoder() if hasattr(model, "get_decoder") else None,
        getattr(model, getattr(model, "base_model_prefix", None) or "model", None),
    )
    for module in candidates:
        # Some models give a head or a wrapper's part for their decoder: the embedding tells it apart.
        if isinstance(module, nn.Module) and module in names and any(one is embedding for one in module.modules()):
            return names[module], module
    return "", model


def _attentions(model: Any, prefix: str, text: nn.Module) -> frozenset[str]:
    """Names of the outermost attention modules."""
    inside = f"{prefix}." if prefix else ""
    found = {inside + name for name, module in text.named_modules() if name and _is_attention(module)}
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    row = ARCHITECTURES.get(getattr(config, "model_type", ""))
    stem = row.query.names[0].removesuffix(".weight") if row is not None else None
    if stem is not None and "{" not in stem:
        for name, module in text.named_modules():
            if name.endswith(f".{stem}") and _is_projection(module):
                found.add((inside + name).rpartition(".")[0])
    return frozenset(name for name in found if not any(name.startswith(f"{other}.") for other in found))


def _is_attention(module: nn.Module) -> bool:
    _, called, rest = type(module).__name__.rpartition("Attention")
    return bool(called) and not any(whole in rest for whole in ("Layer", "Block", "Model", "For"))


def _experts(text: nn.Module) -> frozenset[nn.Module]:
    """Blocks of experts: with stacked matrices, or lists of like modules behind a router, and what is beside them."""
    blocks: set[nn.Module] = set()
    for parent in text.modules():
        for child in parent.children():
            stacked = not isinstance(child, nn.modules.conv._ConvNd) and any(
                one.dim() == 3 for one in child.parameters(recurse=False)
            )
            layer = any(_is_attention(other) for other in parent.modules())
            listed = isinstance(child, nn.ModuleList) and "moe" in type(parent).__name__.lower() and not layer
            if stacked or listed or "Expert" in type(child).__name__:
                blocks.update([child] if layer else [parent])
    return frozenset(inner for block in blocks for inner in block.modules())


def _role(
    name: str,
    module: nn.Module,
    embedding: nn.Module,
    attentions: frozenset[str],
    experts: frozenset[nn.Module],
    names: Mapping[nn.Module, str],
    lengths: frozenset[int],
) -> tuple[Role | None, str]:
    """The role of one module that has parameters of its own; or none, and why it is left alone."""
    if module is embedding:
        return "embedding", ""
    if isinstance(module, nn.Embedding):
        return (
            ("positions", "") if module.num_embeddings in lengths else (None, "a table of neither tokens nor positions")
        )
    if _is_norm(module):
        return "norm", ""
    if module in experts:
        return None, "experts of a mixture, and what routes to them: their weights are stacked or seldom chosen"
    attends = any(name.startswith(f"{one}.") or name == one for one in attentions)
    if _is_projection(module):
        if attends and not any("Indexer" in type(outer).__name__ for outer in _around(name, names)):
            return "attention", ""
        if attends:
            return None, "it chooses tokens, which has no gradient"
        if _mixes(name, names):
            return None, "part of a layer that mixes tokens without attention"
        return ("mlp", "") if _feeds_forward(name, module, names) else (None, "neither attention nor feed-forward")
    matrices = any(one.dim() >= 2 for one in module.parameters(recurse=False))
    return None, f"{type(module).__name__} is not a plain linear layer" if matrices else "single vectors"


def _around(name: str, names: Mapping[nn.Module, str]) -> Iterator[nn.Module]:
    """The modules that a module lies in."""
    for other, other_name in names.items():
        if other_name and name.startswith(f"{other_name}."):
            yield other


def _feeds_forward(name: str, module: Any, names: Mapping[nn.Module, str]) -> bool:
    """Whether a projection lies in a feed-forward block: by its class, or as one of two, there and back again."""
    if any(sign in type(outer).__name__.lower() for outer in _around(name, names) for sign in ("mlp", "feedforward")):
        return True
    parent = name.rpartition(".")[0]
    mine = _sides(module)
    beside = [
        _sides(other)
        for other, other_name in names.items()
        if other_name.rpartition(".")[0] == parent and _is_projection(other)
    ]
    return mine[0] != mine[1] and mine[::-1] in beside and any(part.isdigit() for part in parent.split("."))


def _sides(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    rows, columns = module.weight.shape
    return (rows, columns) if is_transposed(module) else (columns, rows)


def _table_lengths(model: Any) -> frozenset[int]:
    """How many rows a table of learned positions may have: what the config says, and up to four more before it."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    keys = ("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions", "max_seq_len")
    stated = [getattr(config, key, None) for key in keys]
    return frozenset(one + more for one in stated if isinstance(one, int) for more in range(5))


def _mixes(name: str, names: Mapping[nn.Module, str]) -> bool:
    """Whether the block of a projection has a convolution or a state space beside it."""
    parent = name.rpartition(".")[0]
    for other, other_name in names.items():
        if other_name.rpartition(".")[0] == parent and isinstance(other, nn.modules.conv._ConvNd):
            return True
        if other_name == parent and any(
            own.startswith(("A_log", "dt_")) for own, _ in other.named_parameters(recurse=False)
        ):
            return True
    return False


def _is_norm(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    called = isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)) or "Norm" in type(module).__name__
    return called and not list(module.children()) and all(one.dim() <= 2 for one in own)


def _is_projection(module: nn.Module) -> bool:
    """Linear layers whose weight and bias alone say what they compute; of a subclass it is tried out."""
    if type(module) is nn.Linear or is_transposed(module):
        return True
    if not isinstance(module, nn.Linear) or module.weight.is_meta or list(module.children()):
        return False
    trial = torch.linspace(-1, 1, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    with torch.no_grad():
        try:
            found = module(trial[None])
        except (RuntimeError, TypeError, ValueError):
            return False
        expected = nn.functional.linear(trial[None], module.weight, module.bias)
    same_kind = isinstance(found, torch.Tensor) and found.shape == expected.shape
    return same_kind and torch.allclose(found, expected, rtol=2e-2 if found.itemsize < 4 else 1e-4)


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer stores [inputs, outputs], as GPT-2's does."""
    from transformers.pytorch_utils import Conv1D

    return type(module) is Conv1D


def _refuse_quantised(model: Any) -> None:
    def signs() -> Iterator[str]:
        if getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None):
            yield "its config says so"
        for name, parameter in model.named_parameters():
            if not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2:
                yield f"{name} has dtype {str(parameter.dtype).removeprefix('torch.')}"
        for name, _ in (*model.named_buffers(), *model.named_parameters()):
            if name.rpartition(".")[2] in _QUANTISED:
                yield f"it has {name}"

    for sign in signs():
        raise UnsupportedError(
            f"the model is quantised ({sign}): an adapter trained on it does not fit weights it can be merged into",
            "calibrate the unquantised checkpoint, then quantise the result",
        )


__all__ = ["Roles", "find_roles", "is_transposed", "text_part"]
