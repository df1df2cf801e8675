"""MLPs over a few tokens at a time: their inner tensors, the widest of a layer, never exist for the whole sequence.

An MLP sees each token alone, so it may be run on tiles of the sequence, forward and backward; only its input is kept,
and each tile is computed again in the backward (ALST, arXiv 2506.13996). Under layer checkpointing that costs nothing
where nothing after the MLP keeps a tensor: a layer's second run ends where its last kept tensor is known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ctxforge.calibrate.memory.layers import decoder_layers
from ctxforge.errors import UnsupportedError, UsageError

_PROBE_TOKENS = 6
_AGREEMENT = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
_EXPERTS = ("expert", "router")


def position_wise_mlps(model: Any) -> list[torch.nn.Module]:
    """The MLPs of a model's layers: modules with several matrices that take one tensor and see each token alone.

    What they see is found by running them (on the meta device they are taken by their look). Mixtures of experts are
    left out: they see tokens alone too, but their routers' statistics are of whole batches.

    Args:
        model: a causal LM of transformers, before it is sharded.
    """
    return [
        part
        for layer in dict.fromkeys(decoder_layers(model))
        for part in layer.children()
        if _looks_like_mlp(part) and (_without_values(part) or _sees_tokens_alone(part))
    ]


def _without_values(part: torch.nn.Module) -> bool:
    """Whether a module is on the meta device, where it can be looked at but not tried."""
    return any(p.is_meta for p in part.parameters())


def default_tile(hidden_size: int) -> int:
    """Tokens in a tile: as many as the model has channels, as ALST chooses, but at least 256."""
    return max(256, hidden_size)


class TiledMLPs:
    """Runs MLPs on tiles until `remove` is called; also a context manager.

    With dropout inside an MLP the masks are drawn tile by tile: exact in themselves, other than without tiles.

    Args:
        model: a causal LM of transformers.
        tile_tokens: tokens in a tile.
        mlps: which modules; None for `position_wise_mlps(model)`.

    Attributes:
        count: modules that were tiled.

    Raises:
        UsageError: a tile without tokens.
        UnsupportedError: the model has no MLP that may be tiled.
    """

    def __init__(self, model: Any, tile_tokens: int, mlps: list[torch.nn.Module] | None = None) -> None:
        if tile_tokens < 1:
            raise UsageError(f"a tile of {tile_tokens} tokens is not usable", "give at least 1")
        self._mlps = list(dict.fromkeys(position_wise_mlps(model) if mlps is None else mlps))
        self.count = len(self._mlps)
        if not self._mlps:
            raise UnsupportedError(
                "no MLP of this model sees each token alone, or all are mixtures of experts",
                "calibrate without tiled MLPs",
            )
        for part in self._mlps:
            part.forward = _tiled(part, part.forward, tile_tokens)

    def remove(self) -> None:
        """Give the modules their own forward back."""
        for part in self._mlps:
            part.__dict__.pop("forward", None)
        self._mlps = []

    def __enter__(self) -> TiledMLPs:
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()


def _looks_like_mlp(part: torch.nn.Module) -> bool:
    names = [name.lower() for name, _ in part.named_modules()]
    if any(word in name for name in names for word in _EXPERTS):
        return False
    if any(isinstance(inner, torch.nn.ModuleList) for inner in part.modules()):
        return False
    shapes = [p.dim() for p in part.parameters()]
    if shapes.count(2) < 2 or max(shapes) > 2:
        return False
    # Itself and the input: attention takes positions, a mask or whatever else by name. The class is asked, because the
    # module's own forward may be tiled already.
    return len(inspect.signature(type(part).forward).parameters) == 2


def _sees_tokens_alone(part: torch.nn.Module) -> bool:
    matrix = next(p for p in part.parameters() if p.dim() == 2)
    for width in dict.fromkeys((matrix.shape[1], matrix.shape[0])):
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randn(1, _PROBE_TOKENS, width, generator=draw).to(matrix)
        other = tokens.clone()
        other[:, 0] += 1
        training = part.training
        part.eval()
        try:
            with torch.no_grad():
                whole, changed = part(tokens), part(other)
                tiles = torch.cat([part(tile) for tile in torch.split(tokens, _PROBE_TOKENS // 2, dim=1)], dim=1)
        # Whatever a module of another kind does with such an input, it is no MLP.
        except Exception:
            continue
        finally:
            part.train(training)
        if not isinstance(whole, torch.Tensor) or whole.shape != tokens.shape:
            return False
        limit = _AGREEMENT.get(matrix.dtype, 1e-5) * float(whole.abs().max())
        alone = float((whole - changed)[:, 1:].abs().max()) <= limit
        return alone and float((whole - tiles).abs().max()) <= limit
    return False


def _tiled(part: torch.nn.Module, inner: Callable[..., Any], tile_tokens: int) -> Callable[..., Any]:
    def forward(*args: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        (states,) = (*args, *named.values())
        if states.shape[-2] <= tile_tokens:
            found: torch.Tensor = inner(states)
            return found
        parameters = [p for p in part.parameters() if p.requires_grad]
        job = _Job(inner, tile_tokens, _draws(part))
        if not torch.is_grad_enabled() or not (states.requires_grad or parameters):
            return torch.cat([inner(tile) for tile in torch.split(states, tile_tokens, dim=-2)], dim=-2)
        anchor = torch.empty(0, device=states.device, requires_grad=True)
        kept = _Keep.apply(states, anchor)  # type: ignore[no-untyped-call]
        job.kept = kept.grad_fn
        result: torch.Tensor = _Tiles.apply(states, kept, job, *parameters)  # type: ignore[no-untyped-call]
        return result

    return forward


def _draws(part: torch.nn.Module) -> bool:
    """Whether a run draws random numbers."""
    return any(isinstance(inner, torch.nn.Dropout) and inner.p > 0 and inner.training for inner in part.modules())


class _Job:
    """What a tiled run needs beside tensors.

    Attributes:
        kept: the node of the graph that keeps the input.
        state: of the random generators before the run, where it draws.
        autocast: device type, whether autocast is on, and its dtype.
    """

    def __init__(self, inner: Callable[..., Any], tile_tokens: int, draws: bool) -> None:
        self.inner, self.tile_tokens, self.draws = inner, tile_tokens, draws
        self.kept: Any = None
        self.state: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self.autocast: dict[str, Any] = {}


class _Keep(torch.autograd.Function):
    """Keeps the input before the MLP runs, so that a checkpointed layer's second run may end here."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, _anchor: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(states)
        return states.new_empty(0)

    @staticmethod
    def backward(_ctx: Any, *_grads: torch.Tensor) -> tuple[None, None]:
        return None, None


class _Tiles(torch.autograd.Function):
    """An MLP on tiles; `kept` ties the node that holds the input to this one, so that both are freed together."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, _kept: torch.Tensor, job: _Job, *_parameters: torch.Tensor
    ) -> torch.Tensor:
        kind = states.device.type
        if torch.amp.is_autocast_available(kind):
            enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
            job.autocast = {"device_type": kind, "enabled": enabled, "dtype": dtype}
        if job.draws:
            device = torch.cuda.get_rng_state(states.device) if kind == "cuda" else None
            job.state = (torch.get_rng_state(), device)
        ctx.job, ctx.parameters = job, _parameters
        return torch.cat([job.inner(tile) for tile in torch.split(states, job.tile_tokens, dim=-2)], dim=-2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        job = ctx.job
        (states,) = job.kept.saved_tensors
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        # In float32, so that many tiles are rounded once.
        sums: list[torch.Tensor | None] = [None] * len(ctx.parameters)
        devices = [states.device] if states.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=job.state is not None):
            if job.state is not None:
                torch.set_rng_state(job.state[0])
                if job.state[1] is not None:
                    torch.cuda.set_rng_state(job.state[1], states.device)
            for start in range(0, states.shape[-2], job.tile_tokens):
                size = min(job.tile_tokens, states.shape[-2] - start)
                tile = states.narrow(-2, start, size).detach().requires_grad_(gradient is not None)
                wanted = [*([tile] if gradient is not None else []), *ctx.parameters]
                with torch.enable_grad(), _autocast(job):
                    result = job.inner(tile)
                found = list(
                    torch.autograd.grad(result, wanted, upstream[0].narrow(-2, start, size), allow_unused=True)
                )
                if gradient is not None:
                    part = found.pop(0)
                    gradient.narrow(-2, start, size).copy_(torch.zeros_like(tile) if part is None else part)
                for number, part in enumerate(found):
                    if part is not None:
                        sums[number] = _added(sums[number], part)
        grads = [None if s is None else s.to(p.dtype) for s, p in zip(sums, ctx.parameters, strict=True)]
        return (gradient, upstream[0].new_zeros(0), None, *grads)


def _autocast(job: _Job) -> Any:
    import contextlib

    return torch.autocast(**job.autocast) if job.autocast else contextlib.nullcontext()


def _added(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    if total is None:
        return part.to(torch.promote_types(part.dtype, torch.float32))
    return total.add_(part)
