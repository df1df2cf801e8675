"""A Hub-compatible server on loopback: real HTTP, real files, faults on demand, every byte counted.

The routes follow what huggingface_hub 2.4.0 sends and expects with HF_HUB_DISABLE_XET=1 (each module says which file
of huggingface_hub its contract comes from), and Git LFS's batch protocol. Nothing outside the loopback is reached.

    with HubServer(tmp_path) as hub:
        token = hub.account("me")
        sha = hub.add_repo("org/source", {"config.json": b"{}", "model.safetensors": weights})
        subprocess.run([..., "push"], env={**os.environ, **hub.environment(token, tmp_path / "home")})
        assert hub.repo("me/copy").files()["model.safetensors"].sha256 == ...
        assert hub.received < 1_000_000

Without a child process: `with hub.inside(token, home): ...` points the huggingface_hub of this process at the server.
Faults: `hub.inject(Fault("drop", method="POST", path_pattern="/commit/", when="after"))`; `hub.fired` says which
struck. `hub.states("me/copy")` is every state that main ever showed, `hub.journal` every change, `hub.push(...)`
somebody else's commit, `hub.options.older = True` a Hub without server-side copies.
"""

from tests.hub_server.blobs import File
from tests.hub_server.counting import Request
from tests.hub_server.faults import Fault, Fired
from tests.hub_server.repos import Change, Commit, PullRequest, Repo
from tests.hub_server.server import HubServer

__all__ = ["Change", "Commit", "Fault", "File", "Fired", "HubServer", "PullRequest", "Repo", "Request"]
