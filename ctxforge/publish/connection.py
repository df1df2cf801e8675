"""The one place that speaks to the Hub: the environment's endpoint and token, retries, and errors in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ctxforge.checkpoint.hub import is_network
from ctxforge.errors import CtxforgeError, HubError, UsageError
from ctxforge.publish.retry import Backoff, chain, status_of
from ctxforge.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Result = TypeVar("Result")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Connection:
    """The Hub as this run sees it.

    Attributes:
        api: knows endpoint and token.
        backoff: between tries.
        tell: called with remarks, one line each.
    """

    api: HfApi
    backoff: Backoff
    tell: Tell

    def run(self, what: str, action: Callable[[], Result]) -> Result:
        """`action()`, repeated after failures that pass (see `Backoff.run`)."""
        return self.backoff.run(what, action, self.tell)

    def errors(self, what: str) -> Any:
        """A context in which failures of the Hub become a HubError about `what`."""
        return plain_errors(what)

    @property
    def endpoint(self) -> str:
        """Address of the Hub, without a slash at the end."""
        return str(self.api.endpoint).rstrip("/")


def connect(
    tell: Tell | None = None,
    *,
    api: HfApi | None = None,
    backoff: Backoff | None = None,
) -> Connection:
    """A connection to the Hub that the environment names (HF_ENDPOINT, HF_TOKEN or the login).

    Raises:
        HubError: HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise HubError("HF_HUB_OFFLINE is set, and publishing needs the Hub.", "Unset it, and run again.")
    found = api or HfApi(library_name="ctxforge", library_version=__version__)
    return Connection(found, backoff or Backoff(), tell or _silent)


def _silent(_text: str) -> None:
    """No remarks."""


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn what huggingface_hub and its transport raise into a HubError; what else is raised passes."""
    try:
        yield
    except CtxforgeError:
        raise
    except Exception as error:
        found = _plain(error, what)
        if found is None:
            raise
        raise found from error


def _plain(error: Exception, what: str) -> CtxforgeError | None:
    from huggingface_hub import errors

    kinds = tuple(chain(error))
    if any(isinstance(one, errors.OfflineModeIsEnabled) for one in kinds):
        return HubError("HF_HUB_OFFLINE is set, and publishing needs the Hub.", "Unset it, and run again.")
    if any(isinstance(one, errors.HFValidationError) for one in kinds):
        return UsageError(f"{what} is not a valid repository id.", "Give owner/name.")
    if any(isinstance(one, errors.GatedRepoError) for one in kinds):
        return HubError(f"{what} is gated: your account has no access to it.", "Accept its terms on its page first.")
    status = status_of(error)
    if status is not None:
        return _by_status(status, what)
    again = "Check the network and run the same command again; what was sent is kept."
    if any(is_network(one) for one in kinds):
        return HubError(f"The connection to the Hub was lost ({what}, {type(error).__name__}).", again)
    if isinstance(error, (ValueError, KeyError)):
        return HubError(f"The Hub's answer makes no sense ({what}, {type(error).__name__}).", again)
    if isinstance(error, OSError):
        return HubError(f"The transfer failed ({what}): {error.strerror or type(error).__name__}.", again)
    return None


def _by_status(status: int, what: str) -> HubError:
    kept = "Run the same command again later; what was sent is kept."
    if status == 401:
        return HubError(
            f"The Hub does not accept your token for {what}.",
            "Log in again (`hf auth login`) or set HF_TOKEN, and rerun.",
        )
    if status == 403:
        return HubError(
            f"The Hub forbids this to your token: {what}.",
            "Use a token with write access there, publish under your own name, or rerun with --create-pr.",
        )
    if status == 404:
        return HubError(f"The Hub does not know {what}.", "Check the names, and that your token may see them.")
    if status in (409, 412):
        return HubError(f"Somebody else changed {what} meanwhile.", "Look at what they did, and run the command again.")
    if status == 413:
        return HubError(f"The commit is too large for the Hub ({what}).", "Leave large files out of the folder.")
    if status == 429:
        return HubError("The Hub limits your requests (429).", kept)
    return HubError(f"The Hub answered {status} ({what}).", kept)


__all__ = ["Connection", "Tell", "connect", "plain_errors"]
