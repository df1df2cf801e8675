"""Make a loaded model trainable as a recipe says, and know where each trained number goes in the checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ctxforge.calibrate.adapters.digest import weights_digest
from ctxforge.calibrate.adapters.files import Entry
from ctxforge.calibrate.adapters.masters import make_trainable
from ctxforge.calibrate.adapters.places import Places, find_places, prove_place
from ctxforge.calibrate.adapters.recipe import ROLES, AdapterRecipe, Role
from ctxforge.calibrate.adapters.roles import Roles, find_roles, is_transposed, text_part
from ctxforge.checkpoint import Checkpoint
from ctxforge.errors import InternalError, UnsupportedError, UsageError

ADAPTER_NAME = "default"


@dataclass(frozen=True)
class LowRank:
    """A projection's low-rank change: entry, and its two float32 parameters A [r, inputs] and B [outputs, r]."""

    entry: Entry
    inner: nn.Parameter
    outer: nn.Parameter


@dataclass(frozen=True)
class Whole:
    """A tensor trained whole: entry, and its float32 parameter."""

    entry: Entry
    parameter: nn.Parameter


@dataclass(frozen=True)
class Trained:
    """A model made trainable.

    Attributes:
        recipe: what was asked for.
        source, digest: the base's name, and the digest of its weights.
        low_rank, whole: what is trained.
        left: modules with weights that no role covers, and why.
    """

    recipe: AdapterRecipe
    source: str
    digest: str
    low_rank: tuple[LowRank, ...]
    whole: tuple[Whole, ...]
    left: Mapping[str, str]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What is trained, as the adapter's file names it."""
        return (*(one.entry for one in self.low_rank), *(one.entry for one in self.whole))

    def tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trained parameter under its name in the adapter's file."""
        for low in self.low_rank:
            yield f"{low.entry.parameter}.lora_A", low.inner
            yield f"{low.entry.parameter}.lora_B", low.outer
        for whole in self.whole:
            yield whole.entry.parameter, whole.parameter

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters by what they want from an optimiser: "low_rank", and each role trained whole."""
        found: dict[str, list[nn.Parameter]] = {}
        for low in self.low_rank:
            found.setdefault("low_rank", []).extend((low.inner, low.outer))
        for whole in self.whole:
            found.setdefault(whole.entry.role, []).append(whole.parameter)
        return found

    @property
    def count(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for _, parameter in self.tensors())


def attach(
    model: Any, checkpoint: Checkpoint, recipe: AdapterRecipe, *, seed: int = 0, digest: str | None = None
) -> Trained:
    """Freeze a model and make trainable what a recipe says, in place.

    Low-rank changes are peft's LoRA layers inside the model's own modules, so its class and methods stay; A and B are
    float32 whatever the model's dtype, and B starts at 0. Tensors trained whole get float32 masters (see `masters`).
    A tied embedding is one parameter, read by both ends.

    Args:
        model: a causal LM of transformers as loaded from `checkpoint`, in the checkpoint's dtype or in float32.
        checkpoint: that folder, local safetensors (see `ctxforge.checkpoint.fetch`).
        recipe: what to train.
        seed: of A's initial values; the global random state stays as it is.
        digest: `weights_digest(checkpoint)` where it is known already.

    Raises:
        UsageError: the model is being trained already, or has none of the modules that a role asks for.
        UnsupportedError: quantised weights, a structure that isn't understood, or a weight that the checkpoint holds
            in another arrangement.
        CheckpointError: the model's numbers aren't the checkpoint's.
    """
    recipe = recipe.checked()
    if any("lora_" in name or ".parametrizations." in name for name, _ in model.named_parameters()):
        raise UsageError("the model has an adapter already", "load it anew")
    roles = find_roles(model)
    places = find_places(model, checkpoint)
    model.requires_grad_(False)
    whole_entries = _whole_entries(model, recipe, roles, places)
    low_entries = () if recipe.kind == "full" else _low_entries(model, recipe, roles, places)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for entry in (*low_entries, *whole_entries):
        for tensor in entry.tensors:
            prove_place(parameters[entry.parameter], entry.parameter, checkpoint, tensor)
    whole = tuple(Whole(entry, make_trainable(model, parameters[entry.parameter])) for entry in whole_entries)
    low_rank = _inject(model, recipe, low_entries, seed) if low_entries else ()
    # peft freezes what it doesn't know.
    for one in whole:
        one.parameter.requires_grad_(True)
    return Trained(recipe, checkpoint.source, digest or weights_digest(checkpoint), low_rank, whole, roles.left)


def _low_entries(model: Any, recipe: AdapterRecipe, roles: Roles, places: Places) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    owners: dict[str, str] = {}
    for role in recipe.low_rank:
        names = roles.modules[role]
        if not names:
            raise _nothing(model, role, roles)
        for name in names:
            module = model.get_submodule(name)
            parameter = f"{name}.weight"
            for tensor in places.of(parameter):
                if owners.setdefault(tensor, name) != name:
                    raise UnsupportedError(
                        f"{owners[tensor]} and {name} share one weight, and would get a low-rank change each",
                        f"train {role} whole, or calibrate another model",
                    )
            entries.append(
                Entry(
                    parameter=parameter,
                    role=role,
                    tensors=places.of(parameter),
                    shape=tuple(module.weight.shape),
                    kind="low-rank",
                    scale=recipe.scale,
                    transposed=is_transposed(module),
                )
            )
    return tuple(entries)


def _whole_entries(model: Any, recipe: AdapterRecipe, roles: Roles, places: Places) -> tuple[Entry, ...]:
    """Tensors trained whole, each once: a tied one under the first of its names."""
    named: dict[str, str] = {}
    full = recipe.kind == "full"
    for role in ROLES if full else recipe.whole:
        names = roles.modules[role]
        tied_head = role == "head" and not names
        # Some architectures have norms without weights: there is nothing to train in them.
        if not names and not full and not tied_head and role != "norm":
            raise _nothing(model, role, roles)
        if tied_head:
            embedding = model.get_input_embeddings()
            names = tuple(name for name, module in model.named_modules() if module is embedding)
        for name in names:
            for own, _ in model.get_submodule(name).named_parameters(recurse=False):
                named.setdefault(f"{name}.{own}", "embedding" if tied_head else role)
    if full:
        prefix, text = text_part(model)
        for name, _ in text.named_parameters():
            named.setdefault(f"{prefix}.{name}" if prefix else name, "other")
    first: dict[int, str] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in named:
        first.setdefault(id(parameters[name]), name)
    return tuple(
        Entry(name, named[name], places.of(name), tuple(parameters[name].shape), "whole") for name in first.values()
    )


def _nothing(model: Any, role: Role, roles: Roles) -> UsageError | UnsupportedError:
    kind = type(model).__name__
    if role == "mlp" and any("experts" in reason for reason in roles.left.values()):
        return UnsupportedError(
            f"the feed-forward part of {kind} is a mixture of experts, whose weights are stacked in memory and "
            "spread over the checkpoint",
            "train attention only: that is what a longer context needs",
        )
    found = ", ".join(one for one in ROLES if roles.modules[one])
    return UsageError(f"{kind} has no module of the role {role}", f"it has {found}; choose among them")


def _inject(model: Any, recipe: AdapterRecipe, entries: tuple[Entry, ...], seed: int) -> tuple[LowRank, ...]:
    """Put peft's layers in the place of the projections, and find their parameters."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    # In a wrapper without a config peft takes the names as they are. With one, it takes a gate_proj of attention for
    # part of fused experts, and refuses.
    wrapper = nn.Module()
    wrapper.add_module("model", model)
    targets = [f"model.{entry.parameter.removesuffix('.weight')}" for entry in entries]
    config = LoraConfig(
        r=recipe.rank,
        # peft takes alpha as it is and divides by itself; a float is fine for it.
        lora_alpha=recipe.alpha,  # type: ignore[arg-type,unused-ignore]
        lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora,
        target_modules=targets,
        fan_in_fan_out=any(entry.transposed for entry in entries),
        bias="none",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        inject_adapter_in_model(config, wrapper, adapter_name=ADAPTER_NAME)
    layers = {name: module for name, module in wrapper.named_modules() if isinstance(module, LoraLayer)}
    if set(layers) != set(targets):
        odd = sorted(set(layers) ^ set(targets))[0]
        raise InternalError(f"peft changed other modules than those it was given ({odd}).", "Please report this.")
    found = []
    for entry in entries:
        layer = layers[f"model.{entry.parameter.removesuffix('.weight')}"]
        if abs(layer.scaling[ADAPTER_NAME] - entry.scale) > 1e-12 * abs(entry.scale):
            raise InternalError(
                f"peft scales {entry.parameter} by {layer.scaling[ADAPTER_NAME]}.", "Please report this."
            )
        pair = [part[ADAPTER_NAME] for part in (layer.lora_A, layer.lora_B)]
        for part in pair:
            part.to(torch.float32)
            part.weight.requires_grad_(True)
        found.append(LowRank(entry, pair[0].weight, pair[1].weight))
    return tuple(found)
