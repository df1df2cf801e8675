"""The report: every engine's verdict on one config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctxforge.engines.classes import kind_of
from ctxforge.engines.compare import difference
from ctxforge.engines.context import make_context
from ctxforge.engines.measured import measured
from ctxforge.engines.peculiar import peculiarity
from ctxforge.engines.registry import find_engines
from ctxforge.engines.types import Context, Engine, EngineReport, EngineVerdict, Evidence, Reading, Verdict
from ctxforge.errors import CtxforgeError

_TRUST = "trust_remote_code=True"


def report(
    config: Mapping[str, Any],
    *,
    model_type: str | None = None,
    folder: str = "DIR",
    engines: tuple[str, ...] = (),
) -> EngineReport:
    """What each engine makes of a config, by the rules of its own reader.

    What is meant is what transformers 5 computes; engines are compared with it to 1e-6 in frequency and temperature.
    Costs milliseconds: nothing is run and no weight is read.

    Args:
        config: config.json, parsed.
        model_type: instead of the config's own.
        folder: the checkpoint's path, as it stands in the serve commands.
        engines: names of the engines to report on; empty for all.

    Raises:
        UsageError: an unknown engine.
        CheckpointError, UnsupportedError: the config is malformed, or its positions are not understood.
    """
    context = make_context(config, model_type)
    return EngineReport(tuple(_verdict(engine, context, folder) for engine in find_engines(engines)))


def _verdict(engine: Engine, context: Context, folder: str) -> EngineVerdict:
    verdict, detail, flags = _judge(engine, context)
    evidence: Evidence = "by reading"
    run = measured(engine, context, verdict) if verdict != "unknown" else None
    if run is not None and run[1]:
        evidence = "measured"
    elif run is not None:
        # Neither is to be believed alone: a rule misread, or a run that could not tell.
        verdict, detail = "unknown", f"by reading {verdict}{': ' + detail if detail else ''}; a run of {run[0]} differs"
    return EngineVerdict(
        engine=engine.name,
        versions=engine.versions,
        verdict=verdict,
        detail=detail,
        flags=flags,
        serve_command=_command(engine, context, folder, verdict, flags),
        source=engine.source,
        evidence=evidence,
    )


def _judge(engine: Engine, context: Context) -> tuple[Verdict, str, tuple[str, ...]]:
    """The verdict, its line and the settings it needs."""
    if context.code is not None:
        if engine.code is not None:
            return "refuses", f"custom code ({context.code}): {engine.code}", ()
        return "honours with flags", f"the checkpoint's own code ({context.code}), 5.12 or later", (_TRUST,)
    absent = _absent(engine, context)
    if absent is not None:
        return absent
    if context.scheme != "rope":
        return "honours", _POSITIONS[context.scheme], ()
    peculiar = None if engine.name == "transformers" else peculiarity(context)
    if peculiar is not None:
        return "unknown", f"not compared: {peculiar}", ()
    try:
        reading = engine.read(context)
    except CtxforgeError as error:
        return "refuses", f"its reader can't read this config: {error.cause}", ()
    if reading.refusal is not None:
        return "refuses", reading.refusal, ()
    if reading.doubt is not None:
        return "unknown", reading.doubt, ()
    line = difference(context.meant, reading)
    if line is not None:
        return "computes something else", line, ()
    return _honours(engine, context, reading)


_POSITIONS = {
    "learned": "takes the table's size from the config and its rows from the weights",
    "alibi": "slopes by head from the config, no length in them",
}


def _absent(engine: Engine, context: Context) -> tuple[Verdict, str, tuple[str, ...]] | None:
    """The verdict on a model that the engine lacks, or whose class nobody has read; None to go on."""
    if engine.classes is None:
        return None
    name = context.model_type if engine.by_model_type else context.class_name
    kind = kind_of(engine.classes, name)
    if kind is None:
        if engine.fallback == "refuses":
            return "refuses", f"it has no {name}", ()
        if context.scheme == "rope" and engine.by_model_type:
            return None
        return "unknown", f"it has no {name} of its own; its transformers backend may run it", ()
    if kind == "listed" and context.scheme == "rope" and not engine.by_model_type:
        return "unknown", f"it has {name}; how that class hands on the rope keys was not read", ()
    return None


def _honours(engine: Engine, context: Context, reading: Reading) -> tuple[Verdict, str, tuple[str, ...]]:
    """The right tables; what it takes to serve the right length."""
    notes = list(reading.notes)
    if not engine.length_setting or reading.served is None or reading.served == context.target:
        return "honours", "; ".join(notes), ()
    flags = [engine.length_setting.format(n=context.target)]
    if reading.served < context.target:
        notes.append(f"serves {reading.served} tokens by default")
        # The key may be there and null.
        if (context.inner.get("max_position_embeddings") or context.target) < context.target:
            flags.insert(0, engine.raise_setting)
    else:
        notes.append(f"would take {reading.served} tokens, the config means {context.target}")
    return "honours with flags", "; ".join(notes), tuple(flags)


def _command(engine: Engine, context: Context, folder: str, verdict: Verdict, flags: tuple[str, ...]) -> str:
    """The command, with environment variables before it; empty where nothing serves it."""
    if verdict == "refuses":
        return ""
    environment = [flag for flag in flags if flag.endswith("=1")]
    return " ".join((*environment, engine.serve(context, folder, context.target)))
