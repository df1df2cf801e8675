"""`ctxforge calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxforge.cli.output import Output, with_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctxforge.calibrate.run.foreseen import Foreseen
    from ctxforge.calibrate.run.request import Calibrated
    from ctxforge.calibration import CalibrationOptions


RUN_OPTIONS = {
    "data": "--data",
    "steps": "--steps",
    "changes": "--set",
    "seed": "--seed",
    "work": "--work",
    "save_every": "--save-every",
    "tracker": "--tracker",
    "guard_paths": "--guard-text",
}


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """How a calibration is run: what `calibrate` and `extend --calibrate` share."""
    decorators = (
        click.option(
            "--data",
            multiple=True,
            metavar="SPEC",
            help="FILE.jsonl[.gz|.zst][#column][::weight], FILE.txt, FOLDER, FILE.parquet or"
            " hf://name:config:split@revision#column; may be repeated.",
        ),
        click.option("--steps", type=click.IntRange(1), help="Steps of the optimiser, in place of the recipe's."),
        click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change the recipe: rows.count=8."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything drawn."),
        click.option(
            "--work",
            type=click.Path(path_type=Path),
            help="Folder of the run; default: OUT.calibration beside the output.",
        ),
        click.option(
            "--save-every", type=click.IntRange(1), help="Steps between states; default: a tenth, at most 50."
        ),
        click.option("--tracker", type=click.Choice(["tensorboard", "wandb"]), help="Send the numbers there too."),
        click.option(
            "--guard-text",
            "guard_paths",
            multiple=True,
            type=click.Path(path_type=Path),
            help="A text to be verified on: documents that share a passage with it are left out.",
        ),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


@click.command(
    short_help="Fine-tune an extended checkpoint, and merge the result.",
    epilog="Example: ctxforge calibrate llama-64k --data books.jsonl --recipe quick --out llama-64k-tuned",
)
@click.argument("folder")
@click.option(
    "--recipe",
    "recipe_name",
    default="quick",
    show_default=True,
    metavar="NAME|FILE",
    help="quick, full, longlora, pose, abf, mixed, drope, xpos, giraffe, or a .toml or .json file.",
)
@run_options
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, help="Folder to write; must not exist.")
@click.option("--source", metavar="SRC", help="The checkpoint before the extension; default: the recorded one.")
@click.option("--to", metavar="LENGTH", help="Target length; default: the recorded one.")
@click.option("--trained-length", metavar="LENGTH", help="Trained length; default: the recorded one.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@click.option("--attention", default="auto", show_default=True, help="auto, or one of transformers' by its name.")
@click.option("--shard", is_flag=True, help="Split weights and states over the processes (FSDP2).")
@click.option(
    "--context", type=click.IntRange(1), default=1, show_default=True, help="Processes that share one sequence."
)
@click.option(
    "--context-backend", type=click.Choice(["ring", "ulysses"]), default="ring", show_default=True, help="How."
)
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be done; train nothing.")
@click.option("--link", is_flag=True, help="Hardlink untouched files instead of copying them.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, at the very end.")
@click.option("--fresh", is_flag=True, help="Drop what an interrupted run left, and start anew.")
@click.option("--trust-remote-code", is_flag=True, help="Run the modeling code inside FOLDER. Read it first.")
@with_output
def command(
    ui: Output,
    folder: str,
    recipe_name: str,
    out: Path,
    source: str | None,
    to: str | None,
    trained_length: str | None,
    plan_only: bool,
    **options: Any,
) -> None:
    """Fine-tune FOLDER, what `extend` wrote, as a recipe says, and write the merged checkpoint to --out.

    Which step is kept is decided by held-out text: what far context is worth at the target length, less what short
    text lost. An interrupted run goes on by the same command. For several processes: accelerate launch -m ctxforge
    calibrate ...
    """
    from ctxforge import calibration
    from ctxforge.calibrate.recipes import read_recipe
    from ctxforge.lengths import parse_length

    recipe = read_recipe(recipe_name, options.pop("changes"), steps=options.pop("steps"))
    chosen = build_options(**options)
    lengths = {
        "trained_length": None if trained_length is None else parse_length(trained_length),
        "target_length": None if to is None else parse_length(to),
    }
    if plan_only:
        request = calibration.make_request(folder, out, recipe, chosen, source=source, **lengths)
        show_plan(ui, request)
        return
    with ui.steps() as progress:
        found = calibration.calibrate(folder, out, recipe, chosen, source=source, **lengths, progress=progress)
    if found is not None:
        report(ui, found)
        ui.document("ok", {"calibration": found.document()})


def build_options(
    data: tuple[str, ...] = (),
    seed: int = 0,
    work: Path | None = None,
    save_every: int | None = None,
    tracker: str | None = None,
    guard_paths: tuple[Path, ...] = (),
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    shard: bool = False,
    context: int = 1,
    context_backend: str = "ring",
    link: bool = False,
    overwrite: bool = False,
    fresh: bool = False,
    trust_remote_code: bool = False,
) -> CalibrationOptions:
    """The options that the command line describes."""
    from ctxforge.calibrate.parallel import ParallelOptions
    from ctxforge.calibration import CalibrationOptions
    from ctxforge.cli.files import read_text

    return CalibrationOptions(
        data=data,
        guard_texts=tuple(read_text(path, "") for path in guard_paths),
        seed=seed,
        work=work,
        save_every=save_every,
        fresh=fresh,
        overwrite=overwrite,
        link=link,
        dtype=dtype,
        attention=attention,
        trust_remote_code=trust_remote_code,
        parallel=ParallelOptions(
            shard=shard,
            context=context,
            context_backend="ulysses" if context_backend == "ulysses" else "ring",
            cpu=device == "cpu",
            tracker=tracker,
            project_dir=work,
        ),
    )


def show_plan(ui: Output, request: Any) -> None:
    """What a calibration would do, and what memory it would take."""
    from ctxforge.calibrate.run.foreseen import foresee
    from ctxforge.verification.processes import launched

    plan = request.plan
    found = foresee(request, launched())
    recipe = plan.recipe
    ui.heading(f"{recipe.name}: {recipe.about}" if recipe.about else recipe.name)
    stages = "; then ".join(
        f"{stage.steps} steps of {stage.rows} rows of {stage.length} tokens" for stage in plan.stages
    )
    ui.pairs(
        [
            ("lengths", f"{plan.trained_length} -> {plan.target_length} tokens"),
            ("rows", f"{recipe.rows.placement}, {recipe.rows.short_share:.0%} of them short: {stages}"),
            ("tokens", f"{plan.tokens:,}"),
            ("trained", f"{recipe.adapter.kind}, rates {plan.low_rank_rate:.3g} and {plan.whole_rate:.3g} (whole)"),
            ("measured", f"every {plan.every} steps on {recipe.held_out.share:.0%} of the data"),
            ("memory", _memory(found)),
            ("data", ", ".join(request.data) or "none given"),
            ("run", str(request.work)),
        ]
    )
    memory = found.document()
    ui.document(
        "ok", {"plan": plan.document(), "memory": memory, "data": list(request.data), "work": str(request.work)}
    )


def _memory(found: Foreseen) -> str:
    """What a step takes, how it is made to fit, and what there is."""
    from ctxforge.calibrate.memory.estimate import gibibytes

    options = found.options
    ways = [
        name
        for name, used in (
            ("checkpointed layers", options.checkpoint),
            ("tiled MLPs", options.tile_tokens is not None),
            ("offloaded inputs", options.offload),
        )
        if used
    ]
    has = "" if found.memory is None else f" of {gibibytes(found.memory)}"
    source = f", {gibibytes(found.source)} of it for the source" if found.source else ""
    return f"about {gibibytes(found.total)}{has} on the {found.device}{source}{'; ' + ', '.join(ways) if ways else ''}"


def report(ui: Output, found: Calibrated) -> None:
    """What a calibration did, for people."""
    trainings = found.trained.trainings
    best, written = found.best, found.written
    ui.text(str(found.out))
    ui.note(
        f"{found.plan.recipe.name}: {trainings.step} steps, {trainings.tokens:,} tokens in {trainings.seconds:.0f} s,"
        f" {found.trained.parameters:,} numbers trained; {trainings.ended}"
    )
    against = "the source cut to its length" if best.relative_to == "source" else "the checkpoint before, cut to L0"
    use = "not measured" if best.use is None else f"{best.use:+.3f} nats a token against {against}"
    ui.note(f"step {found.best_step} was kept: far context {use}; short text {best.short_regression:+.3f}")
    now = "" if written.use is None else f"far context {written.use:+.3f}; "
    ui.note(f"as written and loaded again: {now}short text {written.short_regression:+.3f}")
    for line in (*found.trained.notes, *found.trained.windows.notes):
        ui.note(line)
    if found.best_step == 0:
        ui.warn("no step scored better on held-out text than the checkpoint before: the weights are unchanged")
    ui.note(f"log: {found.log}")
