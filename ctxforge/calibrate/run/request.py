"""What a calibration is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctxforge.calibrate.adapters import MergeRecord
from ctxforge.calibrate.held_out import HeldOut, HeldOutResult, Reference
from ctxforge.calibrate.memory.estimate import MemoryEstimate, StepOptions
from ctxforge.calibrate.parallel import ParallelOptions
from ctxforge.calibrate.recipes import CalibrationPlan
from ctxforge.calibrate.run.loop import Trainings
from ctxforge.calibrate.run.model import LoadOptions
from ctxforge.calibrate.run.sources import RunData
from ctxforge.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is calibrated, on what, and where it goes.

    Attributes:
        checkpoint: the extended checkpoint, local.
        record: its provenance.
        source: the checkpoint before the extension, local; None where it is not at hand.
        source_name: of it, for the record.
        plan: of the run.
        data: see `parse_source`.
        guard_texts: what will be verified on.
        out: the folder to make.
        work: the folder of the run: log and states.
        load: how models are loaded.
        parallel: how processes share the work.
        save_every: steps between states; None: a tenth of the steps, at most 50.
        fresh: drop what an interrupted run left.
        overwrite, link: of `merge`.
        token_root: folder of the token caches; None for the usual one.
    """

    checkpoint: Checkpoint
    record: Mapping[str, Any]
    source: Checkpoint | None
    source_name: str | None
    plan: CalibrationPlan
    data: tuple[str, ...]
    out: Path
    work: Path
    guard_texts: tuple[str, ...] = ()
    load: LoadOptions = field(default_factory=LoadOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)
    save_every: int | None = None
    fresh: bool = False
    overwrite: bool = False
    link: bool = False
    token_root: Path | None = None


@dataclass(frozen=True)
class Trained:
    """A training that has ended, its best adapter on disk.

    Attributes:
        trainings: how it ended.
        data: what it was trained on.
        windows, reference: what it was measured on, and against.
        options, estimate: how a step was run, and what it was thought to take.
        parameters: numbers that were trained.
        identity: of the run.
        notes: what was done otherwise than the recipe says, a sentence each.
    """

    trainings: Trainings
    data: RunData
    windows: HeldOut
    reference: Reference
    options: StepOptions
    estimate: MemoryEstimate
    parameters: int
    identity: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Calibrated:
    """A finished calibration.

    Attributes:
        out: the checkpoint.
        plan: of the run.
        trained: how the training went.
        merged: what the merge did.
        written: held-out result of the checkpoint as it was written and loaded again.
        log: the run's record.
    """

    out: Path
    plan: CalibrationPlan
    trained: Trained
    merged: MergeRecord
    written: HeldOutResult
    log: Path

    @property
    def best(self) -> HeldOutResult:
        """Held-out result of the best step, before the merge."""
        found = self.trained.trainings.chooser.best
        assert found is not None
        return found

    @property
    def best_step(self) -> int:
        """The step that was kept."""
        found = self.trained.trainings.chooser.best_step
        assert found is not None
        return found

    def document(self) -> dict[str, Any]:
        """As JSON data."""
        trainings = self.trained.trainings
        return {
            "out": str(self.out),
            "steps": trainings.step,
            "best_step": self.best_step,
            "ended": trainings.ended,
            "tokens": trainings.tokens,
            "seconds": round(trainings.seconds, 2),
            "trained_parameters": self.trained.parameters,
            "memory": {"estimate_bytes": self.trained.estimate.total, "step": asdict(self.trained.options)},
            "held_out": {
                "windows": self.trained.windows.document(),
                "reference": self.trained.reference.document(),
                "scores": trainings.chooser.document()["scores"],
                "best": self.best.document(),
                "written": self.written.document(),
            },
            "merge": {**self.merged.document(), "tensors": len(self.merged.tensors)},
            "plan": self.plan.document(),
            "notes": list(self.trained.notes),
            "data": self.trained.data.document(),
            "log": str(self.log),
        }
