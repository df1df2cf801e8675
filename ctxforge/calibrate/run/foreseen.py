"""What a run will need, estimated before anything is loaded: on a model without memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ctxforge.calibrate.memory.estimate import MemoryEstimate, StepOptions, gibibytes
from ctxforge.calibrate.objectives.restoration import Teacher
from ctxforge.calibrate.run import model as models
from ctxforge.calibrate.run.fitting import fit, memory_of, tokens_at_once
from ctxforge.calibrate.run.request import Request
from ctxforge.calibrate.run.restoring import restores
from ctxforge.checkpoint import Checkpoint
from ctxforge.errors import CheckpointError, ResourceError
from ctxforge.verification.load import pick_device


@dataclass(frozen=True)
class Foreseen:
    """How a step will be run on this machine, and what it is thought to take.

    Attributes:
        options: of a step.
        estimate: of its memory.
        source: bytes beside it: the source's weights and the states that are held to it; 0 where there is none.
        memory: bytes that the device has for a run; None where that can't be known.
        device: cpu or cuda.
    """

    options: StepOptions
    estimate: MemoryEstimate
    source: int
    memory: int | None
    device: str

    @property
    def total(self) -> int:
        """Bytes of a step with the source beside it."""
        return self.estimate.total + self.source

    def document(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "options": asdict(self.options),
            "estimate": {**asdict(self.estimate), "total": self.estimate.total},
            "source": self.source,
            "total": self.total,
            "memory": self.memory,
            "device": self.device,
        }


def foresee(request: Request, processes: int = 1) -> Foreseen:
    """Estimate a run's memory from the checkpoints' headers; no weight is read.

    Args:
        request: see there.
        processes: how many there will be.

    Raises:
        ResourceError: no way to run a step fits this machine; it says what would.
        CheckpointError: transformers can't build the model.
    """
    device = torch.device("cpu" if request.parallel.cpu else pick_device("auto"))
    dtype = models.training_dtype(request.checkpoint, request.load, device)
    model = _without_memory(request.checkpoint, request.load, dtype)
    models.attach_adapters(model, request.checkpoint, request.plan, digest="")
    beside = 0
    if restores(request):
        assert request.source is not None
        teacher = Teacher(_without_memory(request.source, request.load, dtype))
        beside = beside_bytes(teacher, request, device)
    memory = memory_of(device)
    options, estimate = fit_beside(
        model, request, device, memory, beside, processes=processes, slice_rows=models.slice_rows(model, device)
    )
    return Foreseen(options, estimate, beside, memory, device.type)


def beside_bytes(teacher: Teacher, request: Request, device: torch.device) -> int:
    """Bytes that the source takes beside a step."""
    plan = request.plan
    tokens = max(tokens_at_once(plan.recipe.memory, device), min(plan.longest, plan.trained_length))
    return teacher.bytes + teacher.state_bytes(tokens)


def fit_beside(
    model: Any,
    request: Request,
    device: torch.device,
    memory: int | None,
    beside: int,
    *,
    processes: int,
    slice_rows: int | None,
) -> tuple[StepOptions, MemoryEstimate]:
    """`fit` with the source's bytes taken off.

    Raises:
        ResourceError: nothing fits; where the source is the reason, it names the way without.
    """
    parallel = request.parallel
    try:
        return fit(
            model,
            request.plan,
            device,
            memory=None if memory is None else max(0, memory - beside),
            shards=processes // parallel.context if parallel.shard else 1,
            context=parallel.context,
            slice_rows=slice_rows,
        )
    except ResourceError as error:
        if not beside:
            raise
        raise ResourceError(
            f"{error.cause} beside the source's {gibibytes(beside)}",
            f"{error.remedy}; or add --set objective.restoration=0, which needs no source",
        ) from None


def _without_memory(checkpoint: Checkpoint, options: models.LoadOptions, dtype: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    from ctxforge.quiet import quiet_transformers

    assert checkpoint.root is not None
    trusted = options.trust_remote_code
    try:
        with quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(Path(checkpoint.root), trust_remote_code=trusted, local_files_only=True)
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=trusted)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError) as error:
        raise CheckpointError(
            f"transformers cannot build the model of {checkpoint.source}: {error}",
            "leave --plan out to load it; with code of its own add --trust-remote-code",
        ) from error
