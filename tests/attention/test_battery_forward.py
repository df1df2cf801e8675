"""Battery, points 1 to 3 and 12: what one pass computes, against the stock model and the dense reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

import ctxforge
from ctxforge.attention.reference import Pattern, causal, distances
from tests.attention.battery import (
    LENGTH,
    ROWS,
    attach,
    attachment_of,
    dense_model,
    equals_dense,
    every_architecture,
    every_system,
    holds_or_is_refused,
    one_key_too_few,
    pattern_of,
    systems,
    wrong_distances,
)
from tests.modeling.emitted import difference, remote, stock, tokens, whole

Folders = Callable[..., Path]


def test_every_registered_system_has_a_row() -> None:
    """And no row stands for nothing: a new system joins the battery by adding one."""
    assert set(map(attachment_of, ROWS)) == set(systems())


@every_architecture
@every_system
def test_degenerate_settings_are_the_stock_model(name: str, kind: str, stock_folder: Folders, emitted: Folders) -> None:
    row = ROWS[name]
    ids = tokens(2, row.same_until)

    def check() -> None:
        wanted = whole(stock(stock_folder(kind)), ids)
        assert difference(whole(remote(emitted(name, kind, row.degenerate)), ids), wanted) < 1e-5
        long = tokens(2, LENGTH)
        changed = difference(whole(remote(emitted(name, kind)), long), whole(stock(stock_folder(kind)), long))
        assert changed > 1e-3

    holds_or_is_refused(name, "degenerate", kind, check)


@every_architecture
@every_system
def test_the_fast_form_equals_the_dense_reference(
    name: str, kind: str, stock_folder: Folders, emitted: Folders
) -> None:
    def check() -> None:
        ids, source = tokens(2, LENGTH), stock_folder(kind)
        folder = emitted(name, kind, ROWS[name].dense)
        pattern, interleaved = pattern_of(name, folder, LENGTH), kind == "glm"
        assert equals_dense(folder, source, pattern, interleaved=interleaved)
        found = whole(remote(folder), ids)
        for wrong in (wrong_distances(pattern), one_key_too_few(pattern)):
            assert difference(found, whole(dense_model(source, wrong, interleaved=interleaved), ids)) > 1e-3
        if kind in ("llama", "glm"):
            assert difference(found, whole(dense_model(source, pattern, interleaved=not interleaved), ids)) > 1e-3

    holds_or_is_refused(name, "dense", kind, check)


@every_system
def test_a_static_method_composes(name: str, stock_folder: Folders, tmp_path: Path) -> None:
    """YaRN's table and temperature stay in config.json, where the fast form finds them and the stock model too."""

    def check() -> None:
        source = stock_folder("llama")
        settings = ROWS[name].settings if ROWS[name].dense is None else ROWS[name].dense
        folder = attach(source, name, settings, tmp_path / "attached", method="yarn")
        plain = ctxforge.extend(source, method="yarn", to=ROWS[name].to, out=tmp_path / "plain").out
        pattern = pattern_of(name, folder, LENGTH)
        assert equals_dense(folder, plain, pattern, interleaved=False)
        assert not equals_dense(folder, source, pattern, interleaved=False)

    holds_or_is_refused(name, "yarn", "llama", check)


@every_system
def test_gradients_equal_the_dense_reference(name: str, stock_folder: Folders, emitted: Folders) -> None:
    def check() -> None:
        ids, folder = tokens(2, LENGTH), emitted(name, "llama", ROWS[name].dense)
        found: list[dict[str, torch.Tensor]] = []
        reference = dense_model(stock_folder("llama"), pattern_of(name, folder, LENGTH), interleaved=False)
        for model in (remote(folder), reference):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            found.append({key: parameter.grad for key, parameter in model.named_parameters()})
        assert found[0].keys() == found[1].keys()
        assert max(difference(found[0][key], found[1][key]) for key in found[1]) < 1e-4

    holds_or_is_refused(name, "gradients", "llama", check)


@every_system
def test_no_token_sees_a_later_one(name: str, emitted: Folders) -> None:
    model, ids = remote(emitted(name, "llama")), tokens(1, LENGTH)
    wanted = whole(model, ids)
    for first in (1, 33, 100):
        changed = ids.clone()
        changed[:, first:] = (changed[:, first:] + 1) % 90 + 3
        found = whole(model, changed)
        assert difference(found[:, :first], wanted[:, :first]) < 1e-6
        assert difference(found[:, first:], wanted[:, first:]) > 1e-3


@every_system
def test_bfloat16_is_finite_and_errs_like_the_stock_model(name: str, stock_folder: Folders, emitted: Folders) -> None:
    """Padding too, whose queries see no key at all. Where rounding may change what is chosen, all is."""

    def check() -> None:
        ids, source, folder = tokens(2, LENGTH), stock_folder("llama"), emitted(name, "llama", ROWS[name].dense)
        rounded = whole(stock(source, dtype=torch.bfloat16), ids).float() - whole(stock(source), ids)
        model = remote(folder, dtype=torch.bfloat16)
        found = whole(model, ids)
        assert found.dtype == torch.bfloat16
        assert float((found.float() - whole(remote(folder), ids)).std()) < 2 * float(rounded.std())
        mask = torch.ones_like(ids)
        mask[1, :70] = 0
        at = (mask.cumsum(1) - 1).clamp(min=0)
        assert whole(model, ids, attention_mask=mask, position_ids=at).isfinite().all()

    holds_or_is_refused(name, "bfloat16", "llama", check)


@every_architecture
def test_the_dense_model_is_the_stock_model_where_nothing_is_special(kind: str, stock_folder: Folders) -> None:
    """The reference itself, by its plainest pattern."""
    ids, plain = tokens(2, LENGTH), Pattern(causal(LENGTH), distances(LENGTH))
    wanted = whole(stock(stock_folder(kind), dtype=torch.float64), ids)
    found = whole(dense_model(stock_folder(kind), plain, interleaved=kind == "glm"), ids)
    assert difference(found, wanted) < 1e-4  # the stock model takes cosines in float32
