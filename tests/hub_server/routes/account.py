"""Who asks, and what they may do.

Contract: huggingface_hub/hf_api.py `whoami` and `auth_check`; hub-docs docs/hub/security-tokens.md.
"""

from tests.hub_server.accounts import require_account, require_content, require_write
from tests.hub_server.answers import Answer, as_json
from tests.hub_server.call import Call
from tests.hub_server.routing import route


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Answer:
    """The account of the token; 401 without one."""
    return as_json(require_account(call.account).whoami())


@route("GET", "/api/{kind}/{repo}/auth-check")
def auth_check(call: Call) -> Answer:
    """Whether the files may be read."""
    require_content(call.account, call.repo())
    return as_json({})


@route("GET", "/api/{kind}/{repo}/auth-check/write")
def auth_check_write(call: Call) -> Answer:
    """Whether the repository may be written."""
    require_write(call.account, call.repo())
    return as_json({})
