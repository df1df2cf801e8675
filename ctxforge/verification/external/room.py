"""How much of a RULER prompt its generator does not count, and lengths at which a generator would never end."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ctxforge.verification.external.ruler_tasks import RULER

# A token may join or split where texts meet.
_SEAM = 8
_DRAWS = 8
# The worked example of variable tracking is built for 500 tokens, whatever the length.
_VT_EXAMPLE = 500


def reserve(name: str, tokenizer: Any, *, chat_template: bool) -> int:
    """Tokens of a prompt of this RULER task that lm-eval's generator does not count: chat template, answer prefix."""
    task = RULER[name]
    if task.roomy:
        return 0
    return template_tokens(tokenizer) * chat_template + _tokens(tokenizer, task.prefix) + task.uncounted + _SEAM


def template_tokens(tokenizer: Any) -> int:
    """Tokens that the chat template puts around one message; 0 without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return 0
    text = "x"
    made = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    return max(0, _tokens(tokenizer, made) - _tokens(tokenizer, text))


def too_short(name: str, tokenizer: Any, length: int) -> str | None:
    """Why this task can't be built at this length; None where it can.

    lm-eval's generators of variable tracking, common words and frequent words shrink a prompt in steps down to their
    smallest one, and then try that for ever, or go on without any word. The smallest ones are drawn here and measured.
    """
    if name not in _SMALLEST:
        return None
    needed = max(_SMALLEST[name](tokenizer, length) for _ in range(_DRAWS))
    if name == "ruler_vt":
        example = max(_vt(tokenizer, 5, icl=True) for _ in range(_DRAWS))
        if example > _VT_EXAMPLE:
            return f"its worked example takes {example} tokens of this tokenizer, and lm-eval gives it {_VT_EXAMPLE}"
    if needed > length:
        return f"its smallest prompt takes {needed} tokens of this tokenizer, more than {length}"
    return None


def _vt(tokenizer: Any, noises: int, *, icl: bool) -> int:
    module = import_module("lm_eval.tasks.ruler.vt_utils")
    text, answer = module.generate_input_output(noises, 1, 4, is_icl=icl)
    return _tokens(tokenizer, f"{text} {answer}") + 30 + _SEAM


def _smallest_vt(tokenizer: Any, length: int) -> int:
    del length
    return _vt(tokenizer, 10, icl=False) + _VT_EXAMPLE


def _smallest_cwe(tokenizer: Any, length: int) -> int:
    module = import_module("lm_eval.tasks.ruler.cwe_utils")
    example, text, answer = module.generate_input_output(10, length)
    listed = " ".join(f"{i + 1}. {word}" for i, word in enumerate(answer))
    return _tokens(tokenizer, f"{example}\n{text} {listed}") + 120 + _SEAM


def _smallest_fwe(tokenizer: Any, length: int) -> int:
    """The question, and room for a hundred words of six letters."""
    del length
    module = import_module("lm_eval.tasks.ruler.fwe_utils")
    words = " ".join(["qxjzkv"] * 100)
    return _tokens(tokenizer, module.TEMPLATE.format(context=words, query="")) + 50 + _SEAM


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, verbose=False)["input_ids"]) if text else 0


_SMALLEST = {"ruler_vt": _smallest_vt, "ruler_cwe": _smallest_cwe, "ruler_fwe": _smallest_fwe}
