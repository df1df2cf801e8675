"""Gates: three verdicts, negative controls, gate files, tiers, and the effective length."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxforge.errors import InternalError, ResourceError, UsageError
from ctxforge.verification import statistics
from ctxforge.verification.gates import (
    GATES,
    LENGTH_GATES,
    TIERS,
    Gate,
    GateResult,
    Judgement,
    Measurement,
    Verdict,
    VerifyExit,
    apply_overrides,
    default_gates,
    difference,
    effective_length,
    estimate,
    exact,
    judge,
    judge_one,
    mean,
    parse_gates,
    ratio,
    read_gates,
    tier,
)
from ctxforge.verification.gates.reach import reached_draws
from ctxforge.verification.statistics import Interval

BY_NAME = {gate.name: gate for gate in GATES}


def documents(units: int, shift: float, noise: float = 0.01, seed: int = 0) -> Measurement:
    """A paired difference of `shift` nats over documents that differ much more among themselves."""
    rng = np.random.default_rng(seed)
    source = rng.normal(2.5, 0.6, size=units)
    result = source + shift + rng.normal(0, noise, size=units)
    return difference(
        result.tolist(), source.tolist(), unit="document", weights=rng.integers(500, 2000, units).tolist()
    )


def verdict(name: str, measurement: Measurement, **options: object) -> GateResult:
    gate = replace(BY_NAME[name], required=True)
    (result,) = judge([gate], {gate.measure: measurement}, **options).results  # type: ignore[arg-type]
    return result


class TestVerdicts:
    def test_a_constant_bias_fails_the_short_context_gate(self) -> None:
        result = verdict("short_nll", documents(16, 0.2))
        assert (result.verdict, result.decided_by) == (Verdict.FAIL, "interval")
        assert result.interval is not None
        assert result.interval.value == pytest.approx(0.2, abs=0.01)

    def test_a_small_cost_passes_it(self) -> None:
        assert verdict("short_nll", documents(16, 0.02)).verdict == Verdict.PASS

    def test_after_calibration_the_same_cost_does_not(self) -> None:
        (gate,) = default_gates(calibrated=True, names=["short_nll"])
        judged = judge([gate], {"short_nll": documents(16, 0.04)})
        assert gate.threshold == 0.02
        assert judged.results[0].verdict == Verdict.FAIL

    def test_a_bias_at_the_threshold_is_inconclusive(self) -> None:
        result = verdict("short_nll", documents(16, 0.05))
        assert (result.verdict, result.decided_by) == (Verdict.INCONCLUSIVE, "interval")

    def test_lost_pairing_makes_a_clear_pass_inconclusive(self) -> None:
        """The control: the same numbers against strangers no longer say anything."""
        paired = documents(16, 0.02)
        assert paired.source is not None
        values = np.random.default_rng(1).permutation(paired.source.values).tolist()
        broken = replace(paired, source=replace(paired.source, values=tuple(values)))
        assert verdict("short_nll", paired).verdict == Verdict.PASS
        assert verdict("short_nll", broken).verdict == Verdict.INCONCLUSIVE

    @pytest.mark.parametrize("name", ["short_nll", "long_nll", "use", "retrieval_nll"])
    def test_the_direction_matters(self, name: str) -> None:
        """A value far on the good side passes, and fails when the gate is turned around."""
        gate = BY_NAME[name]
        shift = gate.threshold + (-1.0 if gate.direction == "at most" else 1.0)
        assert verdict(name, documents(16, shift)).verdict == Verdict.PASS
        turned = replace(gate, direction="at least" if gate.direction == "at most" else "at most")
        assert judge([turned], {gate.measure: documents(16, shift)}).exit_code == VerifyExit.FAILED

    @pytest.mark.parametrize(
        ("shift", "expected"),
        [(0.0, Verdict.INCONCLUSIVE), (0.2, Verdict.INCONCLUSIVE), (0.31, Verdict.FAIL), (5.0, Verdict.FAIL)],
    )
    def test_few_units_decide_gross_failures_alone(self, shift: float, expected: Verdict) -> None:
        result = verdict("short_nll", documents(7, shift, noise=0.0))
        assert (result.verdict, result.decided_by) == (expected, "point")
        assert verdict("short_nll", documents(8, shift, noise=0.0)).decided_by == "interval"

    def test_too_few_units_are_said(self) -> None:
        assert "too few for an interval: 4, and 8 are needed" in verdict("short_nll", documents(4, 0.0)).words

    def test_an_exact_number_is_compared_as_it_is(self) -> None:
        assert verdict("config", exact(0)).verdict == Verdict.PASS
        assert verdict("config", exact(1)).verdict == Verdict.FAIL
        assert verdict("cache", exact(1e-3)).verdict == Verdict.PASS
        assert verdict("cache", exact(1.1e-3)).verdict == Verdict.FAIL
        assert verdict("cache", exact(math.nan)).verdict == Verdict.FAIL

    def test_the_cache_gate_follows_the_arithmetic(self) -> None:
        for dtype, threshold in (("float32", 1e-3), ("bfloat16", 5e-2)):
            (gate,) = default_gates(dtype=dtype, names=["cache"])
            assert gate.threshold == threshold

    @pytest.mark.parametrize("units", [4, 16])
    def test_losses_that_are_not_finite_fail(self, units: int) -> None:
        broken = difference([math.nan] + [2.0] * (units - 1), [2.0] * units, unit="document")
        result = verdict("long_nll", broken)
        assert result.verdict == Verdict.FAIL
        assert "not finite" in result.words

    def test_words_hold_value_interval_units_and_threshold(self) -> None:
        words = verdict("short_nll", documents(16, 0.2, noise=0.0)).words
        assert words.startswith("0.2 nats a token (95 % 0.2 to 0.2, 16 documents), to be at most 0.05: ")

    @given(
        st.floats(-10, 10),
        st.floats(0, 5),
        st.floats(0, 5),
        st.floats(-10, 10),
        st.sampled_from(["at most", "at least"]),
    )
    def test_the_rule_is_the_one_that_is_documented(
        self, value: float, below: float, above: float, threshold: float, direction: str
    ) -> None:
        gate = Gate("g", "g", direction, threshold, "interval", "", "")  # type: ignore[arg-type]
        low, high = value - below, value + above
        found = judge_one(gate, Interval(value, low, high, 20, "")).verdict
        good = (lambda x: x <= threshold) if direction == "at most" else (lambda x: x >= threshold)
        expected = {(True, True): Verdict.PASS, (False, False): Verdict.FAIL}.get((good(low), good(high)))
        assert found == (expected or Verdict.INCONCLUSIVE)


class TestExitCodes:
    def results(self, *verdicts: Verdict) -> tuple[GateResult, ...]:
        return tuple(GateResult(BY_NAME["config"], v, None, "exact", "") for v in verdicts)

    @pytest.mark.parametrize(
        ("verdicts", "code", "strict_code"),
        [
            ("P", 0, 0),
            ("PI", 3, 1),
            ("PIF", 1, 1),
            ("F", 1, 1),
            ("I", 3, 1),
            ("", 3, 1),
        ],
    )
    def test_worst_verdict_decides(self, verdicts: str, code: int, strict_code: int) -> None:
        names = {"P": Verdict.PASS, "F": Verdict.FAIL, "I": Verdict.INCONCLUSIVE}
        results = self.results(*(names[letter] for letter in verdicts))
        assert Judgement(results).exit_code == code
        assert Judgement(results, strict=True).exit_code == strict_code

    def test_an_underpowered_verification_exits_3_and_names_the_gate(self) -> None:
        judged = judge(default_gates(required=["short_nll"], names=["short_nll"]), {"short_nll": documents(4, 0.0)})
        assert judged.exit_code == VerifyExit.INCONCLUSIVE == 3
        assert judged.headline == "inconclusive: 1 of 1 gates (short_nll)"
        assert judge(default_gates(names=["short_nll"]), {"short_nll": documents(4, 0.0)}, strict=True).exit_code == 1

    def test_a_broken_conversion_exits_1_and_names_the_gate(self) -> None:
        measured = {"short_nll": documents(16, 0.2), "long_nll": documents(16, 0.0), "config_failures": exact(0)}
        judged = judge(default_gates(), measured)
        assert judged.exit_code == 1
        assert judged.headline == "fail: 1 of 3 gates (short_nll)"

    def test_a_required_gate_without_a_value_is_inconclusive_others_are_left_out(self) -> None:
        judged = judge(
            default_gates(required=["use"]), {"config_failures": exact(0)}, missing={"delta_use": "no source"}
        )
        assert judged.exit_code == 3
        assert {r.gate.name: r.words for r in judged.results}["use"] == "no value: no source"
        assert ("retrieval", "it was not measured") in judged.left_out
        assert len(judged.results) + len(judged.left_out) == len(GATES)

    def test_right_answers_that_can_decide_nothing_are_left_out(self) -> None:
        """14 of 20 against 14 of 20 can't show 85 %; asked for by name they are inconclusive, and failing they fail."""
        weak = ratio([1.0] * 14 + [0.0] * 6, [1.0] * 14 + [0.0] * 6, unit="prompt", outcomes=True)
        judged = judge(default_gates(names=["config", "retrieval"]), {"config_failures": exact(0), "retrieval": weak})
        assert judged.exit_code == 0
        assert judged.left_out == (("retrieval", "the source's own 70% of 20 prompts is too little to show 85% of it"),)
        asked = judge(default_gates(names=["retrieval"], required=["retrieval"]), {"retrieval": weak})
        assert asked.exit_code == 3
        lost = ratio([0.0] * 20, [1.0] * 14 + [0.0] * 6, unit="prompt", outcomes=True)
        assert judge(default_gates(names=["retrieval"]), {"retrieval": lost}).exit_code == 1

    def test_right_answers_of_a_strong_source_are_judged(self) -> None:
        source = [1.0] * 38 + [0.0] * 2
        judged = judge(
            default_gates(names=["retrieval"]), {"retrieval": ratio(source, source, unit="prompt", outcomes=True)}
        )
        assert judged.exit_code == 0
        worse = [1.0] * 34 + [0.0] * 6
        judged = judge(
            default_gates(names=["retrieval"]), {"retrieval": ratio(worse, source, unit="prompt", outcomes=True)}
        )
        assert judged.exit_code == 3

    def test_the_document_is_json(self) -> None:
        document = judge(default_gates(), {"short_nll": documents(16, 0.2), "config_failures": exact(0)}).to_dict()
        back = json.loads(json.dumps(document))
        assert back == document
        assert [gate["verdict"] for gate in back["gates"]] == ["pass", "fail"]
        assert back["exit_code"] == 1


class TestEstimates:
    def test_a_difference_of_two_buckets_is_weighted_on_each_side(self) -> None:
        """Last bucket and the one below L0 hold different numbers of tokens; the estimate is a ratio of sums each."""
        late, early = [3.0, 2.0, 2.5], [2.0, 2.0, 3.0]
        found = estimate(difference(late, early, unit="document", weights=[1, 1, 2], source_weights=[3, 1, 1]))
        assert found.value == pytest.approx((3 + 2 + 5) / 4 - (6 + 2 + 3) / 5)

    def test_right_answers_of_one_model_get_wilsons_interval(self) -> None:
        found = estimate(mean([1.0] * 20, unit="prompt", outcomes=True))
        assert (found.value, found.method) == (1.0, "Wilson")
        assert found.bounds == pytest.approx((0.8389, 1.0), abs=1e-4)

    def test_a_ratio_of_right_answers_is_no_narrower_than_wilson_allows(self) -> None:
        """20 of 20 against 20 of 20: resampling alone would say 1 to 1, and pass 85 % with certainty."""
        few = estimate(ratio([1.0] * 20, [1.0] * 20, unit="prompt", outcomes=True))
        assert few.value == 1.0
        assert few.low == pytest.approx(0.8389, abs=0.001)
        assert verdict("retrieval", ratio([1.0] * 20, [1.0] * 20, unit="prompt", outcomes=True)).verdict != Verdict.PASS
        assert verdict("retrieval", ratio([1.0] * 40, [1.0] * 40, unit="prompt", outcomes=True)).verdict == Verdict.PASS

    def test_a_ratio_of_noisy_scores_equals_a_plain_loop(self) -> None:
        rng = np.random.default_rng(3)
        source = np.sort(rng.uniform(0.5, 1.0, 15))
        result = source * rng.uniform(0.7, 1.0, 15)
        measurement = ratio(result.tolist(), source.tolist(), unit="prompt")
        order = np.lexsort((source, result))
        drawn = np.random.default_rng(5).integers(0, 15, size=(2000, 15))
        loop = [result[order][row].mean() / source[order][row].mean() for row in drawn]
        levels = statistics.percentile_levels(15)
        found = estimate(measurement, resamples=2000, seed=5)
        assert found.bounds == pytest.approx(tuple(np.quantile(loop, levels)), abs=1e-12)
        assert found.value == pytest.approx(result.mean() / source.mean())

    def test_the_worst_group_decides(self) -> None:
        """The middle third finds nothing; the mean over the grid hides it."""
        thirds = ["first", "middle", "last"] * 20
        result = [0.0 if third == "middle" else 1.0 for third in thirds]
        grouped = ratio(result, [1.0] * 60, unit="prompt", groups=thirds, outcomes=True)
        assert estimate(grouped).value == 0.0
        assert estimate(replace(grouped, groups=None)).value == pytest.approx(2 / 3)
        assert verdict("retrieval_depth", grouped).verdict == Verdict.FAIL

    def test_shuffled_depths_hide_the_worst_third(self) -> None:
        """The control of the above: with labels shuffled the collapse of one third is spread over all."""
        thirds = ["first", "middle", "last"] * 40
        result = [0.0 if third == "middle" else 1.0 for third in thirds]
        shuffled = np.random.default_rng(0).permutation(thirds).tolist()
        found = estimate(ratio(result, [1.0] * 120, unit="prompt", groups=shuffled, outcomes=True))
        assert found.value > 0.4

    def test_the_smallest_group_counts_the_units(self) -> None:
        groups = ["first"] * 20 + ["last"] * 5
        found = estimate(mean([0.5] * 25, unit="prompt", groups=groups))
        assert (found.units, found.bounds) == (5, None)

    def test_worst_of_groups_is_the_highest_for_losses(self) -> None:
        values = [1.0] * 10 + [2.0] * 10
        found = estimate(mean(values, unit="prompt", groups=["a"] * 10 + ["b"] * 10, worst="highest"))
        assert found.value == 2.0
        assert found.bounds == pytest.approx((2.0, 2.0))

    def test_a_source_that_finds_nothing_decides_nothing(self) -> None:
        result = verdict("retrieval", ratio([0.0] * 20, [0.0] * 20, unit="prompt", outcomes=True))
        assert result.verdict == Verdict.INCONCLUSIVE
        assert "the source's own score is 0" in result.words

    def test_nothing_measured_decides_nothing(self) -> None:
        empty = difference([1.0] * 9, [1.0] * 9, unit="document", weights=[0.0] * 9)
        assert verdict("short_nll", empty).verdict == Verdict.INCONCLUSIVE

    def test_retrieval_that_vanished_fails(self) -> None:
        lost = ratio([0.0] * 20, [1.0] * 20, unit="prompt", outcomes=True)
        assert verdict("retrieval", lost).verdict == Verdict.FAIL
        few = ratio([0.0] * 5, [1.0] * 5, unit="prompt", outcomes=True)
        assert (verdict("retrieval", few).verdict, verdict("retrieval", few).decided_by) == (Verdict.FAIL, "point")
        one = ratio([0.0], [1.0], unit="prompt", outcomes=True)
        assert verdict("retrieval", one).verdict == Verdict.INCONCLUSIVE

    @pytest.mark.parametrize(
        "make",
        [
            lambda: mean([], unit="document"),
            lambda: difference([1.0], [1.0, 2.0], unit="document"),
            lambda: mean([1.0, 2.0], unit="document", weights=[1.0]),
            lambda: mean([1.0, 2.0], unit="document", weights=[1.0, -1.0]),
            lambda: mean([0.5], unit="prompt", outcomes=True),
            lambda: mean([1.0, 2.0], unit="prompt", labels=["a", "a"]),
            lambda: mean([1.0, 2.0], unit="prompt", groups=["a"]),
            lambda: mean([1.0, 2.0], unit="none"),
        ],
    )
    def test_measurements_that_do_not_fit_are_refused(self, make) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(InternalError):
            make()


class TestDefaults:
    def test_thresholds_are_the_protocols(self) -> None:
        assert {gate.name: (gate.direction, gate.threshold) for gate in GATES if gate.basis == "interval"} == {
            "short_nll": ("at most", 0.05),
            "long_nll": ("at most", 0.10),
            "use": ("at least", -0.05),
            "retrieval": ("at least", 0.85),
            "retrieval_depth": ("at least", 0.70),
            "retrieval_nll": ("at most", 0.5),
            "retrieval_depth_nll": ("at most", 1.0),
        }

    def test_gross_limits_lie_beyond_the_thresholds(self) -> None:
        for gate in GATES:
            if gate.gross is not None:
                assert gate.gross > gate.threshold if gate.direction == "at most" else gate.gross < gate.threshold
            assert (gate.gross is not None) == (gate.basis == "interval")

    def test_names_are_unique_and_explained(self) -> None:
        assert len(BY_NAME) == len(GATES)
        assert all(gate.explanation.endswith(".") and "\n" not in gate.explanation for gate in GATES)

    def test_tiers_name_gates_that_exist_and_grow(self) -> None:
        for one in TIERS.values():
            assert set(one.gates) <= set(BY_NAME)
        order = [TIERS[name] for name in ("smoke", "quick", "standard", "full")]
        for small, large in itertools.pairwise(order):
            assert set(small.required) <= set(large.required)
            assert small.prompts <= large.prompts
            assert small.documents <= large.documents
            assert small.short_documents <= large.short_documents
        assert not TIERS["smoke"].needs_text

    def test_tiers_sample_enough_for_the_gates_that_they_require(self) -> None:
        for one in TIERS.values():
            if "short_nll" in one.required:
                assert one.short_documents >= statistics.FEWEST_UNITS
            if "long_nll" in one.required:
                assert one.documents >= statistics.FEWEST_UNITS
            if "retrieval_depth" in one.required:
                assert one.prompts // 3 >= statistics.FEWEST_UNITS

    @given(st.integers(64, 1 << 20), st.integers(64, 1 << 22), st.sampled_from(sorted(TIERS)))
    def test_lengths_end_with_the_target_and_hold_the_trained_one(self, trained: int, target: int, name: str) -> None:
        lengths = TIERS[name].lengths(trained, target)
        assert lengths[-1] == target
        assert min(trained, target) in lengths
        assert list(lengths) == sorted(set(lengths))
        assert len(lengths) <= max(2, TIERS[name].most_lengths)
        assert all(n <= target for n in lengths)

    def test_lengths_of_a_doubling(self) -> None:
        assert TIERS["quick"].lengths(2048, 16384) == (512, 1024, 2048, 4096, 8192, 16384)
        assert TIERS["smoke"].lengths(2048, 16384) == (2048, 16384)

    def test_unknown_tiers_are_refused_with_the_nearest(self) -> None:
        assert tier("quick").name == "quick"
        with pytest.raises(UsageError) as caught:
            tier("standart")
        assert caught.value.remedy == "did you mean standard?"

    def test_tiers_and_gate_files_need_no_numpy(self) -> None:
        code = (
            "import sys; from ctxforge.verification.gates import TIERS, parse_gates, apply_overrides, GATES;"
            "apply_overrides(GATES, parse_gates({'use': False})); sys.exit('numpy' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestGateFiles:
    def test_every_form(self, tmp_path: Path) -> None:
        path = tmp_path / "gates.toml"
        path.write_text(
            "source = 'x'\n[gates]\nshort_nll = 0.02\nuse = false\nretrieval = true\n"
            "long_nll = { threshold = 1, gross = 2.5, required = false }\n"
        )
        gates = {gate.name: gate for gate in apply_overrides(GATES, read_gates(path))}
        assert (gates["short_nll"].threshold, gates["short_nll"].gross, gates["short_nll"].required) == (
            0.02,
            0.3,
            True,
        )
        assert "use" not in gates
        assert gates["retrieval"] == replace(BY_NAME["retrieval"], required=True)
        assert (gates["long_nll"].threshold, gates["long_nll"].gross, gates["long_nll"].required) == (1.0, 2.5, False)
        assert gates["finite"] == BY_NAME["finite"]
        assert len(gates) == len(GATES) - 1

    def test_json_says_the_same(self, tmp_path: Path) -> None:
        path = tmp_path / "gates.json"
        path.write_text('{"gates": {"short_nll": 0.02, "use": false}}')
        assert read_gates(path) == parse_gates({"short_nll": 0.02, "use": False})

    def test_a_looser_threshold_takes_the_gross_limit_along(self) -> None:
        (gate,) = apply_overrides([BY_NAME["short_nll"]], parse_gates({"short_nll": 0.8}))
        assert (gate.threshold, gate.gross) == (0.8, 0.8)
        (gate,) = apply_overrides([BY_NAME["use"]], parse_gates({"use": -1.0}))
        assert (gate.threshold, gate.gross) == (-1.0, -1.0)

    def test_a_gate_that_the_tier_lacks_is_added(self) -> None:
        names = [gate.name for gate in apply_overrides(default_gates(names=["config"]), parse_gates({"use": True}))]
        assert names == ["config", "use"]

    @pytest.mark.parametrize(
        ("entries", "cause", "remedy"),
        [
            ({"short_nl": 1}, "no gate 'short_nl'", "did you mean short_nll?"),
            ({"zzz": 1}, "no gate 'zzz'", "there are config, finite"),
            ({"use": "0.1"}, "use.threshold", "write a threshold"),
            ({"use": None}, "null", "write a threshold"),
            ({"use": [0.1]}, "use.threshold", "write a threshold"),
            ({"use": math.nan}, "use.threshold", "write a threshold"),
            ({"use": -math.inf}, "use.threshold", "write a threshold"),
            ({"use": {"threshold": True}}, "use.threshold", "write a threshold"),
            ({"use": {"required": 1}}, "use.required", "write a threshold"),
            ({"use": {"limit": 1}}, "use.limit", "write a threshold"),
            ({"use": {"direction": "at most"}}, "use.direction", "write a threshold"),
            ({"cache": {"gross": 1.0}}, "no gross limit", "its threshold alone"),
            ({"short_nll": {"threshold": 0.5, "gross": 0.4}}, "stricter than its threshold", "beyond"),
            ({"use": {"gross": 0.4}}, "stricter than its threshold", "beyond"),
        ],
    )
    def test_wrong_entries_are_named(self, entries: dict[str, object], cause: str, remedy: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_gates(entries)
        assert cause in caught.value.cause
        assert remedy in caught.value.remedy

    @pytest.mark.parametrize(
        ("name", "content", "cause"),
        [
            ("a.toml", b"[gates\n", "is not TOML"),
            ("a.toml", b"", "has no table [gates]"),
            ("a.toml", b"[gate]\nuse = 1\n", "has no table [gates]"),
            ("a.toml", b"gates = 3\n", "has no table [gates]"),
            ("a.toml", b"[gates]\nuse = 1\nuse = 2\n", "is not TOML"),
            ("a.toml", b"\xff\xfe\x00", "is not UTF-8"),
            ("a.json", b"{", "is not JSON"),
            ("a.json", b"[]", "has no table [gates]"),
            ("a.json", b'{"gates": {"use": 1, "use": 2}}', "given twice"),
            ("a.json", b"[" * 100_000, "is not JSON"),
            ("a.json", b'{"gates": {"use": 1e999}}', "use.threshold"),
            ("a.json", b" " * 1_000_001, "larger than a file of gates"),
            ("a.toml", b"[gates]\nuse = nan\n", "use.threshold"),
            ("a.toml", b"[gates]\nuse = 2020-01-01\n", "use.threshold"),
        ],
    )
    def test_wrong_files_are_named(self, tmp_path: Path, name: str, content: bytes, cause: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UsageError) as caught:
            read_gates(path)
        assert cause in caught.value.cause
        assert str(path) in caught.value.cause

    def test_a_missing_file_and_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="does not exist"):
            read_gates(tmp_path / "none.toml")
        with pytest.raises(ResourceError, match="can't be read"):
            read_gates(tmp_path)

    @given(
        st.dictionaries(
            st.sampled_from(sorted(BY_NAME)) | st.text(max_size=5),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: (
                    st.lists(inner, max_size=2)
                    | st.dictionaries(st.sampled_from(["threshold", "gross", "required", "x"]), inner, max_size=3)
                ),
                max_leaves=5,
            ),
            max_size=3,
        )
    )
    def test_any_entries_are_taken_or_refused_in_words(self, entries: dict[str, object]) -> None:
        try:
            overrides = parse_gates(entries)
        except UsageError:
            return
        assert all(math.isfinite(gate.threshold) for gate in apply_overrides(GATES, overrides))


class TestEffectiveLength:
    LENGTHS = (2048, 4096, 8192, 16384)
    GATE = (BY_NAME["long_nll"],)

    def measured(
        self, shifts: tuple[float, ...], units: int = 16, noise: float = 0.01
    ) -> dict[int, dict[str, Measurement]]:
        return {n: {"long_nll": documents(units, shift, noise)} for n, shift in zip(self.LENGTHS, shifts, strict=True)}

    def test_it_ends_where_a_gate_stops_holding(self) -> None:
        found = effective_length(self.GATE, self.measured((0.0, 0.02, 0.05, 1.5)))
        assert (found.length, found.low, found.high, found.failed) == (8192, 8192, 8192, ("long_nll",))
        assert found.words == "8k; at 16k long_nll does not hold (95 % 8k to 8k)"

    def test_a_length_near_the_threshold_makes_an_interval(self) -> None:
        found = effective_length(self.GATE, self.measured((0.0, 0.02, 0.09, 1.5), noise=0.05))
        assert (found.length, found.low, found.high) == (8192, 4096, 8192)

    def test_the_draws_equal_a_plain_loop(self) -> None:
        by_length = self.measured((0.0, 0.06, 0.09, 0.12), noise=0.1)
        found = effective_length(self.GATE, by_length, resamples=400, seed=11)
        tables = [by_length[n]["long_nll"] for n in self.LENGTHS]
        rows = [
            (s.values[u], s.weights[u]) for u in range(16) for m in tables for s in m.samples if s.weights is not None
        ]
        table = np.array(rows).reshape(16, 8, 2)
        order = np.lexsort(np.concatenate([table[..., 0], table[..., 1]], axis=1).T[::-1])
        table = table[order]
        drawn = np.random.default_rng(11).integers(0, 16, size=(400, 16))
        steps = []
        for row in drawn:
            means = (table[row, :, 0] * table[row, :, 1]).sum(0) / table[row, :, 1].sum(0)
            good = means[0::2] - means[1::2] <= 0.10
            steps.append(4 if good.all() else int(np.argmin(good)))
        assert len(set(steps)) > 2, "the case must be one with a spread"
        judged = dict.fromkeys(self.LENGTHS, self.GATE)
        assert reached_draws(self.LENGTHS, judged, by_length, 400, 11).tolist() == steps
        low, high = np.quantile(steps, statistics.percentile_levels(16), method="inverted_cdf")
        bounds = tuple(None if not step else self.LENGTHS[int(step) - 1] for step in (low, high))
        assert (found.low, found.high) == bounds

    def test_a_hole_ends_it(self) -> None:
        """A length counts when every shorter one holds too."""
        found = effective_length(self.GATE, self.measured((0.0, 1.0, 0.0, 0.0)))
        assert (found.length, found.low, found.high) == (2048, 2048, 2048)

    def test_an_exact_gate_ends_it_in_every_resample(self) -> None:
        by_length = {
            n: {**of, "nonfinite_losses": exact(n > 4096)} for n, of in self.measured((0.0, 0.0, 0.0, 0.0)).items()
        }
        found = effective_length((*self.GATE, BY_NAME["finite"]), by_length)
        assert (found.length, found.low, found.high, found.failed) == (4096, 4096, 4096, ("finite",))

    def test_none_when_the_shortest_fails(self) -> None:
        found = effective_length(self.GATE, self.measured((1.0, 1.0, 1.0, 1.0)))
        assert (found.length, found.low, found.high, found.has_interval) == (None, None, None, True)
        assert found.words == (
            "none: at 2k, the shortest length measured, long_nll does not hold (95 % less than 2k to less than 2k)"
        )

    def test_the_longest_measured_length_is_said_to_be_that(self) -> None:
        found = effective_length(self.GATE, self.measured((0.0, 0.0, 0.0, 0.0)))
        assert found.length == 16384
        assert "the longest length measured" in found.words

    def test_too_few_units_have_no_interval(self) -> None:
        found = effective_length(self.GATE, self.measured((0.0, 0.0, 1.0, 1.0), units=4))
        assert (found.length, found.low, found.high, found.has_interval) == (4096, None, None, False)
        assert "too few for an interval: 4" in found.words

    def test_documents_and_prompts_count_together_and_missing_strata_are_allowed(self) -> None:
        """Retrieval by (seed, depth): the shortest length has fewer strata, which is no reason to lose the pairing."""
        rng = np.random.default_rng(2)
        gates = default_gates(names=LENGTH_GATES)
        by_length = {}
        for n, found in zip(self.LENGTHS, (1.0, 1.0, 0.3, 0.3), strict=True):
            depths = 5 if n == 2048 else 10
            labels = [f"seed {seed}, depth {depth}/{depths}" for seed in range(8) for depth in range(depths)]
            right = [float(x) for x in rng.random(len(labels)) < found]
            by_length[n] = {
                "long_nll": documents(16, 0.0),
                "retrieval": ratio(right, [1.0] * len(labels), unit="prompt", labels=labels, outcomes=True),
                "config_failures": exact(0),
            }
        result = effective_length((*gates, BY_NAME["config"]), by_length)
        assert (result.length, result.low, result.high, result.failed) == (4096, 4096, 4096, ("retrieval",))

    def test_a_source_that_finds_nothing_does_not_end_it(self) -> None:
        """A ratio to nothing is no evidence against the length; with no other gate nothing is known."""
        nothing = ratio([0.0] * 20, [0.0] * 20, unit="prompt", outcomes=True)
        by_length = {n: {**of, "retrieval": nothing} for n, of in self.measured((0.0, 0.0, 0.0, 1.0)).items()}
        gates = default_gates(names=LENGTH_GATES)
        assert effective_length(gates, by_length).length == 8192
        found = effective_length(gates, {n: {"retrieval": nothing} for n in by_length})
        assert (found.length, found.words) == (None, "unknown: no gate could be judged at 2k")

    def test_no_length_is_refused(self) -> None:
        with pytest.raises(InternalError):
            effective_length(self.GATE, {})
