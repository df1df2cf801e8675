"""What a user asks of a publication."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """How and where to publish.

    Attributes:
        repo: `name` or `owner/name`; None for `<you>/<model>-<method>-<length>`.
        private: make a new repository private, or public; None for the owner's default.
        branch: commit there instead of to main; made from main where it doesn't exist.
        create_pr: open a pull request instead of committing.
        message: the commit's title; None for one that says what was done.
        yes: go on where ctxforge would ask: a public copy of a gated or private model, a repository that holds
            something else, another licence than the source's.
        force: publish a folder that fails `ctxforge check`.
    """

    repo: str | None = None
    private: bool | None = None
    branch: str | None = None
    create_pr: bool = False
    message: str | None = None
    yes: bool = False
    force: bool = False

    @property
    def revision(self) -> str:
        """The branch that is committed to, or that a pull request is against."""
        return self.branch or "main"
