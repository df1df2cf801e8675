"""What stands around a context: the tokenizer's own prefix, a chat template's turns, the question and its lead-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.verification.tasks.encode import Encoder
from ctxforge.verification.tasks.filler import Filler
from ctxforge.verification.text import added_prefix

T = TypeVar("T")
# What a chat template is asked to put in its place, to see what it writes before and behind.
_CONTENT = "ctxforge-content"


class Frame:
    """All that prompts of one tokenizer have in common; making one takes a fraction of a second, so keep it.

    A prompt for a base model is a text that goes on: `[prefix] context question-as-lead-in`. For a chat model it is a
    user's turn, and the answer's lead-in is put into the assistant's mouth:
    `[template] instruction context question [template] lead-in`.

    Args:
        tokenizer: of transformers.
        chat: whether prompts go through the tokenizer's chat template.
        bos: True insists on the tokenizer's BOS token, False leaves it out, None does what the tokenizer does by
            itself. Chat templates decide for themselves.

    Raises:
        UsageError: there is no chat template, or no BOS token, and it was asked for.
        UnsupportedError: the tokenizer does not give texts back.
    """

    def __init__(self, tokenizer: Any, *, chat: bool = False, bos: bool | None = None) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self.encode = Encoder(tokenizer)
        self.before, self.behind = self._turns() if chat else (self._prefix(bos), ())
        self._known: dict[str, Any] = {}

    @property
    def filler(self) -> Filler:
        """Sentences to fill contexts with."""
        return self.remember("filler", lambda: Filler(self.encode))

    def remember(self, key: str, make: Callable[[], T]) -> T:
        """What `make` gave the first time it was asked for under this key."""
        if key not in self._known:
            self._known[key] = make()
        found: T = self._known[key]
        return found

    @property
    def line_break(self) -> tuple[int, ...]:
        """Ids of a line break; none where the tokenizer drops white space."""
        return self.remember("line break", lambda: self.encode.plain("\n"))

    def opening(self, instruction: str) -> tuple[int, ...]:
        """Ids in front of the context; base models are told nothing."""
        return self.before + (self.encode(instruction) if self.chat and instruction else ())

    def closing(self, question: str, lead: str) -> tuple[int, ...]:
        """Ids between the context and the answer. `question` is for chat models, `lead` is what the answer continues.

        Args:
            question: with a space or a line break in front.
            lead: likewise; a chat model's turn begins without it.
        """
        if not self.chat:
            return self.encode(lead)
        return self.encode(question) + self.behind + self.encode(lead.strip())

    def _prefix(self, bos: bool | None) -> tuple[int, ...]:
        if bos is None:
            return tuple(added_prefix(self.tokenizer))
        if not bos:
            return ()
        if self.tokenizer.bos_token_id is None:
            raise UsageError("this tokenizer has no BOS token.", "Leave the BOS token out.")
        return (int(self.tokenizer.bos_token_id),)

    def _turns(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise UsageError("this tokenizer has no chat template.", "Verify it as a base model, without chat.")
        # A template is code of the checkpoint's, and fails in ways of its own.
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": _CONTENT}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:
            raise UnsupportedError(
                f"this tokenizer's chat template fails: {error}", "Verify it as a base model, without chat."
            ) from error
        before, found, behind = str(text).partition(_CONTENT)
        if not found or _CONTENT in behind:
            raise UnsupportedError(
                "this tokenizer's chat template does not repeat a user's text once.",
                "Verify it as a base model, without chat.",
            )
        return self.encode.start(before), self.encode.start(behind)
