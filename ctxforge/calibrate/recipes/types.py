"""What a calibration does, as data. Named recipes, files and the command line fill the same objects.

Frozen dataclasses without torch or numpy, because the command line reads them before anything heavy is imported. None
stands for a number that follows from the model and its lengths (`plan.make_plan`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ctxforge.calibrate.adapters.recipe import AdapterRecipe

Placement = Literal["full-length", "pose", "cream", "randomised", "mixed-windows"]
Attention = Literal["full", "shifted-sparse"]
Shape = Literal["constant", "linear", "cosine"]
Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class RowRecipe:
    """What the rows of a batch are, and where their tokens stand.

    Attributes:
        placement: full-length: texts of `length` at their own positions. pose, cream: chunks of a text at positions up
            to the target (2309.10400, 2406.07138). randomised: fractional positions (2308.10882). mixed-windows:
            documents of at most the trained length keep the source's own rotation (2502.20082).
        length: tokens of a long row: a count, 8k, or 0.5x of the target; None: the target, and for pose and cream the
            trained length up to 4096.
        count: rows of a batch over all processes; None: 8, and fewer where rows are longer than 4096.
        chunks: of a pose row.
        content: of a pose row: chunks from anywhere in a text, in order, or one text without gaps whose positions jump.
        reach: sampled chunks, and cream's, are cut from a text of up to this many row lengths.
        short_share: of the rows, those that hold short documents end to end.
        short_length: tokens of a short row, at most; None: the trained length up to a row's own.
        first_share: of the steps, those before the length grows from the trained length to `length`.
        attention: shifted-sparse: LongLoRA's S2-Attn while training (2309.12307); evaluation and the result use all.
        group: tokens of a group of it; None: a quarter of the row.
    """

    placement: Placement = "full-length"
    length: str | int | None = None
    count: int | None = None
    chunks: int = 2
    content: Literal["sampled", "contiguous"] = "sampled"
    reach: float = 5.0
    short_share: float = 0.3
    short_length: str | int | None = None
    first_share: float = 0.0
    attention: Attention = "full"
    group: int | None = None


@dataclass(frozen=True, kw_only=True)
class OptimiserRecipe:
    """How weights move.

    Attributes:
        kind: adamw, or adamw-8bit (an extra, on GPUs).
        learning_rate: at its highest; None: 3e-4 for low-rank changes and 2e-5 for whole weights of a model 4096 wide,
            and as the inverse of the width beside that (2203.03466).
        whole_learning_rate: of tensors trained whole beside low-rank changes; None: a tenth of `learning_rate`.
        schedule: constant with a linear fall over the last tenth, linear, or cosine.
        warmup: steps of linear growth before it.
        final: the rate at the end as a share of the highest.
        betas, weight_decay: of AdamW.
        clip: largest norm of a step's gradient; None to leave it as it is.
    """

    kind: Literal["adamw", "adamw-8bit"] = "adamw"
    learning_rate: float | None = None
    whole_learning_rate: float | None = None
    schedule: Shape = "constant"
    warmup: int = 10
    final: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float | None = 1.0


@dataclass(frozen=True, kw_only=True)
class ObjectiveRecipe:
    """What is minimised.

    Attributes:
        kind: ce: the mean loss of the tokens that count. longce: each weighed by what far context is worth to it
            (2410.23771).
        restoration: weight beside it of the distance between hidden states and the source's own, within the trained
            length (2502.07365); left out where the source is not at hand. It takes the source's weights in memory too.
        train_on: of chats: answers, everything, or answers and long prompts (2309.16039, section 4.2). Plain text
            counts whole.
        context, refresh, ceiling: of longce; None: half the trained length up to 4096, and a quarter of that.
    """

    kind: Literal["ce", "longce"] = "ce"
    restoration: float = 0.0
    train_on: Literal["answers", "all", "long-prompts"] = "answers"
    context: int | None = None
    refresh: int | None = None
    ceiling: float = 5.0


@dataclass(frozen=True, kw_only=True)
class HeldOutRecipe:
    """What is measured meanwhile, and what decides which step is kept.

    Attributes:
        share: of the documents that are held out, by their hash; of each document's tokens where there are few.
        windows: of the target length.
        short_windows: of half the trained length.
        every: steps between measurements; None: an eighth of the steps.
        allowed_short: nats a token that short texts may lose before a step's score falls.
        patience: measurements without a better score after which training stops; None: never early.
    """

    share: float = 0.05
    windows: int = 4
    short_windows: int = 16
    every: int | None = None
    allowed_short: float = 0.02
    patience: int | None = 4


@dataclass(frozen=True, kw_only=True)
class MemoryRecipe:
    """How a step is made to fit. `auto` turns on what is needed, in the order of what it costs.

    Attributes:
        checkpointing: keep each layer's input alone.
        tiled_mlp: run MLPs over a few tokens at a time.
        offload: keep layers' inputs in the processor's memory; on GPUs.
        tokens_at_once: of a forward pass, at most one row's where rows are longer; None: 16 384 on a GPU, 4096 on a
            CPU.
    """

    checkpointing: Switch = "auto"
    tiled_mlp: Switch = "auto"
    offload: Switch = "auto"
    tokens_at_once: int | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrationRecipe:
    """A calibration.

    Attributes:
        name: what it is called in records.
        about: one line for the list of recipes.
        steps: of the optimiser.
        rows, adapter, optimiser, objective, held_out, memory: see there.
        scale_base: of xPos: fixed, annealed from none to the target's own, or giraffe's schedule (2308.10882).
        anneal_share: of the steps that an annealed scale base takes.
    """

    name: str
    about: str = ""
    steps: int = 200
    rows: RowRecipe = field(default_factory=RowRecipe)
    adapter: AdapterRecipe = field(default_factory=AdapterRecipe)
    optimiser: OptimiserRecipe = field(default_factory=OptimiserRecipe)
    objective: ObjectiveRecipe = field(default_factory=ObjectiveRecipe)
    held_out: HeldOutRecipe = field(default_factory=HeldOutRecipe)
    memory: MemoryRecipe = field(default_factory=MemoryRecipe)
    scale_base: Literal["fixed", "annealed", "giraffe"] = "fixed"
    anneal_share: float = 0.5
