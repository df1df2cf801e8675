"""What a training loop asks of the processes that it runs on: one interface for one process and for many."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctxforge.calibrate.adapters import Adapter, Trained
from ctxforge.calibrate.objectives.counts import denominator
from ctxforge.calibrate.objectives.cross_entropy import TokenLosses, Weigher
from ctxforge.calibrate.objectives.loss_model import LossModel
from ctxforge.calibrate.parallel import states
from ctxforge.calibrate.parallel.options import ParallelOptions, check_launch
from ctxforge.calibrate.parallel.preparing import MakeOptimiser, Prepared
from ctxforge.errors import CtxforgeError
from ctxforge.verification.processes import launched


class Processes:
    """The processes of one calibration; every method that isn't a property is to be called by all of them.

    Attributes:
        options: what was asked for.
        accelerator: of accelerate.
        device: of this process.
        rank, world: number of this process, and of all.
        data_rank, data_world: number of this process's share of the rows, and of shares. Processes that share a
            sequence have one share.
        is_main: whether this process speaks and writes.
        sharded: whether parameters are split over all processes.
        length_multiple: what a row's length must be a multiple of.
    """

    def __init__(self, options: ParallelOptions, accelerator: Any) -> None:
        self.options = options
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.world: int = accelerator.num_processes
        self.data_rank, self.data_world = self.rank // options.context, self.world // options.context
        self.is_main: bool = self.rank == 0
        self.sharded: bool = self.world > 1 and (options.shard or options.context > 1)
        self.length_multiple = 2 * options.context if options.context > 1 else 1

    def prepare(self, loss_model: LossModel, trained: Trained, make_optimiser: MakeOptimiser) -> Prepared:
        """Move a model to this process's device, wrap it for its processes, and make its optimiser.

        Args:
            loss_model: as loaded, checked and made trainable; the same numbers in every process.
            trained: what `attach` gave.
            make_optimiser: of the trained parameters by their group (`Trained.groups`).
        """
        if not self.sharded:
            model = self.accelerator.prepare_model(loss_model)
            return Prepared(model, loss_model, make_optimiser(trained.groups()), trained)
        from torch.distributed.device_mesh import init_device_mesh

        from ctxforge.calibrate.parallel.sharding import shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        parts = shard(loss_model, trained, mesh, self.device)
        return Prepared(loss_model, loss_model, make_optimiser(parts.groups()), parts)

    def denominator(self, targets: Iterable[torch.Tensor]) -> float:
        """What the losses of this process's micro-batches of one optimiser step are to be divided by.

        Args:
            targets: of those micro-batches, whole rows; none where this process has no row in the step.
        """
        return denominator(targets, device=self.device)

    def step_part(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        targets: torch.Tensor,
        denominator: float,
        weights: torch.Tensor | Weigher | None = None,
        *,
        last: bool,
    ) -> TokenLosses:
        """Forward and backward of one micro-batch; gradients are exchanged with the last one of a step.

        Args:
            prepared: from `prepare`.
            inputs: for the model, `input_ids` among them (`placement.model_inputs`).
            targets: int64 [B, L], shifted (`placement.next_tokens`).
            denominator: from `denominator`, the same for every micro-batch of the step.
            weights: of the targets, or a function of them.
            last: whether this is the step's last micro-batch of this process. Each process needs exactly one such a
                step; the number of others may differ between processes, unless the model is sharded.

        Returns:
            The losses of whole rows; without a gradient.
        """
        with self._exchanging(prepared, last):
            found: TokenLosses = prepared.model(
                targets=targets, denominator=denominator, weights=weights, **dict(inputs)
            )
            found.loss.backward()  # type: ignore[no-untyped-call]
        return TokenLosses(found.loss.detach(), found.losses, found.weights)

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """Scale gradients so that their norm over all processes' parts is at most `limit`; the norm before."""
        kept = [parameter for parameter in parameters if parameter.grad is not None]
        norm: Any = nn.utils.get_total_norm([parameter.grad for parameter in kept if parameter.grad is not None])
        if self.sharded:
            norm = norm.full_tensor()  # each process knows the norm of its own parts
        nn.utils.clip_grads_with_norm_(kept, limit, norm)
        return float(norm)

    def total(self, value: float) -> float:
        """The sum of a number over the shares of the rows: processes that share a sequence count once."""
        return self._reduced(value, "SUM") / self.options.context

    def most(self, value: int) -> int:
        """The largest of all processes' numbers."""
        return int(self._reduced(float(value), "MAX"))

    def save(self, folder: Path, prepared: Prepared, notes: Mapping[str, Any]) -> None:
        """`save_adapter`, written by one process.

        Raises:
            CtxforgeError: as `save_adapter`, in every process.
        """
        failure: tuple[type[CtxforgeError], str, str] | None = None
        whole = states.gathered(prepared.trained, keep=self.is_main)
        if whole is not None:
            try:
                states.save_whole(folder, whole, notes)
            except CtxforgeError as error:
                if self.world == 1:
                    raise
                failure = (type(error), error.cause, error.remedy)
        failure = self.everywhere(failure)
        if failure is not None:
            kind, cause, remedy = failure
            raise kind(cause, remedy)

    def restore(self, folder: Path, prepared: Prepared) -> Adapter:
        """`restore_adapter`, in every process."""
        if self.sharded:
            from ctxforge.calibrate.parallel.sharding import release

            release(prepared.inner)
        return states.restore(folder, prepared.trained)

    def optimiser_state(self, prepared: Prepared) -> dict[str, Any]:
        """See `states.optimiser_state`; empty in all processes but the main one."""
        return states.optimiser_state(prepared, keep=self.is_main)

    def load_optimiser_state(self, prepared: Prepared, state: Mapping[str, Any]) -> None:
        """See `states.load_optimiser_state`; the state is given in every process."""
        states.load_optimiser_state(prepared, state)

    def everywhere(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """End trackers and leave the group of processes; this object isn't used again."""
        self.accelerator.end_training()

    @contextlib.contextmanager
    def _exchanging(self, prepared: Prepared, last: bool) -> Iterator[None]:
        """Within, gradients are exchanged with the backward, or added up in this process until the last one."""
        if self.sharded:
            prepared.model.set_requires_gradient_sync(last)
            yield
        elif last or self.world == 1:
            yield
        else:
            with prepared.model.no_sync():
                yield

    def _reduced(self, value: float, how: str) -> float:
        if self.world == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(number, op=getattr(torch.distributed.ReduceOp, how))
        return float(number)


def start(options: ParallelOptions, *, model_config: Any = None) -> Processes:
    """Join the processes that a launcher started, or stay alone.

    Args:
        options: what is asked for.
        model_config: of the model that will be trained, where sequences are to be shared.

    Raises:
        UsageError: the number of processes, or the launcher's configuration.
        UnsupportedError: what the machine, the model or the installed packages can't do.
    """
    check_launch(options, launched(), model_config)
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    accelerator = Accelerator(
        cpu=options.cpu,
        mixed_precision="no",
        log_with=options.tracker,
        project_dir=None if options.project_dir is None else str(options.project_dir),
        # As an object: a number would give way to the launcher's environment.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # Rotary tables are buffers, and each process sets its own by the rows that it has.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    return Processes(options, accelerator)
