"""Whose token it is, and what it may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctxforge.errors import HubError
from ctxforge.publish.connection import Connection
from ctxforge.publish.retry import status_of

_TOKENS = "https://huggingface.co/settings/tokens"
_WRITES = frozenset({"repo.write"})
_PROPOSES = frozenset({"repo.write", "discussion.write"})


@dataclass(frozen=True)
class Account:
    """The owner of the token.

    Attributes:
        name: the user's name, or the organisation's for a token of its own.
        organisations: those in which the user may write.
        role: "read", "write", "fineGrained", or "" where the Hub doesn't tell.
        scopes: of a fine-grained token: (type, name, permissions) of each entity, type user, org or model.
    """

    name: str
    organisations: tuple[str, ...] = ()
    role: str = ""
    scopes: tuple[tuple[str, str, frozenset[str]], ...] = ()

    def refuse_without_write(self, repo: str, *, proposing: bool = False) -> None:
        """Check what can be checked without trying.

        Args:
            repo: owner/name of the target.
            proposing: only a pull request is to be opened.

        Raises:
            HubError: the token can't write, or not there.
        """
        owner = repo.partition("/")[0]
        if self.role == "read":
            raise HubError(
                f"The token of {self.name} can only read.",
                f"Make one that can write at {_TOKENS}, then `hf auth login` or HF_TOKEN.",
            )
        if self.role == "fineGrained":
            needed = _PROPOSES if proposing else _WRITES
            covered = {("user", owner), ("org", owner), ("model", repo)}
            if not any((kind, name) in covered and permissions & needed for kind, name, permissions in self.scopes):
                raise HubError(
                    f"The fine-grained token of {self.name} has no write permission on {owner} or {repo}.",
                    f"Add it at {_TOKENS} (Write access to contents of repos under {owner}), or publish elsewhere.",
                )
        if not proposing and owner not in (self.name, *self.organisations):
            raise HubError(
                f"You are {self.name}, and {owner} is no organisation that you may write in.",
                f"Publish to {self.name}/{repo.partition('/')[2]}, or open a pull request with --create-pr.",
            )


def find_account(connection: Connection) -> Account:
    """The account of the token in force.

    Raises:
        HubError: no token, or one that is invalid or expired.
    """
    from huggingface_hub import get_token

    given = connection.api.token
    token = get_token() if given is None or given is True else given
    if not token:
        raise HubError("There is no token to publish with.", "Log in with `hf auth login`, or set HF_TOKEN.")
    with connection.errors("your account"):
        try:
            answer = connection.run("asking who you are", lambda: connection.api.whoami(token=token))
        except Exception as error:
            if status_of(error) in (401, 403):
                raise HubError(
                    "The Hub does not accept your token: it is invalid or expired.",
                    f"Make a new one at {_TOKENS}, then `hf auth login` or HF_TOKEN (which wins over the login).",
                ) from None
            raise
    return read_account(answer)


def read_account(answer: Mapping[str, Any]) -> Account:
    """The account in an answer of `whoami-v2`."""
    token = ((answer.get("auth") or {}).get("accessToken")) or {}
    fine = token.get("fineGrained") or {}
    scopes = []
    for entry in fine.get("scoped") or ():
        entity = entry.get("entity") or {}
        scopes.append((str(entity.get("type")), str(entity.get("name")), frozenset(entry.get("permissions") or ())))
    writing = [one for one in answer.get("orgs") or () if one.get("roleInOrg", "write") not in ("read", "no_access")]
    organisations = tuple(str(one.get("name")) for one in writing)
    return Account(str(answer.get("name")), organisations, str(token.get("role") or ""), tuple(scopes))
