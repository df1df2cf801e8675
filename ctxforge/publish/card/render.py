"""A conversion's model card: front matter, our part between two marks, and the source's own card below it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ctxforge.errors import CtxforgeError, UsageError
from ctxforge.publish.card import changes, figures, reproduce
from ctxforge.publish.card.calibrations import calibration_views
from ctxforge.publish.card.evaluation import evaluations
from ctxforge.publish.card.evidence import Evidence, evidence
from ctxforge.publish.card.limits import limits
from ctxforge.publish.card.markdown import Markdown, code, escape, fenced, render
from ctxforge.publish.card.metadata import front_matter
from ctxforge.publish.card.record import Record, mapping, read_record
from ctxforge.publish.card.serving import serving
from ctxforge.publish.card.source_card import BEGIN, END, SourceCard, read_source_card
from ctxforge.publish.card.stored import read_report
from ctxforge.publish.card.types import CardInput, RenderedCard
from ctxforge.sources import BUNDLED

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from ctxforge.verification.report import VerifyReport

_ID = re.compile(r"\w[\w.-]{0,95}(?:/\w[\w.-]{0,95})?", re.ASCII)


def render_card(given: CardInput) -> RenderedCard:
    """README.md of a conversion and the figures that it shows.

    The same input gives the same bytes; there is no date in it. Given a card that was rendered here as the source's,
    our part of it is replaced: rendering twice is rendering once.

    Raises:
        UsageError: a repository id that is none, or a verification report that can't be read. Nothing in the source's
            card or in the provenance raises.
    """
    if not _ID.fullmatch(given.repo_id):
        raise UsageError(f"{given.repo_id[:100]!r} is not a repository id", "write it as owner/name")
    remarks: tuple[str, ...] = ()
    if given.source_id is not None and not _ID.fullmatch(given.source_id):
        remarks = (f"the source {given.source_id[:100]!r} is no repository id, so the card names no base model",)
        given = replace(given, source_id=None, source_revision=None)
    source, record = read_source_card(given.source_card_text), read_record(given.provenance)
    report = None if given.verify_report is None else read_report(given.verify_report)
    name = given.repo_id.rsplit("/", 1)[-1]
    results, drawn, measured = _measured(record, report)
    head, left_out = front_matter(
        source.metadata,
        model_name=name,
        base_model=None if given.source_id == given.repo_id else given.source_id,
        record=record,
        config=given.config,
        evaluations=results,
    )
    values = _values(given, source, record, report)
    figure_names = {name: Markdown(name) for name in drawn}
    section = render("section.md.j2", **values, name=name, figures=figure_names, evidence=measured)
    section = re.sub(r"\n{3,}", "\n\n", section).strip("\n")
    text = f"---\n{head}\n---\n\n{BEGIN}\n\n{section}\n\n{END}\n"
    if source.body:
        text += f"\n{source.body}"
    return RenderedCard(text, drawn, (*remarks, *source.remarks, *left_out))


def _measured(
    record: Record, report: VerifyReport | None
) -> tuple[list[EvalResult], dict[str, bytes], Evidence | None]:
    """The results, the figures and the tables of a report; nothing but the plan's figure without one.

    Raises:
        UsageError: the report contradicts itself, such as more answers than prompts.
    """
    if report is None:
        return [], figures.draw(record, None), None
    try:
        return evaluations(report), figures.draw(record, report), evidence(report, record)
    except (CtxforgeError, ArithmeticError, ValueError, TypeError, LookupError) as error:
        raise UsageError(
            f"the verification report contradicts itself: {error}", "give a report as ctxforge verify wrote it"
        ) from error


def _values(given: CardInput, source: SourceCard, record: Record, report: VerifyReport | None) -> dict[str, Any]:
    methods, attachment = changes.explain_method(record.method), changes.explain_attachment(record.attachment)
    before, after, scale = changes.lengths(record)
    return {
        "source": _source(given, record),
        "revision": given.source_revision,
        "has_card": bool(source.body),
        "licence": _licence(source.metadata),
        "record": record,
        "before": before,
        "after": after,
        "scale": scale,
        "methods": methods,
        "attachment": attachment,
        "needs_code": bool(given.config.get("auto_map")),
        "method_parameters": changes.parameters(mapping(record.plan, "parameters")),
        "attachment_parameters": changes.parameters(record.attachment_parameters),
        "temperatures": changes.temperatures(record),
        "rotation": changes.rotation_table(record),
        "pairs": changes.pair_table(record),
        "config_keys": changes.config_keys(given.config),
        "tensors": changes.tensors(record),
        "calibrations": calibration_views(record),
        "files": figures,
        "serving": serving(given.config, given.repo_id, given.branch),
        "fenced": fenced,
        "limits": limits(record, report, given.config, methods, attachment),
        "commands": reproduce.commands(
            record,
            source=given.source_id or reproduce.source_name(record),
            revision=given.source_revision if given.source_id else None,
            out=given.repo_id.rsplit("/", 1)[-1],
        ),
    }


def _source(given: CardInput, record: Record) -> Markdown:
    """The source by name: a link where it is on the Hub, never a path."""
    link = ""
    if given.source_id is not None:
        link = f"[{escape(given.source_id)}](https://huggingface.co/{given.source_id})"
        if reproduce.made_from(record, given.source_id):
            return Markdown(link)
    name = reproduce.source_name(record)
    if name == BUNDLED:
        return Markdown("the model that is bundled with ctxforge")
    return Markdown(f"a local checkpoint, {code(name)}" + (f", made from {link}" if link else ""))


def _licence(metadata: Mapping[str, Any]) -> str:
    """The licence as the source's card names it; empty where it names none."""
    named = [metadata.get(key) for key in ("license", "license_name")]
    flat = [entry for one in named for entry in (one if isinstance(one, list) else [one])]
    return ", ".join(dict.fromkeys(entry for entry in flat if isinstance(entry, str) and entry.strip()))
