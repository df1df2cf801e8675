"""From folders to a report: numbers against an independent computation, pairing, errors, JSON, tables and pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch

from ctxforge.errors import CheckpointError, ResourceError, UsageError
from ctxforge.lengths import format_length
from ctxforge.verification import (
    Curve,
    VerifyReport,
    VerifySettings,
    curves_of,
    evaluate_model,
    heatmap_svg,
    measured_lengths,
    plot_svg,
    prepare_text,
    render_table,
    short_context,
    verify,
)
from ctxforge.verification.load import memory_errors, pick_device
from ctxforge.verification.text import added_prefix, tokenize
from tests.verification.tiny import DYNAMIC, YARN, byte_tokenizer, prose, reference_losses, tiny

TEXT = prose(2000)
SETTINGS = VerifySettings(device="cpu", needles=3, seeds=2, buckets=4, documents=2)


def save(folder: Path, model: Any, *, bos: bool = False) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer(bos=bos).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("verify")
    source = save(root / "source", tiny(max_position_embeddings=64))
    result = save(root / "result", tiny(rope_parameters=YARN))
    return source, result


@pytest.fixture(scope="module")
def report(folders: tuple[Path, Path]) -> VerifyReport:
    source, result = folders
    return verify(
        result, source_dir=source, text=TEXT, trained_length=64, target_length=256, settings=SETTINGS, progress=None
    )


def expected_windows(model: Any, prefix: list[int], count: int, length: int) -> list[torch.Tensor]:
    """Losses of consecutive windows, written without any of the package's code."""
    body = byte_tokenizer()(TEXT)["input_ids"]
    size = length - len(prefix)
    return [reference_losses(model, prefix + body[i * size : (i + 1) * size]) for i in range(count)]


def test_perplexity_equals_an_independent_computation(report: VerifyReport) -> None:
    for measures, model in (
        (report.source, tiny(max_position_embeddings=64)),
        (report.result, tiny(rope_parameters=YARN)),
    ):
        assert measures is not None
        windows = expected_windows(model, [], 2, 256)
        assert [score.length for score in measures.lengths] == [32, 64, 128, 256]
        for score in measures.lengths:
            losses = torch.cat([w[: score.length - 1] for w in windows])
            assert score.tokens == losses.numel()
            assert score.nll == pytest.approx(float(losses.mean()), abs=1e-4)
            assert score.ppl == pytest.approx(math.exp(float(losses.mean())), rel=1e-4)
        for bucket in measures.buckets:
            losses = torch.cat([w[bucket.start : bucket.end] for w in windows])
            assert bucket.nll == pytest.approx(float(losses.mean()), abs=1e-4)


def test_short_context_pairs_the_same_tokens(report: VerifyReport) -> None:
    found = report.short_context
    assert found is not None
    assert found.length == 64
    source = expected_windows(tiny(max_position_embeddings=64), [], 4, 64)
    result = expected_windows(tiny(rope_parameters=YARN), [], 4, 64)
    expected = [float(r.mean() - s.mean()) for s, r in zip(source, result, strict=True)]
    assert found.differences == pytest.approx(expected, abs=1e-4)
    assert found.mean == pytest.approx(sum(expected) / 4, abs=1e-4)
    assert abs(found.mean) > 1e-3


def test_source_is_asked_for_needles_inside_its_trained_length_only(report: VerifyReport) -> None:
    assert report.source is not None
    assert max((c.length for c in report.source.retrieval), default=0) <= 64
    assert max(c.length for c in report.result.retrieval) == 256
    assert all(c.count <= SETTINGS.seeds for c in report.result.retrieval)


def test_a_model_against_itself_differs_by_nothing(folders: tuple[Path, Path]) -> None:
    source, _ = folders
    same = verify(
        source,
        source_dir=source,
        text=TEXT,
        trained_length=64,
        target_length=128,
        settings=dataclasses.replace(SETTINGS, retrieval=False),
    )
    assert same.short_context is not None
    assert same.short_context.differences == (0.0, 0.0, 0.0, 0.0)
    assert same.result.retrieval == ()


def test_without_a_source(folders: tuple[Path, Path]) -> None:
    found = verify(
        folders[1], source_dir=None, text=TEXT, trained_length=64, target_length=128, settings=SETTINGS
    ).to_dict()
    assert found["source"] is None
    assert found["short_context"] is None


def test_source_curve_can_be_left_out(folders: tuple[Path, Path]) -> None:
    source, result = folders
    settings = dataclasses.replace(SETTINGS, source_curve=False, retrieval=False)
    found = verify(result, source_dir=source, text=TEXT, trained_length=64, target_length=256, settings=settings)
    assert found.source is not None
    assert found.source.lengths == ()
    assert found.short_context is not None
    windows = expected_windows(tiny(max_position_embeddings=64), [], 4, 64)
    assert found.source.short_windows == pytest.approx([float(w.mean()) for w in windows], abs=1e-4)


def test_length_dependent_model_is_run_once_a_length() -> None:
    model = tiny(rope_parameters=DYNAMIC)
    found = evaluate_model(model, byte_tokenizer(), text=TEXT, trained_length=64, target_length=256, settings=SETTINGS)
    assert found.passes == "one pass a length"
    for score in found.lengths:
        # A fresh model each time: dynamic NTK remembers the longest input.
        losses = torch.cat(
            [
                w[0]
                for w in (
                    [
                        reference_losses(
                            tiny(rope_parameters=DYNAMIC),
                            byte_tokenizer()(TEXT)["input_ids"][i * 256 : i * 256 + score.length],
                        )
                    ]
                    for i in range(2)
                )
            ]
        )
        assert score.nll == pytest.approx(float(losses.mean()), abs=1e-4)


def test_methods_swapped_on_one_loaded_model() -> None:
    model, tokenizer = tiny(), byte_tokenizer()
    tokens = prepare_text(tokenizer, TEXT, 256, SETTINGS)
    common: dict[str, Any] = {"text": tokens, "trained_length": 64, "target_length": 256, "settings": SETTINGS}
    before = evaluate_model(model, tokenizer, **common)
    model.model.rotary_emb.inv_freq /= 4
    after = evaluate_model(model, tokenizer, label="pi", **common)
    model.model.rotary_emb.inv_freq *= 4
    again = evaluate_model(model, tokenizer, **common)
    assert before == again
    assert abs(after.lengths[-1].nll - before.lengths[-1].nll) > 1e-3
    assert short_context(before, after, 64).mean != 0


def test_bos_is_put_before_every_window_and_recorded(tmp_path: Path) -> None:
    folder = save(tmp_path / "bos", tiny(), bos=True)
    settings = dataclasses.replace(SETTINGS, retrieval=False)
    found = verify(folder, source_dir=None, text=TEXT, trained_length=64, target_length=128, settings=settings)
    assert found.protocol.prefix_ids == (1,)
    windows = expected_windows(tiny(), [1], 2, 128)
    assert found.result.lengths[-1].nll == pytest.approx(float(torch.cat(windows).mean()), abs=1e-4)
    assert added_prefix(byte_tokenizer()) == []


def test_text_errors() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(UsageError, match=r"has 10 tokens.*need 128"):
        tokenize(tokenizer, "x" * 10, length=64, windows=2)
    with pytest.raises(UsageError, match="empty"):
        tokenize(tokenizer, " \n", length=64, windows=2)
    long = tokenize(tokenizer, "abcd " * 3000, length=16, windows=1)
    assert not long.complete
    assert len(long.window(0, 16)) == 16


def test_settings_errors() -> None:
    for wrong in ({"buckets": 0}, {"documents": -1}, {"needles": 1.5}, {"seeds": True}, {"dtype": "int8"}):
        with pytest.raises(UsageError):
            VerifySettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="300"):
        measured_lengths(VerifySettings(lengths=(100, 300)), 64, 256)
    with pytest.raises(UsageError):
        measured_lengths(VerifySettings(), 0, 256)


@pytest.mark.parametrize(
    ("trained", "target", "expected"),
    [
        (8192, 16384, (4096, 8192, 16384)),
        (64, 400, (32, 64, 128, 256, 400)),
        (512, 512, (256, 512)),
        (512, 300, (150, 300)),
        (4, 8, (2, 4, 8)),
    ],
)
def test_default_lengths(trained: int, target: int, expected: tuple[int, ...]) -> None:
    assert measured_lengths(VerifySettings(), trained, target) == expected


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "source_dir": None,
        "text": TEXT,
        "trained_length": 64,
        "target_length": 128,
        "settings": SETTINGS,
    }
    with pytest.raises(CheckpointError, match="not a folder"):
        verify(tmp_path / "missing", **common)
    with pytest.raises(CheckpointError, match="cannot load"):
        verify(tmp_path, **common)


def test_memory_and_devices() -> None:
    with pytest.raises(ResourceError, match="4096"), memory_errors(4096, SETTINGS):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
    with pytest.raises(RuntimeError, match="other"), memory_errors(4096, SETTINGS):
        raise RuntimeError("other")
    with pytest.raises(UsageError, match="nowhere"):
        pick_device("nowhere")
    assert pick_device("cpu") == "cpu"


def test_nan_is_reported_and_still_json(tmp_path: Path) -> None:
    model = tiny()
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    found = verify(
        save(tmp_path / "nan", model),
        source_dir=None,
        text=TEXT,
        trained_length=64,
        target_length=128,
        settings=SETTINGS,
    )
    assert not found.result.finite
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["result"]["lengths"][0]["nll"] is None
    assert any("not finite" in cell for _, _, rows in render_table(found) for row in rows for cell in row)


def test_report_is_json_and_says_how(report: VerifyReport) -> None:
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["schema"] == 1
    protocol = data["protocol"]
    assert protocol["windows"] == 2
    assert protocol["prefix_ids"] == []
    assert len(protocol["text_sha256"]) == 64
    assert set(protocol["versions"]) == {"python", "torch", "transformers", "ctxforge"}
    assert data["result"]["passes"] == "one pass"
    assert data["result"]["retrieval_way"] == "branch rows"
    assert data["result"]["attention"] == "sdpa"


def test_tables(report: VerifyReport) -> None:
    tables = render_table(report)
    titles = [title for title, _, _ in tables]
    assert titles[:2] == ["Perplexity of the first n tokens", "Perplexity by position"]
    assert "Protocol" in titles
    for _, header, rows in tables:
        assert rows
        assert all(len(row) == len(header) and all(isinstance(cell, str) for cell in row) for row in rows)
    assert [format_length(n) for n in (65536, 1048576, 1000, 1536, 0)] == ["64k", "1M", "1000", "1536", "0"]


def test_progress_names_what_runs(folders: tuple[Path, Path]) -> None:
    seen: list[tuple[str, int, int]] = []
    verify(
        folders[1],
        source_dir=None,
        text=TEXT,
        trained_length=64,
        target_length=128,
        settings=SETTINGS,
        progress=lambda *args: seen.append(args),
    )
    assert all(0 < done <= total for _, done, total in seen)
    assert {what.split(",")[0] for what, _, _ in seen} == {
        "result: perplexity",
        "result: short context",
        "result: retrieval",
    }


SVG = "{http://www.w3.org/2000/svg}"


def test_plot_is_self_contained_and_marks_the_trained_length(report: VerifyReport) -> None:
    svg = plot_svg(curves_of(report), 64, target_length=256)
    root = ET.fromstring(svg)
    assert len(root.findall(f".//{SVG}polyline")) == 2
    assert "prefers-color-scheme: dark" in svg
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert any("trained length 64" in (t.text or "") for t in root.iter(f"{SVG}text"))
    mark = next(e for e in root.iter(f"{SVG}line") if e.get("class") == "mark")
    assert mark.get("x1") == mark.get("x2")
    ends = [e for e in root.iter(f"{SVG}line") if e.get("class") == "grid"]
    left, right = float(ends[0].get("x1", "0")), float(ends[0].get("x2", "0"))
    assert float(mark.get("x1", "0")) == pytest.approx(left + (right - left) * 64 / 256, abs=0.1)


def test_plot_with_hostile_labels_many_curves_and_bad_values() -> None:
    curves = [Curve(f"<method {i}> & more", (10.0, 20.0, 30.0), (float(i + 1), math.nan, math.inf)) for i in range(20)]
    root = ET.fromstring(plot_svg(curves, 16))
    assert len(root.findall(f".//{SVG}polyline")) == 20
    with pytest.raises(UsageError):
        plot_svg([Curve("nothing", (1.0,), (math.nan,))], 16)


@pytest.mark.parametrize("spread", [1.0, 1.3, 3.0, 50.0, 1e4])
def test_plot_axis_has_a_readable_number_of_ticks(spread: float) -> None:
    root = ET.fromstring(plot_svg([Curve("a", (1.0, 2.0), (20.0, 20.0 * spread))], 1, target_length=2))
    labels = [t for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "end" and "soft" in (t.get("class") or "")]
    assert 2 <= len(labels) <= 8


def test_heatmap(report: VerifyReport) -> None:
    root = ET.fromstring(heatmap_svg(report.result.retrieval))
    shown = [t.text for t in root.iter(f"{SVG}text") if t.text and "/" in t.text]
    assert len(shown) == len(report.result.retrieval)
    with pytest.raises(UsageError):
        heatmap_svg([])


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, ctxforge.verification as v; v.VerifySettings(); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'heavy import'; "
        "assert all(hasattr(v, name) for name in v.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
