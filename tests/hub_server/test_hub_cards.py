"""Metadata of cards: what passes, what is refused and in which words, before the commit and in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import get_session

from tests.hub_server import HubServer
from tests.hub_server.card_rules import check_card

RESULT = "model-index:\n- name: m\n  results:\n  - task: {type: text-generation}\n    dataset: {name: d, type: %s}\n"


def card(metadata: str) -> str:
    return f"---\n{metadata}\n---\nText\n"


@pytest.mark.parametrize(
    "metadata",
    [
        "license: mit",
        "license: [mit, apache-2.0]",
        "license: other\nlicense_name: our-own\nlicense_link: LICENSE",
        "base_model: org/model.v1-x",
        "base_model: [org/a, b]\nbase_model_relation: merge",
        "language: [en, deu, code, no]",
        "unknown_key: {a: 1}",
        "tags: [a, b]\ndatasets: [org/data]\nlibrary_name: transformers\npipeline_tag: text-generation",
        RESULT % "org/d" + "    metrics:\n    - {type: perplexity, value: 3.5, name: Perplexity at 64k}",
    ],
)
def test_accepted(metadata: str) -> None:
    assert check_card(card(metadata), "model") == ([], [])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: MIT", '"license" must be one of [apache-2.0, mit,'),
        ("license: [mit, nonsense]", '"license" must be one of'),
        ("license: other\nlicense_name: Our Own", '"license_name" with value "Our Own" fails to match'),
        ("license: [", "Invalid YAML in README.md: "),
        ("- a\n- b", '"value" must be of type object'),
        ("hello", "The YAML metadata of your README.md is invalid."),
        ("base_model: /home/me/model", '"base_model" with value "/home/me/model" is not valid. Use a model id from'),
        ("base_model: [org/a, 'a b']", '"base_model[1]" with value "a b" is not valid.'),
        ('base_model: ""', '"base_model" is not allowed to be empty'),
        ("base_model: org/a\nbase_model_relation: copy", '"base_model_relation" must be one of [adapter,'),
        ("language: python", '"language" with value "python" is not valid. It must be an ISO 639-1'),
        ("tags: long", '"tags" must be an array'),
        ("tags: [1]", '"tags[0]" must be a string'),
        ("widget: {text: a}", '"widget" must be an array'),
        ("datasets: [/var/data]", '"datasets[0]" with value "/var/data" is not valid. If possible, use a dataset id'),
        ("model-index: {name: m}", '"model-index" must be an array'),
        ("model-index: [{results: []}]", '"model-index[0].name" is required'),
        (
            "model-index: [{name: m, results: [{task: {type: t}, metrics: []}]}]",
            '"model-index[0].results[0].dataset" is required',
        ),
        (
            RESULT % "a b" + "    metrics: []",
            '"model-index[0].results[0].dataset.type" with value "a b" fails to match',
        ),
        (RESULT % "d" + "    metrics:\n    - {type: ppl}", '"model-index[0].results[0].metrics[0].value" is required'),
    ],
)
def test_refused(metadata: str, message: str) -> None:
    errors, warnings = check_card(card(metadata), "model")
    assert len(errors) == 1
    assert errors[0].startswith(message)
    assert warnings == []


@pytest.mark.parametrize("text", ["# Only text\n", "---\nlicense: mit\n---oops\n", "---\n---\n"])
def test_no_metadata_is_a_warning(text: str) -> None:
    assert check_card(text, "model") == ([], ["empty or missing yaml metadata in repo card"])


def test_over_http(hub: HubServer, api: Callable[..., Any]) -> None:
    me = api("me")
    me.create_repo("me/model")
    bad = card("license: nonsense")
    with pytest.raises(ValueError, match=r'Invalid metadata in README.md.\n- "license" must be one of'):
        me.upload_file(path_or_fileobj=bad.encode(), path_in_repo="README.md", repo_id="me/model")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        me.upload_file(path_or_fileobj=b"# Text", path_in_repo="README.md", repo_id="me/model")
    # A client that skips the validation meets it again in the commit.
    head = hub.repo("me/model").head()
    lines = (
        '{"key": "header", "value": {"summary": "Add"}}\n{"key": "file", "value": {"path": "README.md", "content": '
        '"---\\nlicense: nonsense\\n---\\n", "encoding": "utf-8"}}'
    )
    url = f"{hub.url}/api/models/me/model/commit/main"
    answer = get_session().post(url, content=lines, headers=me._build_hf_headers())
    assert answer.status_code == 400
    assert "license" in answer.json()["errors"][0]["message"]
    assert hub.repo("me/model").head() == head


def test_what_huggingface_hub_itself_writes_passes(hub: HubServer, api: Callable[..., Any]) -> None:
    """Its own ModelCard with an evaluation result, validated over HTTP."""
    result = EvalResult("text-generation", "passkey", "Passkey", "accuracy", 0.98, metric_name="Accuracy at 64k")
    data = ModelCardData(
        license="apache-2.0", base_model="org/base", model_name="m", eval_results=[result], language="en"
    )
    api("me")._validate_yaml(str(ModelCard(f"---\n{data.to_yaml()}\n---\nText\n")))
    assert [request.status for request in hub.requests] == [200]
