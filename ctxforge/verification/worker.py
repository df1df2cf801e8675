"""Computing one unit of a measurement on a loaded model, as plain data that a journal keeps."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.verification import retrieval
from ctxforge.verification.attention import attention_for
from ctxforge.verification.cache_check import cache_difference
from ctxforge.verification.needles import Haystack, plant
from ctxforge.verification.onepass import OnePass, Tick
from ctxforge.verification.perplexity import Losses
from ctxforge.verification.protocols.contexts import short_losses
from ctxforge.verification.protocols.longppl import LongPPLSettings
from ctxforge.verification.protocols.windows import as_scorer
from ctxforge.verification.settings import VerifySettings, measured_lengths
from ctxforge.verification.tasks import Frame, build_all, find_task, score
from ctxforge.verification.text import TokenText
from ctxforge.verification.units import Scope, Unit

# Units that keep no KV cache anywhere.
_CACHELESS = ("window", "short", "truncated", "protocol")


class Worker:
    """A model with everything that its units need.

    Args:
        model: a causal LM of transformers in evaluation mode, on its device.
        tokenizer: its tokenizer.
        tokens: the text.
        trained_length: L0 in tokens.
        target_length: L' in tokens.
        settings: what is measured.
        scope: what of it applies to this model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tokens: TokenText,
        trained_length: int,
        target_length: int,
        settings: VerifySettings,
        scope: Scope,
    ) -> None:
        self.model, self.tokenizer, self.tokens = model, tokenizer, tokens
        self.trained_length, self.target_length = trained_length, target_length
        self.settings, self.scope = settings, scope
        self.lengths = measured_lengths(settings, trained_length, target_length)
        self.runner = OnePass(model, settings.head_slice, longest=target_length)

    @cached_property
    def attention(self) -> str:
        """What the long passes attend with."""
        with attention_for(self.model, self.settings.attention, self.target_length) as name:
            return name

    @cached_property
    def way(self) -> str:
        """How the retrieval grid is computed on this model."""
        return retrieval.choose_way(self.runner)

    @cached_property
    def frame(self) -> Frame:
        """What stands around the tasks' contexts."""
        return task_frame(self.tokenizer, self.settings)

    def compute(self, unit: Unit, tick: Tick | None = None) -> dict[str, Any]:
        """The unit's value; the model's state, where it has any, is that of a short input before and after."""
        self.runner.settle()
        cacheless = unit.kind in _CACHELESS
        kinds = {
            "window": self._window,
            "short": self._short,
            "truncated": self._truncated,
            "haystack": self._haystack,
            "task": self._task,
            "protocol": self._protocol,
            "cache": self._cache,
        }
        with attention_for(self.model, self.settings.attention, self.target_length, cacheless=cacheless):
            value = kinds[unit.kind](unit, tick)
        self.runner.settle()
        return value

    def _window(self, unit: Unit, tick: Tick | None) -> dict[str, Any]:
        ids = self.tokens.window(unit.index, self.target_length)
        losses = {}
        for length in (self.target_length,) if self.runner.prefix_invariant else self.lengths:
            losses[str(length)] = self.runner.losses(ids[:length], tick).numpy().tolist()
            self.runner.settle()
        short: list[float] = []
        if self.scope.far_context and self.settings.far_context:
            document = ids[len(self.tokens.prefix) :]
            far = LongPPLSettings.scaled(self.trained_length)
            found = short_losses(
                as_scorer(self.runner), document, far.context, far.context, far.refresh, self.tokens.prefix
            )
            short = found.tolist()
        return {"losses": losses, "short": short}

    def _short(self, unit: Unit, tick: Tick | None) -> dict[str, Any]:
        losses = self.runner.losses(self.tokens.window(unit.index, unit.length), tick).numpy()
        return {"mean": float(losses.mean(dtype=np.float64))}

    def _truncated(self, unit: Unit, tick: Tick | None) -> dict[str, Any]:
        found = truncated_losses(self.runner, self.tokens, unit.index, self.trained_length, self.target_length, tick)
        return {"mean": float(found.mean(dtype=np.float64))}

    def _haystack(self, unit: Unit, tick: Tick | None) -> dict[str, Any]:
        haystack = haystack_for(
            self.tokenizer, self.tokens, self.lengths, self.target_length, unit.index, self.settings
        )
        found = retrieval.answers(self.runner, haystack, self.way, longest=unit.length, tick=tick)
        return {"way": self.way, "answers": [dataclasses.asdict(answer.scored(unit.index)) for answer in found]}

    def _task(self, unit: Unit, tick: Tick | None) -> dict[str, Any]:
        prompts = build_all(
            unit.name,
            self.frame,
            lengths=[unit.length],
            seeds=1,
            first_seed=unit.index,
            strata=self.settings.task_depths,
            data=dict(self.settings.task_data).get(unit.name),
        )
        scores = score(self.runner, self.tokenizer, list(prompts), tick=tick)
        return {"scores": [dataclasses.asdict(one) for one in scores]}

    def _protocol(self, unit: Unit, _tick: Tick | None) -> dict[str, Any]:
        from ctxforge.verification.protocol_documents import run_on_text

        found = run_on_text(unit.name, self.runner, self.tokenizer, self.tokens, self.lengths, self.settings)
        return {"results": [dataclasses.asdict(one) for one in found]}

    def _cache(self, _unit: Unit, _tick: Tick | None) -> dict[str, Any]:
        found = cache_difference(self.model, self.tokens.body, self.trained_length, self.target_length)
        return {"difference": found and found.largest, "rounding": found.rounding if found else 0.0}


def task_frame(tokenizer: Any, settings: VerifySettings) -> Frame:
    """The frame of the tasks' prompts: the chat template where there is one, unless the settings say otherwise."""
    chat = bool(getattr(tokenizer, "chat_template", None)) if settings.chat is None else settings.chat
    return Frame(tokenizer, chat=chat)


def fitting_tasks(tokenizer: Any, settings: VerifySettings, shortest: int) -> tuple[VerifySettings, tuple[str, ...]]:
    """The settings with the tasks whose prompts can be built at the shortest length, and why others were left out.

    Raises:
        UsageError: a task that does not exist, lacks its data set, or does not fit the length; for optional tasks this
            is a reason to leave them out.
        UnsupportedError: the tokenizer cannot spell a task's texts; likewise.
    """
    if not settings.tasks:
        return settings, ()
    frame = task_frame(tokenizer, settings)
    fitting: list[str] = []
    reasons: list[str] = []
    for given in settings.tasks:
        task = find_task(given)
        data = dict(settings.task_data).get(task.name)
        try:
            next(iter(build_all(task, frame, lengths=[shortest], seeds=1, strata=settings.task_depths, data=data)))
        except (UsageError, UnsupportedError) as error:
            if not settings.optional_tasks:
                raise
            reasons.append(f"task {task.name}: {error.cause}")
        else:
            fitting.append(task.name)
    return replace(settings, tasks=tuple(dict.fromkeys(fitting))), tuple(reasons)


def haystack_for(
    tokenizer: Any,
    tokens: TokenText,
    lengths: tuple[int, ...],
    target_length: int,
    seed: int,
    settings: VerifySettings,
) -> Haystack:
    """The haystack of number `seed`: later seeds begin further on in the text, as far as it reaches."""
    start = min(seed * target_length, max(len(tokens.body) - target_length, 0))
    return plant(
        tokenizer,
        tokens.body[start : start + target_length],
        lengths=lengths,
        strata=settings.needles,
        seed=seed,
        prefix=tokens.prefix,
    )


def truncated_losses(
    runner: OnePass, tokens: TokenText, index: int, trained_length: int, target_length: int, tick: Tick | None = None
) -> Losses:
    """Losses of a window's tokens beyond the trained length, each with at most that much context: [L' - L0].

    Windows of the trained length overlap by half, and each scores its second half, so that a token has between half
    and all of the trained length before it. The tokenizer's prefix stands in front of each.
    """
    ids = tokens.window(index, target_length)
    head = len(tokens.prefix)
    step = max(1, (trained_length - head) // 2)
    parts = []
    for begin in range(trained_length, target_length, step):
        end = min(begin + step, target_length)
        window = [*tokens.prefix, *ids[end - (trained_length - head) : end]]
        parts.append(runner.losses(window, tick).numpy()[begin - end :])
    return np.concatenate(parts)
