"""What an earlier run of a job left to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ctxforge.batch.journal import Record
from ctxforge.batch.outputs import difference, identity, is_ours
from ctxforge.batch.planning import CONVERT, Planned


@dataclass(frozen=True)
class Decision:
    """What is to be done of a job.

    Attributes:
        stages: in order; none where everything was done.
        kept: what earlier runs recorded of the other stages.
        replace: whether the output that is there may be replaced.
        before: which folder stood at the output when the work on it began, see `outputs.identity`.
        reason: why it is done again; "" where it wasn't done.
    """

    stages: tuple[str, ...]
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    replace: bool = False
    before: list[int] | None = None
    reason: str = ""


def decide(planned: Planned, record: Record | None) -> Decision:
    """Which stages of a job have to run.

    A stage is done where its key is the same, its output passes what was recorded of it, and no stage before it runs
    again. An output of ours may be replaced; any other only where the job says so.

    Args:
        planned: the job.
        record: what the journal says of it; None without --resume.
    """
    stages, before, replace = tuple(planned.keys), identity(planned.out), planned.job.spec.overwrite
    if record is None:
        return Decision(stages, replace=replace, before=before)
    if not planned.written:
        kept = {name: found for name, found in record.stages.items() if found["key"] == planned.keys.get(name)}
        return Decision(tuple(name for name in stages if name not in kept), kept)
    done = record.stages.get(CONVERT)
    here = done is not None and done.get("out") == str(planned.out)
    reason = ""
    if done is not None and here:
        changed = difference(planned.out, done["snapshot"])
        if changed is None and done["key"] == planned.keys[CONVERT]:
            kept = {CONVERT: done}
            for name in stages[1:]:
                found = record.stages.get(name)
                if found is not None and found["key"] == planned.keys[name]:
                    kept[name] = found
            return Decision(tuple(name for name in stages if name not in kept), kept, replace, before)
        reason = changed or "the source, the plan or an option is another"
        replace = replace or is_ours(planned.out, done["snapshot"])
    begun = record.begun
    if begun is not None and begun.get("out") == str(planned.out) and begun.get("key") == planned.key:
        # What stands there now may have been finished just before the run was killed: the task looks at it.
        before = begun.get("before")
        replace = replace or bool(begun.get("replace"))
    return Decision(stages, replace=replace, before=before, reason=reason)
