"""The model of a run: loaded, made trainable, tried out, and made to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ctxforge.attention.shifted_sparse import shifted_sparse_attention
from ctxforge.calibrate.adapters import Trained, attach
from ctxforge.calibrate.data import BatchPlan, TokenCache
from ctxforge.calibrate.memory.checkpointing import Checkpointing
from ctxforge.calibrate.memory.estimate import StepOptions
from ctxforge.calibrate.memory.offload import Offload
from ctxforge.calibrate.memory.tiled_mlp import TiledMLPs
from ctxforge.calibrate.objectives.cross_entropy import rows_per_slice
from ctxforge.calibrate.objectives.loss_model import LossModel
from ctxforge.calibrate.placement import Layout, check_isolation, two_rotations
from ctxforge.calibrate.recipes import CalibrationPlan
from ctxforge.calibrate.run.rows import lay_out
from ctxforge.calibrate.run.schedule import scale_base
from ctxforge.checkpoint import Checkpoint
from ctxforge.errors import CheckpointError, UnsupportedError, UsageError
from ctxforge.verification.load import cpu_has_bfloat16, load_model
from ctxforge.verification.settings import VerifySettings

_TRIED = 1024
_SLICE_ON_CPU = 1 << 26
_PROBED = 16
_SYSTEM = "ctxforge_system"


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
        dtype: auto, float32 or bfloat16. auto: bfloat16 where that is the checkpoint's and the device computes it
            natively, else float32.
        attention: auto, or one of transformers' by its name.
        trust_remote_code: run the modeling code in the checkpoint.
    """

    dtype: str = "auto"
    attention: str = "auto"
    trust_remote_code: bool = False


def load(checkpoint: Checkpoint, options: LoadOptions, device: torch.device) -> Any:
    """A causal LM as it will be trained or measured, on `device`.

    Raises:
        CheckpointError: transformers cannot load it.
        UsageError: an attention that it doesn't have.
    """
    assert checkpoint.root is not None
    dtype = training_dtype(checkpoint, options, device)
    settings = VerifySettings(dtype=dtype, trust_remote_code=options.trust_remote_code)
    model = load_model(Path(checkpoint.root), settings, str(device))
    if options.attention != "auto":
        try:
            model.set_attn_implementation(options.attention)
        except (ValueError, ImportError, KeyError, RuntimeError) as error:
            raise UsageError(
                f"the attention {options.attention!r} can't be used: {error}", "leave --attention out"
            ) from None
    return model


def training_dtype(checkpoint: Checkpoint, options: LoadOptions, device: torch.device) -> str:
    """The dtype that a checkpoint is loaded in; see `LoadOptions`."""
    if options.dtype != "auto":
        return options.dtype
    stored = {info.dtype for info in checkpoint.tensors.values()}
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
    return "bfloat16" if native and stored == {"BF16"} else "float32"


def make_trainable(model: Any, checkpoint: Checkpoint, plan: CalibrationPlan, digest: str) -> tuple[LossModel, Trained]:
    """Attach what is trained, and put model and loss together.

    Raises:
        CheckpointError: the model's numbers are not finite.
        CtxforgeError: see `attach` and `LossModel.check`.
    """
    trained = attach_adapters(model, checkpoint, plan, digest)
    loss_model = LossModel(model, slice_rows(model, model.device))
    _check(loss_model)
    return loss_model, trained


def attach_adapters(model: Any, checkpoint: Checkpoint, plan: CalibrationPlan, digest: str) -> Trained:
    """Attach what is trained.

    Raises:
        CtxforgeError: see `attach`.
    """
    recipe = plan.recipe.adapter
    try:
        return attach(model, checkpoint, recipe, seed=plan.seed, digest=digest)
    except UnsupportedError:
        # Mixtures of experts have no feed-forward part that takes a low-rank change; attention is what a longer context
        # needs, so a recipe that trains both trains that.
        if "attention" not in recipe.low_rank or "mlp" not in recipe.low_rank:
            raise
        narrower = replace(recipe, low_rank=tuple(role for role in recipe.low_rank if role != "mlp"))
        return attach(model, checkpoint, narrower, seed=plan.seed, digest=digest)


def slice_rows(model: Any, device: torch.device) -> int | None:
    """Rows of a slice of the loss: fewer on a CPU, where large pieces stay with the process; None for the usual number.

    With a head that is trained each slice adds to the gradient of the whole head, so there are few.
    """
    head = model.get_output_embeddings()
    if head is None or device.type != "cpu" or any(p.requires_grad for p in head.parameters()):
        return None
    return rows_per_slice(int(head.weight.shape[0]), _SLICE_ON_CPU)


def _check(loss_model: LossModel) -> None:
    """`LossModel.check`, which a broken model fails as well as one of another kind."""
    try:
        loss_model.check()
    except UnsupportedError:
        ids = torch.arange(_PROBED, device=loss_model.model.device)[None]
        with torch.no_grad():
            logits = loss_model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        if torch.isfinite(logits).all():
            raise
        raise CheckpointError(
            "the model that is to be calibrated gives numbers that are not finite", "check its weights, or make it anew"
        ) from None


def try_out(model: Any, plan: CalibrationPlan, caches: Sequence[TokenCache], batch: BatchPlan) -> None:
    """Find out on a long and a short row whether the model sees what the rows say, before anything is trained.

    Raises:
        UnsupportedError: it does not; see `check_isolation`.
    """
    seen: dict[bool, Layout] = {}
    for row in batch.rows:
        layout = lay_out(plan, caches, row, batch.stage)
        seen.setdefault(layout.isolated, layout)
    for layout in seen.values():
        check_isolation(model, _cut(layout))


def _cut(layout: Layout) -> Layout:
    """A row's tokens at every seam, at most `_TRIED` of them: what shows who sees whom costs little so."""
    if layout.length <= _TRIED:
        return layout
    runs = layout.runs()
    kept = runs[: _TRIED // 2]
    each = max(2, _TRIED // len(kept))
    where = torch.cat([torch.arange(run.start, min(run.stop, run.start + each)) for run in kept]).numpy()
    documents = layout.documents[where]
    return Layout(
        layout.ids[where],
        layout.positions[where],
        documents - documents[0],
        layout.weights[where] * (layout.positions[where] > 0),
        layout.extended[where],
    )


@dataclass(frozen=True)
class Hooks:
    """What a step tells the model before its passes; see `step.Training`."""

    choose_rotation: Callable[[Any], None] | None
    set_scale_base: Callable[[int], None] | None
    at_rest: Callable[[], None]


def hooks(model: Any, plan: CalibrationPlan, source_tables: Sequence[Any] | None, held: ExitStack) -> Hooks:
    """Put in place what the recipe changes while it trains; `at_rest` makes the model what the result will be.

    Args:
        model: as loaded.
        plan: of the run.
        source_tables: the source's rotary tables, for mixed windows.
        held: undoes it in the end.

    Raises:
        UnsupportedError: a model that the recipe doesn't fit.
    """
    if plan.group is not None:
        held.enter_context(shifted_sparse_attention(model, plan.group))
    choose = None
    if plan.recipe.rows.placement == "mixed-windows":
        if not source_tables:
            raise UnsupportedError(
                "mixed windows need the source's own rotation, and none is recorded",
                "calibrate what `ctxforge extend` wrote, or take another recipe",
            )
        choose = held.enter_context(two_rotations(model, source_tables))
    set_base = None
    systems: list[Any] = []
    if plan.recipe.scale_base != "fixed":
        systems = list({id(one): one for one in _systems(model)}.values())
        target = systems[0].scale_base

        def set_base(step: int) -> None:
            found = scale_base(plan, step, target)
            assert found is not None
            _give_base(systems, found)

    def at_rest() -> None:
        if choose is not None:
            choose(None)
        if systems:
            _give_base(systems, target)

    return Hooks(choose, set_base, at_rest)


def _systems(model: Any) -> list[Any]:
    found = [
        getattr(module, _SYSTEM) for module in model.modules() if hasattr(getattr(module, _SYSTEM, None), "scale_base")
    ]
    if not found:
        raise UnsupportedError(
            f"{type(model).__name__} has no scale base to change: it is no xPos model",
            "extend with --method xpos or xpos-abf first, or take another recipe",
        )
    return found


def _give_base(systems: Sequence[Any], base: float) -> None:
    for system in systems:
        system.scale_base = base
        system.stretch = max(1, int(2 * base))


def apply_memory(model: Any, options: StepOptions) -> None:
    """Turn on what makes a step fit, for as long as the model lives."""
    if options.tile_tokens is not None:
        TiledMLPs(model, options.tile_tokens)
    if options.checkpoint:
        Checkpointing(model, keep_attention=options.keep_attention, offload=Offload() if options.offload else None)


def with_batch(options: StepOptions, batch: int) -> StepOptions:
    """`options` for another number of rows at once."""
    return replace(options, batch=batch)


def tables_of(record: Mapping[str, Any] | None) -> list[Any] | None:
    """The rotary tables under which a converted model is its source, from its provenance; None without one."""
    from ctxforge.rope.spectrum import plain_frequencies
    from ctxforge.verification.swap import TableValues

    plan = (record or {}).get("plan")
    if not isinstance(plan, Mapping) or plan.get("scheme") != "rope" or plan.get("composed"):
        return None
    return [
        TableValues(
            entry["layer_type"],
            list(plain_frequencies(entry["rotated_dims"], entry["base"])),
            # Where queries carry a factor on q.k, the source's scores come back by its inverse, half of it on each
            # side's cos and sin.
            float(entry.get("folded_into_weights", 1.0)) ** -0.5,
        )
        for entry in plan["tables"]
    ]
