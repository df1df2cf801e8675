"""The front matter: what huggingface_hub reads back, and what is carried over."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard

from ctxforge.errors import UsageError
from ctxforge.publish.card.evaluation import evaluations
from tests.publish.card.builders import REPO, REVISION, SOURCE, SOURCE_CARD, card, given, stored, verified


def data_of(front: str, **changes: Any) -> dict[str, Any]:
    """The metadata of the card of a source with this front matter."""
    text = card(source_card_text=f"---\n{front}\n---\nbody\n", **changes).text
    read: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return read


def test_carried_over() -> None:
    data = ModelCard(verified().text).data
    assert data.library_name == "transformers"
    assert (data.base_model, data["base_model_relation"]) == (SOURCE, "finetune")
    assert (data.license, data.license_name, data.license_link) == ("other", "llama2", "LICENSE")
    assert (data.language, data.datasets, data.pipeline_tag) == (["en"], ["pg19"], "text-generation")
    assert data["extra_gated_prompt"] == "Say who you are"
    assert data["extra_gated_fields"] == {"Name": "text", "I agree": "checkbox"}
    assert data.tags == ["text-generation-inference", "ctxforge", "long-context", "yarn", "context-2048"]
    assert data.model_name == "bytes-2k"


def test_the_results_come_back_equal() -> None:
    data, made = ModelCard(verified().text).data, evaluations(stored())
    assert data.eval_results == made
    assert all(isinstance(one, EvalResult) for one in made)
    report = stored()
    by_type = {one.metric_type: [r for r in made if r.metric_type == one.metric_type] for one in made}
    assert [r.metric_value for r in by_type["perplexity"]] == [score.ppl for score in report.result.lengths]
    assert [r.metric_args["context_length"] for r in by_type["exact_match"]] == [256, 512, 1024, 2048]
    # 38 of 40, and Wilson's interval of it worked out by hand: (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n).
    last = by_type["exact_match"][-1]
    assert (last.metric_value, last.metric_args["prompts"]) == (0.95, 40)
    z2, n, p = 1.959964**2, 40, 0.95
    half = (z2 * (p * (1 - p) / n + z2 / (4 * n * n))) ** 0.5
    assert last.metric_args["low_95"] == pytest.approx((p + z2 / (2 * n) - half) / (1 + z2 / n), abs=1e-6)
    assert last.metric_args["high_95"] == pytest.approx((p + z2 / (2 * n) + half) / (1 + z2 / n), abs=1e-6)
    (short,) = by_type["loss_difference"]
    assert report.short_context is not None
    assert short.metric_value == report.short_context.mean
    assert short.metric_args["low_95"] < short.metric_value < short.metric_args["high_95"]


def test_no_results_without_a_verification_and_none_of_the_source() -> None:
    made = card()
    assert ModelCard(made.text).data.eval_results is None
    assert "model-index" not in made.text.split("---\n")[1]
    assert "the source's model-index was left out: it is of the unmodified model" in made.remarks


def test_values_that_are_not_finite_are_no_results() -> None:
    report = json.loads(json.dumps(stored().to_dict()))
    for score in report["result"]["lengths"][:2]:
        score["ppl"] = None
    results = ModelCard(card(verify_report=report).text).data.eval_results
    lengths = [r.metric_args["context_length"] for r in results if r.metric_type == "perplexity"]
    assert lengths == [1024, 2048]


def test_no_licence_is_invented() -> None:
    assert "license" not in data_of("tags: [x]")
    assert "pipeline_tag" not in data_of("tags: [x]")
    assert data_of("license: [mit, apache-2.0]")["license"] == ["mit", "apache-2.0"]


@pytest.mark.parametrize(
    ("front", "key", "remark"),
    [
        ("license: 1.0", "license", "no usable 'license'"),
        ("license: {a: b}", "license", "no usable 'license'"),
        ("license: ''", "license", "no usable 'license'"),
        ("license: mit\nlicense: apache-2.0", "license", "says 'license' twice, differently"),
        ("datasets: [a, 1]", "datasets", "no usable 'datasets'"),
        ("pipeline_tag: [a]", "pipeline_tag", "no usable 'pipeline_tag'"),
        ("extra_gated_fields: !!binary aGk=", "extra_gated_fields", "no plain data under 'extra_gated_fields'"),
    ],
)
def test_unusable_values_are_dropped_and_told(front: str, key: str, remark: str) -> None:
    made = card(source_card_text=f"---\n{front}\nlanguage: en\n---\n")
    data = yaml.safe_load(made.text.split("---\n")[1])
    assert key not in data
    assert data["language"] == "en"
    assert [line for line in made.remarks if remark in line]


def test_the_same_key_twice_with_one_value_is_that_value() -> None:
    assert data_of("license: mit\nlicense: mit")["license"] == "mit"


def test_norwegian_is_a_language() -> None:
    assert data_of("language: no")["language"] == "no"
    assert data_of("language:\n- en\n- no")["language"] == ["en", "no"]


def test_tags_of_an_earlier_conversion_go() -> None:
    first = given("yarn", "lm-infinite")
    record = {**given("pi").provenance, "previous": first.provenance}
    front = "tags: [nice, ctxforge, yarn, lm-infinite, context-1024, custom_code, long-context, 7, nice]"
    made = data_of(front, provenance=record)
    assert made["tags"] == ["nice", "ctxforge", "long-context", "pi", "context-2048"]
    # A method that the source names on its own account stays: nothing says that it is gone.
    assert "yarn" in data_of("tags: yarn", provenance=given("pi").provenance)["tags"]


def test_the_base_of_a_source_that_is_not_on_the_hub() -> None:
    own = data_of("base_model: org/original", source_id=None)
    assert (own["base_model"], own["base_model_relation"]) == ("org/original", "finetune")
    assert "base_model" not in data_of("tags: [x]", source_id=None)
    assert data_of("base_model: org/original")["base_model"] == SOURCE
    # On a branch of the source itself: nothing is its own base.
    assert data_of("base_model: org/original", repo_id=SOURCE)["base_model"] == "org/original"


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b/c", "a/b\n", "a`b", "https://x/y"])
def test_names_that_are_no_repository(name: str) -> None:
    with pytest.raises(UsageError, match="not a repository id"):
        card(repo_id=name)
    made = card(source_id=name, source_card_text="")
    assert "base_model" not in made.text
    assert [line for line in made.remarks if "is no repository id" in line]


def test_revision_and_source_are_told() -> None:
    text = card().text
    assert f"[{SOURCE}](https://huggingface.co/{SOURCE}) at `{REVISION}`" in text
    assert f"# {REPO.split('/')[1]}\n" in text
    assert SOURCE_CARD.partition("---\n\n")[2] in text
