"""A run's state on disk: adapter, optimiser, steps done and what was measured; whole, or as it was before."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxforge.calibrate.parallel import Prepared, Processes
from ctxforge.checkpoint.staging import commit, locked, staged, sync_tree, write_new, writing
from ctxforge.errors import CheckpointError, ResourceError, UsageError

STATE, BEST = "state", "best"
_ADAPTER, _OPTIMISER, _RUN = "adapter", "optimiser.pt", "run.json"


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
        step: steps done.
        tokens: trained on so far.
        identity: what the run is made of, by name: digests of plan, data, base.
        chooser: what was measured (`held_out.Chooser.document`).
    """

    step: int
    tokens: int
    identity: Mapping[str, str]
    chooser: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "identity": dict(self.identity),
            "chooser": dict(self.chooser),
        }


def save_state(folder: Path, processes: Processes, prepared: Prepared, state: RunState) -> None:
    """Write the state to `folder`/state, in the place of the one before, in one step. All processes call it.

    Random numbers need no place in it: each step seeds its own.

    Args:
        folder: of the run.
        processes, prepared: what is trained.
        state: where the run stands.

    Raises:
        ResourceError: no space or no permission; the state before stays.
        CheckpointError: a trained number is not finite; the state before stays.
    """
    optimiser = processes.optimiser_state(prepared)
    out = staging = folder / STATE
    with contextlib.ExitStack() as held:

        def begin() -> None:
            nonlocal staging
            held.enter_context(locked(out))
            staging = held.enter_context(staged(out))

        def end() -> None:
            with writing(folder):
                _write_optimiser(staging / _OPTIMISER, optimiser)
                write_new(staging / _RUN, (json.dumps(state.document(), indent=1, allow_nan=False) + "\n").encode())
                sync_tree(staging)
                commit(staging, out)

        # Whatever fails, fails in all processes: none may wait for one that gave up.
        processes.on_main(begin)
        processes.save(staging / _ADAPTER, prepared, {"step": state.step})
        processes.on_main(end)


def recover(folder: Path) -> None:
    """Clear away what a killed run left half-written beside its states, and undo a swap that was cut in half.

    Raises:
        ResourceError: another run writes there, or no permission.
    """
    for name in (STATE, BEST):
        with locked(folder / name):
            pass


def read_state(folder: Path) -> RunState | None:
    """The state in a run's folder; None where there is none.

    Raises:
        CheckpointError: a damaged one.
    """
    path = folder / STATE / _RUN
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return RunState(int(found["step"]), int(found["tokens"]), dict(found["identity"]), dict(found["chooser"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", "start anew with --fresh") from None


def require_same(state: RunState, identity: Mapping[str, str], folder: Path) -> None:
    """Refuse to go on with a run that was another.

    Args:
        state: what is on disk.
        identity: of the run that is asked for.
        folder: of the run.

    Raises:
        UsageError: it names what differs.
    """
    differ = [name for name, digest in identity.items() if state.identity.get(name) != digest]
    if differ:
        raise UsageError(
            f"the run in {folder} stopped at step {state.step} with another {' and '.join(differ)}",
            "give what it began with, or --fresh to drop it, or another --work folder",
        )


def load_state(folder: Path, processes: Processes, prepared: Prepared) -> None:
    """Give model and optimiser what `save_state` wrote. All processes call it.

    Raises:
        UsageError, CheckpointError: see `restore_adapter` and `load_optimiser_state`.
    """
    import pickle

    import torch

    processes.restore(folder / STATE / _ADAPTER, prepared)
    path = folder / STATE / _OPTIMISER
    try:
        optimiser = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", "start anew with --fresh") from None
    processes.load_optimiser_state(prepared, optimiser)


def save_best(folder: Path, processes: Processes, prepared: Prepared, notes: Mapping[str, Any]) -> None:
    """Write the adapter to `folder`/best, in the place of the one before. All processes call it.

    Raises:
        ResourceError, CheckpointError: see `save_adapter`.
    """
    processes.save(folder / BEST, prepared, notes)
    processes.wait()


def _write_optimiser(path: Path, state: Mapping[str, Any]) -> None:
    import torch

    try:
        with path.open("xb") as file:
            torch.save(dict(state), file)
    except RuntimeError as error:  # torch's writer reports a full disk so
        raise ResourceError(f"{path} can't be written: {error}", "free some space, or give another --work") from None
