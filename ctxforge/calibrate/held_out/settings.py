"""How much held-out text is measured, and at which lengths."""

from __future__ import annotations

from dataclasses import dataclass

from ctxforge.errors import UsageError


@dataclass(frozen=True)
class HeldOutSettings:
    """Lengths in tokens, the tokenizer's prefix included.

    Attributes:
        trained_length: L0 of the source.
        target_length: L' of the extension.
        windows: of the target length, at most.
        short_windows: at most.
        short_length: of a short window, at most L0; None for half of L0.
        refresh: tokens that share a window of the source, as in `verification.long_use.delta_use`; None for half of L0.

    Raises:
        UsageError: numbers that do not fit each other.
    """

    trained_length: int
    target_length: int
    windows: int = 4
    short_windows: int = 16
    short_length: int | None = None
    refresh: int | None = None

    def __post_init__(self) -> None:
        if not 4 <= self.trained_length <= self.target_length:
            raise UsageError(
                f"a target of {self.target_length} tokens for a trained length of {self.trained_length}",
                "give a trained length of at least 4 tokens, and a target that is no shorter",
            )
        if min(self.windows, self.short_windows) < 1:
            raise UsageError(
                f"{self.windows} long and {self.short_windows} short held-out windows", "give at least one of each"
            )
        if not 2 <= self.short_tokens <= self.trained_length:
            raise UsageError(
                f"short held-out windows of {self.short_tokens} tokens",
                f"give from 2 to {self.trained_length}, which the source was trained for",
            )
        if not 1 <= self.source_refresh < self.trained_length:
            raise UsageError(
                f"the source's windows are refreshed every {self.source_refresh} tokens",
                f"give from 1 to {self.trained_length - 1}, half of the trained length being usual",
            )

    @property
    def short_tokens(self) -> int:
        """Tokens of a short window."""
        return self.trained_length // 2 if self.short_length is None else self.short_length

    @property
    def source_refresh(self) -> int:
        """Tokens that share a window of the source."""
        return self.trained_length // 2 if self.refresh is None else self.refresh
