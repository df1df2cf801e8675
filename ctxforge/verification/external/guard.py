"""lm-eval's transformers model with a length budget: what does not fit is never cut, and never run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, cast

from ctxforge.errors import InternalError, UsageError
from ctxforge.verification.external.budget import Budget, LeftOut

Tick = Callable[[int, int], None]
Key = tuple[str, int]


class BudgetGuard:
    """What is put in front of `lm_eval.models.huggingface.HFLM`.

    Requests are counted the way HFLM will encode them. Those of a document that does not fit get a placeholder answer
    and the document is noted in `left_out`; its scores have to be dropped by whoever reads the samples. HFLM's own two
    places that cut raise `InternalError` when they would cut anything.
    """

    # HFLM's, which comes after this class in the order of resolution.
    max_length: int
    max_gen_toks: int
    prefix_token_id: int

    def __init__(self, *arguments: Any, label: str, refuse: bool, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.label = label
        self.refuse = refuse
        self.nominal: int | None = None
        self.left_out: dict[Key, LeftOut] = {}
        self.longest: dict[str, int] = {}
        self.tick: Tick | None = None
        self._done = self._total = 0

    def begin(self, nominal: int | None, tick: Tick | None) -> None:
        """Forget the documents of the task before; `nominal` is the length of the next one, for RULER."""
        self.left_out, self.longest = {}, {}
        self.nominal, self.tick = nominal, tick

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """HFLM's, for the requests whose prompt leaves room for what is to be generated."""
        del disable_tqdm
        for request in requests:
            context, asked = request.args
            if "max_length" in asked:
                raise UsageError(
                    f"task {request.task_name!r} sets `max_length` in its generation_kwargs, which counts the prompt.",
                    "Set `max_gen_toks` in the task's file.",
                )
            generated = generated_tokens(asked, self.max_gen_toks)
            tokens = int(cast(Any, super()).tok_batch_encode([context])[0].shape[1])
            self._admit(request, tokens, generated, Budget(self.max_length).fits_generation(tokens, generated))
        return self._answer(requests, "", cast(Any, super()).generate_until)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """HFLM's, for documents whose every choice fits."""
        del disable_tqdm
        for request in requests:
            context, continuation = request.args
            first, second = self._pair(context, continuation)
            fits = Budget(self.max_length).fits_scoring(first, second)
            self._admit(request, first + second - 1, 0, fits)
        return self._answer(requests, (0.0, False), cast(Any, super()).loglikelihood)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused: it splits a text into windows of `max_length`, which is a perplexity protocol and not a score."""
        del disable_tqdm
        names = sorted({str(request.task_name) for request in requests})
        raise rolling_error(names[0] if names else "?")

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Any, Any]:
        """HFLM's, which may not cut."""
        del truncation
        ids, mask = cast(Any, super()).tok_batch_encode(strings, padding_side=padding_side)
        self._demand(left_truncate_len is None or ids.shape[1] <= left_truncate_len, ids.shape[1], left_truncate_len)
        return ids, mask

    def _loglikelihood_tokens(self, requests: Sequence[Any], *arguments: Any, **settings: Any) -> Any:
        budget = Budget(self.max_length)
        for _, context, continuation in requests:
            fits = budget.fits_scoring(len(context), len(continuation))
            self._demand(fits, len(context) + len(continuation), self.max_length)
        return cast(Any, super())._loglikelihood_tokens(requests, *arguments, **settings)

    def _model_generate(self, context: Any, *arguments: Any, **settings: Any) -> Any:
        made = cast(Any, super())._model_generate(context, *arguments, **settings)
        self._count(int(context.shape[0]))
        return made

    def _model_call(self, inps: Any, *arguments: Any, **settings: Any) -> Any:
        logits = cast(Any, super())._model_call(inps, *arguments, **settings)
        self._count(int(inps.shape[0]))
        return logits

    def _pair(self, context: str, continuation: str) -> tuple[int, int]:
        """Tokens of context and continuation as TemplateLM.loglikelihood encodes them."""
        if context:
            first, second = cast(Any, self)._encode_pair(context, continuation)
            return len(first), len(second)
        ids = cast(Any, self).tok_encode(continuation, add_special_tokens=False)
        # Without a context the prefix token is one, unless the continuation brings it along.
        return (1, len(ids) - 1) if ids[:1] == [self.prefix_token_id] else (1, len(ids))

    def _admit(self, request: Any, tokens: int, generated: int, fits: bool) -> None:
        task, document = str(request.task_name), int(request.doc_id)
        if fits:
            self.longest[task] = max(self.longest.get(task, 0), tokens + generated)
            return
        found = LeftOut(self.label, task, document, self.nominal, tokens, generated, self.max_length)
        if self.refuse:
            raise UsageError(
                f"document {document} of {task} has {tokens} tokens and asks for {generated} more, and the "
                f"{self.label} sees {self.max_length}.",
                "Leave such documents out, or use a model with a longer context.",
            )
        # Of several choices the longest is kept.
        before = self.left_out.get((task, document))
        if before is None or before.tokens < tokens:
            self.left_out[task, document] = found

    def _answer(self, requests: Sequence[Any], placeholder: Any, run: Callable[..., list[Any]]) -> list[Any]:
        kept = [request for request in requests if (str(request.task_name), int(request.doc_id)) not in self.left_out]
        self._done, self._total = 0, len(kept)
        answers = iter(run(kept, disable_tqdm=True) if kept else [])
        found = [
            placeholder if (str(request.task_name), int(request.doc_id)) in self.left_out else next(answers)
            for request in requests
        ]
        if self.tick is not None and kept:
            self.tick(self._total, self._total)
        return found

    def _count(self, rows: int) -> None:
        self._done += rows
        # Choices that share a forward are fewer rows than requests, so the last tick is `_answer`'s.
        if self.tick is not None and self._done < self._total:
            self.tick(self._done, self._total)

    def _demand(self, fits: bool, tokens: int, limit: int | None) -> None:
        if not fits:
            raise InternalError(
                f"lm-eval would have cut {tokens} tokens of the {self.label} to {limit}.", "Please report this."
            )


def guarded(model: Any, tokenizer: Any, *, limit: int, batch_size: int, label: str, refuse: bool) -> Any:
    """A loaded model as lm-eval's HFLM behind a `BudgetGuard`.

    Raises:
        UsageError: the tokenizer has no token that ends a text.
    """
    if tokenizer.eos_token_id is None:
        raise UsageError("lm-eval needs a tokenizer with an end-of-text token.", "Set `eos_token` in its config.")
    base = import_module("lm_eval.models.huggingface").HFLM
    kind: Any = type("BudgetedLM", (BudgetGuard, base), {})
    return kind(
        pretrained=model,
        backend="causal",
        tokenizer=tokenizer,
        max_length=limit,
        batch_size=batch_size,
        truncation=False,
        label=label,
        refuse=refuse,
    )


def generated_tokens(asked: dict[str, Any], default: int) -> int:
    """Tokens that a request asks for, by lm-eval's names in its order (lm_eval/models/utils.py)."""
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        if asked.get(name) is not None:
            return int(asked[name])
    return default


def rolling_error(task: str) -> UsageError:
    """The error for a task that measures the perplexity of a text in windows."""
    return UsageError(
        f"task {task!r} measures perplexity in windows that restart, which is no score of documents.",
        "Use verify's own perplexity, with `lm-eval` as its protocol.",
    )
