"""Publishing in order: connect, see what may be done, gather, check and plan, then do it. Read this first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxforge.provenance import FILE_NAME, plan_document
from ctxforge.publish.connection import Connection, Tell, connect
from ctxforge.publish.execute import Published, execute
from ctxforge.publish.from_conversion import from_conversion
from ctxforge.publish.from_folder import from_folder, read_folder
from ctxforge.publish.options import PushOptions
from ctxforge.publish.plan import PushPlan
from ctxforge.publish.preflight import Prepared, prepare, resolve_target
from ctxforge.publish.quiet import quiet_hub
from ctxforge.publish.retry import Backoff

if TYPE_CHECKING:
    from ctxforge.pipeline import Conversion
    from ctxforge.recipe import ConversionRecipe

Planned = Callable[[PushPlan], None]


def push(
    folder: Path,
    options: PushOptions,
    *,
    report: Mapping[str, Any] | None = None,
    tell: Tell | None = None,
    planned: Planned = lambda _plan: None,
    connection: Connection | None = None,
) -> Published:
    """Publish a checkpoint folder in one commit.

    Args:
        folder: what `extend` or `calibrate` wrote, or another checkpoint.
        options: where and how.
        report: what verification measured, for the card.
        tell: called with remarks.
        planned: called with the plan, before anything is changed.
        connection: to a Hub; None for the one that the environment names.

    Raises:
        CtxforgeError: something refuses; the branch is as it was.
    """
    connection = connection or connect(tell)
    with quiet_hub(connection.tell):
        prepared = plan_push(folder, options, report=report, connection=connection)
        planned(prepared.plan)
        return execute(connection, prepared)


def plan_push(
    folder: Path,
    options: PushOptions,
    *,
    report: Mapping[str, Any] | None = None,
    connection: Connection | None = None,
) -> Prepared:
    """What `push` would do, everything checked that can be; nothing is changed anywhere.

    Raises:
        CtxforgeError: as `push`.
    """
    connection = connection or connect()
    checkpoint = read_folder(folder, force=options.force)
    repo = resolve_target(connection, options, checkpoint.json_files.get(FILE_NAME))
    return prepare(connection, from_folder(connection, folder, report, checkpoint=checkpoint), options, repo)


def plan_source(recipe: ConversionRecipe, *, tell: Tell | None = None, backoff: Backoff | None = None) -> Conversion:
    """The conversion that `publish` takes, planned on the source's headers; tried again where the Hub only stumbles.

    Args:
        recipe: what is asked for.
        tell: called with one line before each wait.
        backoff: between tries.

    Raises:
        CtxforgeError: see `ctxforge.pipeline.plan_to_publish`.
    """
    from ctxforge import pipeline

    told = tell or (lambda _text: None)
    patient = backoff or Backoff(attempts=4)
    with quiet_hub(told):
        return patient.run("reading the source", lambda: pipeline.plan_to_publish(recipe), told)


def publish(
    conversion: Conversion,
    options: PushOptions,
    *,
    tell: Tell | None = None,
    planned: Planned = lambda _plan: None,
    connection: Connection | None = None,
) -> Published:
    """Publish a planned conversion without writing it to a folder.

    Of a Hub source, weights that don't change are copied on the server, and only files with edited tensors pass
    through this machine, one at a time.

    Args:
        conversion: see `plan_source`.
        options, tell, planned, connection: see `push`.

    Raises:
        CtxforgeError: as `push`.
    """
    connection = connection or connect(tell)
    with quiet_hub(connection.tell):
        prepared = plan_publish(conversion, options, connection=connection)
        planned(prepared.plan)
        return execute(connection, prepared)


def plan_publish(conversion: Conversion, options: PushOptions, *, connection: Connection | None = None) -> Prepared:
    """What `publish` would do, everything checked that can be; nothing is changed anywhere.

    Raises:
        CtxforgeError: as `publish`.
    """
    connection = connection or connect()
    named = {
        "source": {"name": conversion.recipe.source},
        "plan": plan_document(conversion),
        "recipe": {"attach": None if conversion.recipe.attach is None else {"name": conversion.recipe.attach.name}},
    }
    repo = resolve_target(connection, options, named)
    return prepare(connection, from_conversion(connection, conversion), options, repo)
