"""The routes, one module an area; importing a module declares its routes."""

from importlib import import_module

_MODULES = (
    "account",
    "cards",
    "management",
    "references",
    "discussions",
    "lfs",
    "copies",
    "commits",
    "trees",
    "information",
    "files",
)
"""In the order of declaration: the general patterns come last."""


def load() -> None:
    """Declare every route."""
    for name in _MODULES:
        import_module(f"tests.hub_server.routes.{name}")
