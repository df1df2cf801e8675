"""Chats as text: rendered by the tokenizer's own template, with what the assistant wrote kept apart."""

from __future__ import annotations

from typing import Any

from ctxforge.calibrate.data.fields import Messages
from ctxforge.errors import UsageError

_ASSISTANT = "assistant"


def require_template(tokenizer: Any, where: str) -> None:
    """Refuse chat data for a tokenizer without a chat template.

    Raises:
        UsageError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"{where} holds chats, and the model's tokenizer has no chat template",
            "take a chat model, or render the chats to text yourself",
        )


def render(tokenizer: Any, messages: Messages, where: str) -> tuple[str, tuple[tuple[int, int], ...] | None]:
    """The chat as text, and the character ranges that the assistant wrote, its end of turn included.

    A turn's range is what the template adds to the text of the turns before it, beyond the header that it opens an
    answer with. Where a template rewrites earlier turns (those that remove the reasoning of all answers but the
    last), the range is the turn's content, found in order.

    Returns:
        The text, and the ranges; None for those where a turn's content is not in the text.

    Raises:
        UsageError: the template refuses the messages; the message has its words.
    """
    full = _apply(tokenizer, messages, where)
    spans: list[tuple[int, int]] = []
    cursor = 0
    for index, message in enumerate(messages):
        if message["role"] != _ASSISTANT:
            continue
        span = _added(tokenizer, messages, index, full) or _found(message, full, cursor)
        if span is None:
            return full, None
        spans.append(span)
        cursor = span[1]
    return full, tuple(spans)


def _added(tokenizer: Any, messages: Messages, index: int, full: str) -> tuple[int, int] | None:
    if index == 0:  # templates refuse to render no messages
        return None
    try:
        before = _apply(tokenizer, messages[:index], "", generation=True)
        after = _apply(tokenizer, messages[: index + 1], "")
    except UsageError:
        return None
    if not (full.startswith(before) and full.startswith(after) and len(before) < len(after)):
        return None
    return len(before), len(after)


def _found(message: dict[str, Any], full: str, cursor: int) -> tuple[int, int] | None:
    content = message.get("content")
    words = content.strip() if isinstance(content, str) else ""
    start = full.find(words, cursor) if words else -1
    return None if start < 0 else (start, start + len(words))


def _apply(tokenizer: Any, messages: Messages, where: str, *, generation: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))
    except Exception as error:  # whatever a template raises: jinja's errors, a missing key, a wrong type
        raise UsageError(
            f"the chat template refuses {where}: {error}", "correct the messages, or leave this chat out"
        ) from error
