"""The steps of a publication: which files there are, the way of each, and what must go from the target."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from ctxforge.checkpoint.layout import BIN_INDEX, BIN_SINGLE, INDEX, SHARD_PATTERN, SINGLE
from ctxforge.provenance import FILE_NAME
from ctxforge.publish.download import cached
from ctxforge.publish.files import Data, OnHub, Rewritten, Wanted
from ctxforge.publish.publication import CARD_DIGEST, README, REPORT, Publication, Results, encoded, without_paths
from ctxforge.publish.readme import Card, figure_names
from ctxforge.publish.repository import Repository
from ctxforge.publish.routes import Refused, Step, find_route


def plan_steps(
    wanted: tuple[Wanted, ...],
    source: Repository | None,
    target: Repository | None,
    results: Results,
    refused: Refused | None = None,
) -> tuple[Step, ...]:
    """The route of every file, in order of path; see `find_route`."""

    def here(one: Wanted) -> bool:
        inner = one.contents.source if isinstance(one.contents, Rewritten) else one.contents
        return isinstance(inner, OnHub) and source is not None and cached(source, inner.held) is not None

    return tuple(
        find_route(one, source, target, results=results.sha256, cached=here(one), refused=refused)
        for one in sorted(wanted, key=lambda one: one.path)
    )


def everything(
    wanted: Iterable[Wanted], publication: Publication, card: Card | None, record: Mapping[str, Any] | None
) -> tuple[Wanted, ...]:
    """All files: those of the checkpoint, and those that are made for the publication.

    Made are the card with its figures, the provenance and the report. Figures that came with the source are of another
    conversion, and stay behind.
    """
    made: dict[str, bytes] = {} if card is None else dict(card.files)
    if record is not None:
        digest = {} if card is None else {CARD_DIGEST: hashlib.sha256(card.files[README]).hexdigest()}
        made[FILE_NAME] = encoded({**record, **digest})
    if publication.report is not None:
        made[REPORT] = encoded(without_paths(publication.report))
    left = {*made, *(figure_names() if card is not None and card.drawn else ())}
    carried = [one for one in wanted if one.path not in left]
    return (*carried, *(Wanted(name, Data(data)) for name, data in made.items()))


def stale_files(
    steps: tuple[Step, ...], target: Repository | None, remote: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """Files of the target that an earlier push left and this one doesn't bring, and other sets of weights."""
    if target is None:
        return ()
    wanted = {step.wanted.path for step in steps}
    recorded = (remote or {}).get("files")
    ours = {*(recorded if isinstance(recorded, Mapping) else ()), *figure_names(), FILE_NAME}
    weights = (INDEX, SINGLE, BIN_INDEX, BIN_SINGLE)
    return tuple(
        name
        for name in sorted(target.files)
        if name not in wanted and (name in ours or name in weights or SHARD_PATTERN.fullmatch(name))
    )
