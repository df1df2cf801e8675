"""`ctxforge inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ctxforge.cli.options import bytes_text
from ctxforge.cli.output import Output, with_output

if TYPE_CHECKING:
    from ctxforge.pipeline import Inspection
    from ctxforge.rope import RopeGroup


@click.command(short_help="Show what a checkpoint's RoPE really is.", epilog="Example: ctxforge inspect bundled")
@click.argument("source")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub source.")
@with_output
def command(ui: Output, source: str, revision: str | None) -> None:
    """Show what SOURCE is: architecture, rotary tables, trained length and how it was decided, weights.

    Reads headers only; a Hub source's weights are not downloaded.
    """
    from ctxforge import pipeline

    found = pipeline.inspect(source, revision=revision)
    document = describe(found)
    trained = document["trained_length"]
    ui.heading(source)
    ui.pairs(
        [
            ("model type", document["model_type"]),
            ("positions", document["scheme"]),
            ("trained length", f"{trained if trained is not None else 'unknown'} ({document['evidence']})"),
            ("max_position_embeddings", str(document["max_position_embeddings"])),
            *_shape(document),
            ("parameters", f"{document['parameters']:,}" if document["parameters"] else "unknown until imported"),
            (
                "weights",
                f"{bytes_text(document['weight_bytes'])} in {len(document['shards'])} files, {document['dtypes']}",
            ),
            ("revision", str(document["revision"] or "-")),
        ]
    )
    for entry in document["rope"]:
        ui.heading(f"RoPE{' of ' + entry['layer_type'] if entry['layer_type'] else ''}")
        ui.pairs(
            [
                ("rotated dims", f"{entry['rotated_dims']} of {document['head_dim']}, {document['layout']}"),
                ("base", f"{entry['base']:g}"),
                ("in force", entry["in_force"]),
                ("layers", f"{len(entry['layers'])}, {len(entry['windowed_layers'])} of them windowed"),
            ]
        )
    ui.document("ok", document)


def _shape(document: dict[str, Any]) -> list[tuple[str, str]]:
    if document["scheme"] != "rope":
        rows = [("layers", f"{document['layers']}, {document['heads']} heads")]
        if document["scheme"] == "learned":
            rows.append(("rows before position 0", str(document["offset"])))
        return [*rows, ("sliding window", str(document["window"] or "none"))]
    return [
        ("layers", f"{document['layers']}, {document['heads']} heads of {document['head_dim']}"),
        ("sliding window", str(document["window"] or "none")),
        ("layers without RoPE", str(len(document["unrotated_layers"]) or "none")),
    ]


def describe(found: Inspection) -> dict[str, Any]:
    """The inspection as plain data."""
    from ctxforge.positions.types import PositionGeometry

    geometry, checkpoint = found.geometry, found.checkpoint
    document: dict[str, Any] = {
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "model_type": geometry.model_type,
        "scheme": geometry.scheme if isinstance(geometry, PositionGeometry) else "rope",
        "heads": geometry.heads,
        "layers": geometry.layers,
        "trained_length": geometry.trained_length,
        "original_length": geometry.original_length,
        "evidence": geometry.evidence,
        "max_position_embeddings": geometry.max_position_embeddings,
        "parameters": checkpoint.parameters,
        "weight_bytes": checkpoint.weight_bytes,
        "shards": list(checkpoint.shards),
        "dtypes": dict(checkpoint.dtypes),
        "weights": checkpoint.weights,
        "rope": [],
    }
    if isinstance(geometry, PositionGeometry):
        document |= {
            "offset": geometry.offset,
            "window": geometry.window,
            "windowed_layers": list(geometry.windowed_layers),
        }
    else:
        document |= {
            "layout": geometry.layout,
            "head_dim": geometry.head_dim,
            "window": geometry.window,
            "unrotated_layers": list(geometry.unrotated_layers),
            "rope": [_table(group) for group in geometry.groups],
        }
    return document


def _table(group: RopeGroup) -> dict[str, Any]:
    rotation = group.in_force
    scaling = "none"
    if not rotation.is_plain or rotation.length_dependent:
        scaling = f"divisors {min(rotation.divisors):.4g} ... {max(rotation.divisors):.4g}"
        scaling += f", a = {rotation.temperature:.5g}"
        scaling += ", follows the running length" if rotation.length_dependent else ""
    if rotation.code is not None:
        scaling = f"custom code: {rotation.code.name}, on {'plain frequencies' if scaling == 'none' else scaling}"
    return {
        "layer_type": group.layer_type,
        "rotated_dims": group.rotated_dims,
        "base": group.base,
        "in_force": scaling,
        "divisors": list(rotation.divisors),
        "temperature": rotation.temperature,
        "length_dependent": rotation.length_dependent,
        "layers": list(group.layers),
        "windowed_layers": list(group.windowed_layers),
    }
