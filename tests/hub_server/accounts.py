"""Accounts, tokens and what they may do.

Sources: hub-docs docs/hub/security-tokens.md (roles; fine-grained scopes), docs/hub/organizations-security.md (roles in
an organization), huggingface_hub/hf_api.py (`whoami`, `create_repo`), huggingface_hub/utils/_http.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.hub_server.answers import refuse
from tests.hub_server.repos import Repo

CREATED = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Account:
    """One user with one token.

    Attributes:
        name: the user's.
        token: what the Authorization header holds.
        role: of the token: "read", "write", "fineGrained" or "expired".
        orgs: organization to the user's role in it: "read", "contributor", "write" or "admin".
        scopes: of a fine-grained token: user, organization or repository to permissions ("repo.content.read",
            "repo.write", ...).
        reads_gated: whether a fine-grained token may read gated repositories that the account has access to.
    """

    name: str
    token: str = field(repr=False)
    role: str = "write"
    orgs: Mapping[str, str] = field(default_factory=dict)
    scopes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reads_gated: bool = True

    def may_write_in(self, namespace: str, repo_id: str | None = None) -> bool:
        """Whether this token may create, or change `repo_id`, in a namespace."""
        member = namespace == self.name or self.orgs.get(namespace) in ("contributor", "write", "admin")
        if self.role != "fineGrained":
            return member and self.role == "write"
        granted = [*self.scopes.get(namespace, ()), *(self.scopes.get(repo_id, ()) if repo_id else ())]
        return member and "repo.write" in granted

    def may_propose(self, repo: Repo) -> bool:
        """Whether this token may open a pull request on a repository that it sees."""
        if self.role != "fineGrained":
            return self.role == "write"
        granted = {*self.scopes.get(self.name, ()), *self.scopes.get(repo.namespace, ()), *self.scopes.get(repo.id, ())}
        return bool(granted & {"discussion.write", "repo.write"})

    def may_see(self, repo: Repo) -> bool:
        """Whether a private repository exists for this token."""
        if repo.namespace != self.name and repo.namespace not in self.orgs:
            return False
        if self.role != "fineGrained":
            return True
        granted = {*self.scopes.get(repo.namespace, ()), *self.scopes.get(repo.id, ())}
        return bool(granted & {"repo.content.read", "repo.write"})

    def whoami(self) -> dict[str, Any]:
        """The body of /api/whoami-v2."""
        access: dict[str, Any] = {"displayName": "test token", "role": self.role, "createdAt": CREATED}
        if self.role == "fineGrained":
            access["fineGrained"] = {
                "canReadGatedRepos": self.reads_gated,
                "global": [],
                "scoped": [
                    {"entity": self._entity(name), "permissions": list(permissions)}
                    for name, permissions in self.scopes.items()
                ],
            }
        return {
            "type": "user",
            "id": f"id-{self.name}",
            "name": self.name,
            "fullname": self.name,
            "email": f"{self.name}@example.org",
            "emailVerified": True,
            "isPro": False,
            "canPay": False,
            "periodEnd": None,
            "avatarUrl": "",
            "orgs": [
                {
                    "type": "org",
                    "id": f"id-{name}",
                    "name": name,
                    "fullname": name,
                    "roleInOrg": role,
                    "isEnterprise": False,
                }
                for name, role in self.orgs.items()
            ],
            "auth": {"type": "access_token", "accessToken": access},
        }

    def _entity(self, name: str) -> dict[str, str]:
        kind = "model" if "/" in name else "user" if name == self.name else "org"
        return {"_id": f"id-{name}", "type": kind, "name": name}


def find_account(accounts: Mapping[str, Account], header: str | None) -> Account | None:
    """The account of an Authorization header; None for anonymous.

    A token that is unknown or expired is refused with 401 on every route, as the Hub does.
    """
    if not header:
        return None
    account = accounts.get(header.removeprefix("Bearer ").strip())
    if account is None:
        refuse(401, "Invalid credentials in Authorization header")
    if account.role == "expired":
        refuse(401, 'User Access Token "test token" is expired')
    return account


def require_account(account: Account | None) -> Account:
    """The account, or 401."""
    return account or refuse(401, "Invalid username or password.")


def require_sight(account: Account | None, repo: Repo | None) -> Repo:
    """The repository if it exists for this account: else 401 for anonymous and 404 for others, RepoNotFound both."""
    if repo is not None and (not repo.private or (account is not None and account.may_see(repo))):
        if repo.disabled:
            refuse(403, "Access to this resource is disabled.")
        return repo
    if account is None:
        refuse(401, "Invalid username or password.", "RepoNotFound")
    return refuse(404, "Repository not found", "RepoNotFound")


def require_content(account: Account | None, repo: Repo) -> None:
    """Access to the files of a gated repository; its metadata stay public (hub-docs docs/hub/models-gated.md)."""
    if not repo.gated:
        return
    where = f"Access to {repo.type} {repo.id} is restricted"
    if account is None:
        refuse(
            401, f"{where}. You must have access to it and be authenticated to access it. Please log in.", "GatedRepo"
        )
    if account.name not in repo.granted and not account.may_see(repo):
        refuse(403, f"{where} and you are not in the authorized list. Ask for access.", "GatedRepo")
    if not account.reads_gated:
        refuse(
            403, "Please enable access to public gated repositories in your fine-grained token settings.", "GatedRepo"
        )


def require_proposal(account: Account | None, repo: Repo) -> Account:
    """The right to open a pull request."""
    found = require_account(account)
    if not found.may_propose(repo):
        refuse(403, "Forbidden: this token may not create Pull Requests")
    return found


def require_write(account: Account | None, repo: Repo) -> Account:
    """Write access to a repository that the account sees."""
    found = require_account(account)
    if not found.may_write_in(repo.namespace, repo.id):
        refuse(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
    return found
