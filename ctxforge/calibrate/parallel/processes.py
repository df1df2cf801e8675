"""What a training loop asks of the processes that it runs on: one interface for one process and for many."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from ctxforge.calibrate.adapters import Adapter, Trained, save_adapter
from ctxforge.calibrate.objectives.counts import denominator
from ctxforge.calibrate.objectives.cross_entropy import TokenLosses, Weigher
from ctxforge.calibrate.objectives.head import causal_lm
from ctxforge.calibrate.objectives.loss_model import LossModel
from ctxforge.calibrate.parallel import states
from ctxforge.calibrate.parallel.options import ParallelOptions, check_launch, check_machine
from ctxforge.calibrate.parallel.preparing import MakeOptimiser, Prepared
from ctxforge.calibrate.parallel.serving import check_attention, check_inputs, proved
from ctxforge.calibrate.parallel.sharding import release, shard
from ctxforge.calibrate.parallel.shared_sequence import SharedSequence
from ctxforge.errors import CtxforgeError, UnsupportedError
from ctxforge.verification.processes import launched

_MESH = ("data", "context")


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
        self.sharded: bool = self.world > 1 and options.shard
        self.shared: SharedSequence | None = None
        if options.context > 1:
            groups = init_device_mesh(self.device.type, (self.data_world, options.context), mesh_dim_names=_MESH)
            self.shared = SharedSequence(groups[_MESH[1]].get_group(), options.context_backend)
        self.length_multiple = 1 if self.shared is None else self.shared.multiple

    def prepare(self, loss_model: LossModel, trained: Trained, make_optimiser: MakeOptimiser) -> Prepared:
        """Move a model to this process's device, wrap it for its processes, and make its optimiser.

        Args:
            loss_model: as loaded, checked and made trainable; the same numbers in every process.
            trained: what `attach` gave.
            make_optimiser: of the trained parameters by their group (`Trained.groups`).
        """
        if self.shared is not None:
            check_attention(causal_lm(loss_model.model))
        model: Any = loss_model
        if self.sharded:
            trained = shard(loss_model, trained, init_device_mesh(self.device.type, (self.world,)), self.device)
        else:
            with warnings.catch_warnings():
                # The newer name of this argument synchronises buffers once, and is unknown to older torch.
                warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
                model = self.accelerator.prepare_model(loss_model)
        optimiser = make_optimiser(trained.groups())
        if self.sharded and type(optimiser).__module__.startswith("bitsandbytes"):
            raise UnsupportedError(
                "the 8-bit optimiser can't step parameters that are split over processes",
                "choose the plain optimiser with sharding, which splits its states anyway",
            )
        prepared = Prepared(model, loss_model, optimiser, trained)
        if self.shared is not None:
            proved(self.shared, prepared, self.device)
        return prepared

    def denominator(self, targets: Iterable[torch.Tensor]) -> float:
        """What the losses of this process's micro-batches of one optimiser step are to be divided by.

        Args:
            targets: of those micro-batches, whole rows; none where this process has no row in the step.
        """
        # Each of the processes that share a sequence counts all of it, and has the gradient of a part.
        return denominator(targets, device=self.device) / self.options.context

    def cut(self, rows: torch.Tensor) -> torch.Tensor:
        """This process's tokens of whole rows [B, T, ...]: all, unless a sequence is shared."""
        return rows if self.shared is None else self.shared.cut(rows)

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
        with self._attending(prepared), self._exchanging(prepared, last):
            found = self._forward(prepared, inputs, targets, denominator, weights)
            found.loss.backward()  # type: ignore[no-untyped-call]
        return self._whole(found)

    def losses(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        targets: torch.Tensor,
        denominator: float = 1.0,
        weights: torch.Tensor | Weigher | None = None,
    ) -> TokenLosses:
        """What `step_part` returns, without a gradient.

        Sharded processes, and those that share a sequence, call it equally often.
        """
        with torch.no_grad(), self._attending(prepared):
            return self._whole(self._forward(prepared, inputs, targets, denominator, weights))

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
        whole = states.gathered(prepared.trained, keep=self.is_main)

        def write() -> None:
            assert whole is not None, "the main process keeps what was gathered"
            save_adapter(folder, whole, notes)

        self.on_main(write)

    def restore(self, folder: Path, prepared: Prepared) -> Adapter:
        """`restore_adapter`, in every process."""
        if self.sharded:
            release(prepared.inner)
        return states.restore(folder, prepared.trained)

    def optimiser_state(self, prepared: Prepared) -> dict[str, Any]:
        """See `states.optimiser_state`; empty in all processes but the main one."""
        return states.optimiser_state(prepared, keep=self.is_main)

    def load_optimiser_state(self, prepared: Prepared, state: Mapping[str, Any]) -> None:
        """See `states.load_optimiser_state`; the state is given in every process."""
        states.load_optimiser_state(prepared, state)

    def on_main(self, action: Callable[[], None]) -> None:
        """Do something in the main process alone, and wait for it.

        Raises:
            CtxforgeError: what the action raised, in every process, so that none waits for one that gave up.
        """
        failure: CtxforgeError | None = None
        if self.is_main:
            try:
                action()
            except CtxforgeError as error:
                failure = error
        said = self.everywhere(None if failure is None else (type(failure), failure.cause, failure.remedy))
        if failure is not None:
            raise failure
        if said is not None:
            kind, cause, remedy = said
            raise kind(cause, remedy)

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

    def _forward(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        targets: torch.Tensor,
        denominator: float,
        weights: torch.Tensor | Weigher | None,
    ) -> TokenLosses:
        arguments = {**inputs, "targets": targets, "weights": weights}
        if self.shared is not None:
            check_inputs(arguments, self.shared)
            arguments = {
                name: self.shared.cut(one) if isinstance(one, torch.Tensor) else one for name, one in arguments.items()
            }
        found: TokenLosses = prepared.model(denominator=denominator, **arguments)
        return found

    def _whole(self, found: TokenLosses) -> TokenLosses:
        loss = found.loss.detach()
        if self.shared is None:
            return found._replace(loss=loss)
        return TokenLosses(self.shared.total(loss), self.shared.joined(found.losses), self.shared.joined(found.weights))

    def _attending(self, prepared: Prepared) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.shared is None else self.shared.attending(prepared.inner)

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
        UsageError: the number of processes, the launcher's configuration, or a tracker that isn't installed.
        UnsupportedError: what the machine, the model or the installed packages can't do.
    """
    check_launch(options, launched(), model_config)
    check_machine(options, launched())
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
