"""transformers 5: what every other engine is compared with.

Source: huggingface/transformers v5.24.0, src/transformers/modeling_rope_utils.py, by `ctxforge.rope.reader`.
"""

from __future__ import annotations

from ctxforge.engines.types import Context, Engine, Reading


def read(context: Context) -> Reading:
    """What is meant, by definition."""
    notes: tuple[str, ...] = ()
    if any(table.follows for table in context.meant.values()):
        notes = ("cached keys are not rotated anew: cached decoding differs from one pass over the whole text",)
    return Reading(dict(context.meant), notes=notes)


def snippet(context: Context, folder: str, _length: int) -> str:
    """Python that loads and runs the checkpoint."""
    trust = ", trust_remote_code=True" if context.code is not None else ""
    return (
        'python -c "from transformers import pipeline;'
        f" print(pipeline('text-generation', '{folder}'{trust})('Once upon a time')[0]['generated_text'])\""
    )


ENGINES = (
    Engine(
        name="transformers",
        versions="5.x",
        source="huggingface/transformers@v5.24.0:src/transformers/modeling_rope_utils.py",
        read=read,
        serve=snippet,
        fallback="transformers",
        code=None,
        runs=("transformers", "transformers 5."),
    ),
)
