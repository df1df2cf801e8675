"""All tasks by name."""

from __future__ import annotations

import difflib

from ctxforge.errors import UsageError
from ctxforge.verification.tasks import (
    common_words,
    copy_tokens,
    first_sentence,
    frequent_words,
    kv_grid,
    lines,
    multi_key,
    multi_query,
    multi_value,
    passkey,
    ruler_qa,
    uuid_needles,
    variable_tracking,
    wiki_qa,
)
from ctxforge.verification.tasks.types import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        kv_grid.TASK,
        passkey.TASK,
        multi_key.TASK,
        multi_value.TASK,
        multi_query.TASK,
        uuid_needles.TASK,
        variable_tracking.TASK,
        common_words.TASK,
        frequent_words.TASK,
        lines.TASK,
        copy_tokens.TASK,
        first_sentence.TASK,
        *wiki_qa.TASKS,
        ruler_qa.TASK,
    )
}
# Names that tiers use.
ALIASES = {"multikey-needles": "kv-grid", "uuid-needles": "uuid"}


def find_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        UsageError: there is none.
    """
    name = ALIASES.get(name, name)
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        raise UsageError(
            f"there is no task {name[:60]!r}.", f"Did you mean {near[0]}?" if near else f"There are {', '.join(TASKS)}."
        )
    return TASKS[name]
