"""What a calibration may ask of its processes, and what of it can't work: said before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ctxforge.errors import UsageError

# What `accelerate launch` sets from its own questionnaire, and what each would change behind the loop's back.
_FOREIGN = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


@dataclass(frozen=True)
class ParallelOptions:
    """How processes share the work. Alone, or with the defaults under `accelerate launch`, each has the whole model.

    Attributes:
        shard: split parameters, gradients and optimiser states over the data processes (FSDP2).
        context: processes that share one sequence; 1 for none.
        context_backend: "ring" gathers keys and values over the group, "ulysses" trades tokens for heads, of which
            there must be a multiple of `context`.
        cpu: use the CPU although there is a GPU; processes talk through gloo.
        tracker: a tracker of accelerate ("tensorboard", "wandb"); None for none.
        project_dir: where a tracker writes.
    """

    shard: bool = False
    context: int = 1
    context_backend: Literal["ring", "ulysses"] = "ring"
    cpu: bool = False
    tracker: str | None = None
    project_dir: Path | None = None


def check_launch(options: ParallelOptions, world: int, model_config: Any = None) -> None:
    """Refuse what processes and environment make impossible.

    Args:
        options: what was asked for.
        world: number of processes that were launched.
        model_config: of the model that will be trained.

    Raises:
        UsageError: a count that doesn't divide, or a launcher's configuration that takes the model over.
        UnsupportedError: a model that processes can't share a sequence of.
    """
    for variable, name in _FOREIGN.items():
        if os.environ.get(variable, "false").lower() in ("1", "true", "yes"):
            raise UsageError(
                f"accelerate's launcher was configured for {name}, which would wrap the model a second time",
                "launch with plain processes (accelerate launch --multi_gpu), and ask ctxforge for sharding or context",
            )
    if options.context < 1:
        raise UsageError(f"a sequence can't be shared by {options.context} processes", "give 1 or more")
    if world % options.context:
        raise UsageError(
            f"{world} processes can't be divided into groups of {options.context} that share a sequence",
            f"launch a multiple of {options.context} processes, or choose a context that divides {world}",
        )
    if options.context > 1 and model_config is not None:
        from ctxforge.calibrate.parallel.serving import check_config

        check_config(options, model_config)


def check_machine(options: ParallelOptions, world: int) -> None:
    """Refuse what this machine doesn't have.

    Args:
        options: what was asked for.
        world: number of processes that were launched.

    Raises:
        UsageError: more processes than GPUs on a machine that has some, or a tracker that isn't installed.
    """
    import torch
    from accelerate.tracking import get_available_trackers

    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    devices = torch.cuda.device_count()
    if not options.cpu and 0 < devices < here:
        raise UsageError(
            f"{here} processes on a machine with {devices} GPU{'s' if devices > 1 else ''}: each needs its own",
            f"launch {devices}, or run on the CPU",
        )
    if options.tracker is not None and options.tracker not in [str(one) for one in get_available_trackers()]:
        raise UsageError(
            f"the tracker {options.tracker} is not installed", f"install it: pip install {options.tracker}"
        )
