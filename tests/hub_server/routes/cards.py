"""Validation of a card's metadata.

Contract: huggingface_hub/hf_api.py `_validate_yaml`: 200 or 400, a list of `errors` and one of `warnings`, each with a
message.
"""

from tests.hub_server.answers import Answer, as_json
from tests.hub_server.call import Call
from tests.hub_server.card_rules import check_card
from tests.hub_server.routing import route


@route("POST", "/api/validate-yaml")
def validate(call: Call) -> Answer:
    """Errors make it 400."""
    wanted = call.json()
    errors, warnings = check_card(str(wanted.get("content", "")), str(wanted.get("repoType") or "model"))
    found = {"errors": _messages(errors), "warnings": _messages(warnings)}
    return as_json(found, 400 if errors else 200)


def _messages(texts: list[str]) -> list[dict[str, str]]:
    return [{"message": text} for text in texts]
