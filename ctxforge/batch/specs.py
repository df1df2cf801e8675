"""The format of batch files, as data: what `ctxforge schema` prints and what a file is checked against.

A job is the recipe of a conversion, how it is written, and what `extend --calibrate`, `verify` and `push` take.
The entries are the very fields of the objects that the command line fills; tests hold the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ctxforge.recipe import ConversionRecipe, MethodChoice, Scalar

SECTIONS = ("calibrate", "verify", "push", "resources")
"""Entries of a job that are merged with the defaults' entry by entry; all others replace theirs."""

FORBID: dict[str, str] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class CalibrateSpec:
    """`extend --calibrate`: a fine-tune of what was converted.

    Attributes:
        recipe: a name, a .toml or .json file, or the fields of a recipe with `base`, the recipe that they change.
        changes: of the recipe, "section.field=value" (`--set`).
        steps: in place of the recipe's.
        data: sources of documents, as `--data` takes them; empty for the bundled model's own.
        guard_paths: texts that will be verified on; the text of `verify` is one already.
        seed: of everything that is drawn.
        work: folder of the run; beside the output by default.
        save_every: steps between states.
        tracker: send the numbers there too.
        dtype, attention, trust_remote_code: how models are loaded.
        device: auto or cpu.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    recipe: str | dict[str, Any] = "quick"
    changes: tuple[str, ...] = ()
    steps: int | None = None
    data: tuple[str, ...] = ()
    guard_paths: tuple[str, ...] = ()
    seed: int = 0
    work: str | None = None
    save_every: int | None = None
    tracker: Literal["tensorboard", "wandb"] | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: str = "auto"
    trust_remote_code: bool = False
    device: Literal["auto", "cpu"] = "auto"


@dataclass(frozen=True, kw_only=True)
class VerifySpec:
    """`verify`: measure the result, and judge it by gates. What is not said is the tier's.

    Attributes:
        tier: how much is measured and which gates count.
        text_path: UTF-8 text, at least as long as the target; for the bundled model its own by default.
        gates: thresholds by name, or a TOML or JSON file with a table [gates].
        strict: an inconclusive gate counts as failed.
        source: the checkpoint it was made from; the job's by default.
        to, trained_length: lengths; the plan's by default.
        lengths: report these.
        buckets, windows, needles, seeds, short_windows, retrieval: how much of what is measured.
        tasks, task_data, task_seeds, task_depths, chat: tasks besides, and data sets for them by task.
        protocols, far_context, source_curve: measurements besides.
        lm_eval, lm_eval_limit, lm_eval_include: what is handed over to lm-eval.
        dtype, device, attention, trust_remote_code: how models are loaded.
        plot, report, junit: files to write; may hold {name} and the like, as `out` does.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    tier: Literal["smoke", "quick", "standard", "full"] = "quick"
    text_path: str | None = None
    gates: str | dict[str, Any] | None = None
    strict: bool = False
    source: str | None = None
    to: str | int | None = None
    trained_length: str | int | None = None
    lengths: tuple[str | int, ...] | None = None
    buckets: int | None = None
    windows: int | None = None
    needles: int | None = None
    seeds: int | None = None
    short_windows: int | None = None
    retrieval: bool = True
    tasks: tuple[str, ...] | None = None
    task_data: dict[str, str] = field(default_factory=dict)
    task_seeds: int | None = None
    task_depths: int | None = None
    chat: bool | None = None
    protocols: tuple[str, ...] | None = None
    far_context: bool | None = None
    source_curve: bool | None = None
    lm_eval: tuple[str, ...] = ()
    lm_eval_limit: int | None = None
    lm_eval_include: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    attention: str = "auto"
    trust_remote_code: bool = False
    plot: str | None = None
    report: str | None = None
    junit: str | None = None


@dataclass(frozen=True, kw_only=True)
class PushSpec:
    """`extend --push`: publish the result in one commit.

    Attributes:
        repo: `name` or `owner/name`, which may hold {name} and the like, as `out` does; None for
            `<you>/<model>-<method>-<length>`.
        private: make a new repository private, or public; None for the owner's default.
        branch: commit there instead of to main.
        create_pr: open a pull request instead of committing.
        message: the commit's title; None for one that says what was done.
        force: publish a folder that fails `ctxforge check`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    repo: str | None = None
    private: bool | None = None
    branch: str | None = None
    create_pr: bool = False
    message: str | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class ResourceSpec:
    """What a job needs, for executors that place jobs.

    Attributes:
        cpus, gpus: how many; a part of one is allowed.
        memory: bytes, or text such as 8GB.
        minutes: after which Slurm ends it.
        slurm: further parameters for Slurm by name, such as partition.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    cpus: float = 1
    gpus: float = 0
    memory: str | int | None = None
    minutes: int | None = None
    slurm: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class JobSpec(ConversionRecipe):
    """One conversion and what follows it. The entries of `extend`, by their names in a recipe.

    Attributes:
        method: what to do: text as `--method` takes it, or its fields; may be left out beside `attach`.
        attach: an attention system for the result: text as `--attach` takes it, or its fields.
        name: what the job is called; SOURCE-METHOD-LENGTH by default.
        out: folder to write, below `output`; may hold {name} {source} {method} {length} {to}. The name by default.
        link: hardlink untouched files to the source's.
        overwrite: replace an existing output, at the very end.
        checksum: record the sha256 of copied weights too.
        share: let outputs of one source share the files that none of them changes, where they would be copied: as
            blocks, or as hard links that are read-only.
        calibrate: a fine-tune; a recipe's name alone will do.
        verify: gates; true, or a tier's name alone, will do.
        push: publishing; true, or a repository's name alone, will do.
        resources: what the job needs.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    method: MethodChoice = field(default_factory=lambda: MethodChoice(name="none"))
    name: str | None = None
    out: str | None = None
    link: bool = False
    overwrite: bool = False
    checksum: bool = False
    share: bool = True
    calibrate: CalibrateSpec | None = None
    verify: VerifySpec | None = None
    push: PushSpec | None = None
    resources: ResourceSpec = field(default_factory=ResourceSpec)


@dataclass(frozen=True, kw_only=True)
class ExcludeSpec:
    """Combinations that a matrix leaves out; * stands for anything, and what is not named is anything.

    Attributes:
        model: the source as written.
        method: the method, with modifiers after a plus sign.
        length: the target as written.
        attach: the attention system.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    model: str | None = None
    method: str | None = None
    length: str | int | None = None
    attach: str | None = None


@dataclass(frozen=True, kw_only=True)
class MatrixSpec:
    """Every model with every method at every length.

    Attributes:
        models: sources, or entries of a job with `source`.
        methods: methods as text, their fields, or entries of a job with `method` or `attach`.
        lengths: targets.
        exclude: combinations that are left out.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    models: tuple[Any, ...] = ()
    methods: tuple[Any, ...] = ()
    lengths: tuple[str | int, ...] = ()
    exclude: tuple[ExcludeSpec, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BatchFile:
    """A batch file. Version 1.

    Attributes:
        version: of this format.
        include: files whose contents stand before this one's; relative to this file.
        output: folder for outputs.
        defaults: entries of every job.
        jobs: jobs one by one.
        matrix: one matrix, or several.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID

    version: Literal[1] = 1
    include: tuple[str, ...] = ()
    output: str | None = None
    defaults: JobSpec | None = None
    jobs: tuple[JobSpec, ...] = ()
    matrix: MatrixSpec | tuple[MatrixSpec, ...] | None = None
