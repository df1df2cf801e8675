"""The retrieval grid: branch rows equal one forward a cell, in every kind of attention, and notice a broken mask."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from ctxforge.errors import UnsupportedError, UsageError
from ctxforge.verification import branches, needles, retrieval
from ctxforge.verification.onepass import OnePass
from ctxforge.verification.scored import grid
from tests.verification.tiny import DYNAMIC, LONGROPE, YARN, byte_tokenizer, prose, tiny, token_ids

TOKENIZER = byte_tokenizer()
LENGTHS = (100, 180, 250)


def haystack(seed: int = 0, prefix: tuple[int, ...] = (), strata: int = 3) -> needles.Haystack:
    body = TOKENIZER(prose(400, seed), add_special_tokens=False)["input_ids"]
    return needles.plant(TOKENIZER, body, lengths=LENGTHS, strata=strata, seed=seed, prefix=prefix)


def separate_all(runner: OnePass, stack: needles.Haystack) -> list[float]:
    cells = sorted(stack.cells, key=lambda c: (c.length, c.stratum))
    return [retrieval.separate(runner, stack.ids[: c.length], stack.needles[c.needle])[0] for c in cells]


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama yarn, grouped heads": ("llama", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gpt_neox": ("gpt_neox", {}),
    "mistral, window": ("mistral", {"sliding_window": 24, "head_dim": 16}),
    "qwen2, windows in some layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "gemma2, soft caps and windows": ("gemma2", {"head_dim": 16, "sliding_window": 24, "attn_logit_softcapping": 3.0}),
    "gemma3, windows": ("gemma3_text", {"head_dim": 16, "sliding_window": 24}),
    "gpt-oss, sinks and windows": ("gpt_oss", {"head_dim": 16, "sliding_window": 24, "num_local_experts": 4}),
    "phi3": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "stablelm": ("stablelm", {}),
    "smollm3": ("smollm3", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "cohere": ("cohere", {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_branch_rows_equal_one_forward_a_cell(name: str) -> None:
    kind, changes = MODELS[name]
    model = tiny(kind, **changes)
    if kind == "gpt_oss":
        for layer in model.model.layers:
            layer.self_attn.sinks.data.normal_()
    before = model.config._attn_implementation
    runner = OnePass(model, longest=max(LENGTHS))
    assert retrieval.choose_way(runner) == retrieval.BRANCH_ROWS
    stack = haystack()
    found = retrieval.answers(runner, stack, retrieval.BRANCH_ROWS)
    expected = separate_all(runner, stack)
    assert len(found) == len(expected) >= 5
    assert max(expected) - min(expected) > 0.1
    assert [a.nll for a in found] == pytest.approx(expected, abs=1e-4)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("name", ["llama yarn, grouped heads", "gemma2, soft caps and windows", "mistral, window"])
def test_small_blocks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, changes = MODELS[name]
    runner = OnePass(tiny(kind, **changes))
    stack = haystack()
    whole = [a.nll for a in retrieval.answers(runner, stack, retrieval.BRANCH_ROWS)]
    monkeypatch.setattr(branches, "_BLOCK_ENTRIES", 3000)
    monkeypatch.setattr(branches, "_MASK_ROWS", 7)
    assert [a.nll for a in retrieval.answers(runner, stack, retrieval.BRANCH_ROWS)] == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_cached_prefill_equals_one_forward_a_cell(kind: str) -> None:
    changes = {"llama": {"rope_parameters": YARN}}.get(kind, {"sliding_window": 24, "head_dim": 16})
    runner = OnePass(tiny(kind, **changes))
    stack = haystack()
    found = retrieval.answers(runner, stack, retrieval.CACHED_PREFILL)
    assert [a.nll for a in found] == pytest.approx(separate_all(runner, stack), abs=1e-4)


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE])
def test_length_dependent_rope_takes_a_pass_a_length(rope: dict[str, Any]) -> None:
    runner = OnePass(tiny(rope_parameters=rope), longest=max(LENGTHS))
    way = retrieval.choose_way(runner)
    assert way == retrieval.BRANCH_ROWS_PER_LENGTH
    stack = haystack()
    found = [a.nll for a in retrieval.answers(runner, stack, way)]
    assert found == pytest.approx(separate_all(runner, stack), abs=1e-4)
    together = [a.nll for a in retrieval.answers(runner, stack, retrieval.BRANCH_ROWS)]
    assert max(abs(a - b) for a, b in zip(found, together, strict=True)) > 1e-3


def test_a_broken_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: branches that see each other, or one context token too few, do not pass the self-check."""
    runner = OnePass(tiny(rope_parameters=YARN), longest=max(LENGTHS))
    stack = haystack()
    expected = separate_all(runner, stack)
    plain = branches.lay_out

    def leaky(*args: Any, **kwargs: Any) -> branches.Layout:
        layout = plain(*args, **kwargs)
        groups = [branches.Group(g.start, g.stop, g.sees, torch.zeros_like(g.owner), g.virtual) for g in layout.groups]
        return branches.Layout(layout.context, layout.ids, layout.positions, layout.first_rows, tuple(groups))

    def short(*args: Any, **kwargs: Any) -> branches.Layout:
        layout = plain(*args, **kwargs)
        groups = [branches.Group(g.start, g.stop, g.sees - 1, g.owner, g.virtual) for g in layout.groups]
        return branches.Layout(layout.context, layout.ids, layout.positions, layout.first_rows, tuple(groups))

    for broken in (leaky, short):
        monkeypatch.setattr(retrieval, "lay_out", broken)
        found = [a.nll for a in retrieval.answers(runner, stack, retrieval.BRANCH_ROWS)]
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) > 1e-2
        assert retrieval.choose_way(runner) == retrieval.CACHED_PREFILL


def test_a_model_without_the_attention_registry_is_read_through_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()

    def refuse(_name: str) -> None:
        raise ValueError("this model has its own attention")

    monkeypatch.setattr(model, "set_attn_implementation", refuse)
    assert retrieval.choose_way(OnePass(model)) == retrieval.CACHED_PREFILL


def test_attention_refuses_what_it_does_not_honour() -> None:
    layout = branches.lay_out([5, 6], [branches.Branch((7,), 2)])
    token = branches._ACTIVE.set(layout)
    try:
        q = torch.zeros(1, 2, 3, 4)
        with pytest.raises(UnsupportedError):
            branches.attend(torch.nn.Identity(), q, q, q, None)
        rule = branches.MaskRule(lambda _b, _h, i, j: i >= j, True)
        with pytest.raises(UnsupportedError):
            branches.attend(torch.nn.Identity(), q, q, q, rule, position_bias=q)
    finally:
        branches._ACTIVE.reset(token)


def test_only_answer_rows_reach_the_head() -> None:
    model = tiny()
    runner = OnePass(model)
    stack = haystack()
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _m, _i, out: rows.append(out.shape[1]))
    retrieval.answers(runner, stack, retrieval.BRANCH_ROWS)
    assert sum(rows) == sum(len(stack.needles[c.needle].answer) for c in stack.cells)


def test_exact_is_greedy_decoding() -> None:
    """A model that has memorised one answer finds it, by argmax and by generation."""
    torch.manual_seed(0)
    model = tiny(initializer_range=0.1, num_hidden_layers=1).requires_grad_(True)
    stack = haystack(strata=2)
    cell = stack.cells[0]
    needle = stack.needles[cell.needle]
    ids = [*stack.ids[: cell.length], *needle.question, *needle.answer]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
        optimizer.step()
    model.requires_grad_(False)
    found = retrieval.answers(OnePass(model), stack, retrieval.BRANCH_ROWS)
    mine = next(a for a in found if a.cell == cell)
    prompt = torch.tensor([ids[: -len(needle.answer)]])
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=len(needle.answer), do_sample=False
    )
    assert mine.exact == (made[0, prompt.shape[1] :].tolist() == list(needle.answer))
    assert mine.exact


def test_needles_lie_in_their_strata_and_cross_no_length() -> None:
    for seed, strata in itertools.product(range(20), (2, 3, 10)):
        stack = haystack(seed, prefix=(1,), strata=strata)
        assert len(stack.ids) == max(LENGTHS)
        assert stack.ids[0] == 1
        for needle, start in zip(stack.needles, stack.starts, strict=True):
            assert stack.ids[start : start + len(needle.ids)] == needle.ids
        assert len({n.word for n in stack.needles}) == len(stack.needles)
        assert len({n.digits for n in stack.needles}) == len(stack.needles)
        for cell in stack.cells:
            start, end = stack.starts[cell.needle], stack.starts[cell.needle] + len(stack.needles[cell.needle].ids)
            low = cell.length * cell.stratum / cell.strata
            assert low - 1 <= start
            assert end <= cell.length * (cell.stratum + 1) / cell.strata + 1
        for length, start, needle in itertools.product(LENGTHS, stack.starts, stack.needles):
            assert not start < length < start + len(needle.ids) or length == max(LENGTHS)


def test_every_cell_of_a_roomy_grid_has_a_needle_and_few_needles_serve_it() -> None:
    body = TOKENIZER(prose(9000), add_special_tokens=False)["input_ids"]
    lengths = (1024, 2048, 4096, 8192)
    stack = needles.plant(TOKENIZER, body, lengths=lengths, strata=10, seed=3)
    assert {(c.length, c.stratum) for c in stack.cells} == set(itertools.product(lengths, range(10)))
    assert len(stack.needles) <= 30
    text = TOKENIZER.decode(list(stack.ids))
    at_sentence_ends = sum(text[: text.index(f" The number of {n.word} is")].endswith(".") for n in stack.needles)
    assert at_sentence_ends >= len(stack.needles) - 2


def test_haystacks_are_deterministic_by_seed() -> None:
    assert haystack(4) == haystack(4)
    assert haystack(4).needles != haystack(5).needles


def test_question_and_answer_make_the_needle() -> None:
    needle = needles.make_needle(TOKENIZER, "apple", "12345")
    assert TOKENIZER.decode(list(needle.question)) == " The number of apple is"
    assert TOKENIZER.decode(list(needle.answer)) == " 12345."


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    class Lossy:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1] * len(text)}

        def decode(self, ids: list[int], **_: Any) -> str:
            return "?" * len(ids)

    with pytest.raises(UnsupportedError, match="mean nothing"):
        needles.make_needle(Lossy(), "apple", "12345")


def test_too_few_words_or_too_little_text() -> None:
    body = TOKENIZER(prose(9000), add_special_tokens=False)["input_ids"]
    with pytest.raises(UsageError, match="words"):
        needles.plant(TOKENIZER, body, lengths=(4096,), strata=10, seed=0, words=["one", "two"])
    with pytest.raises(UsageError, match="too short"):
        needles.plant(TOKENIZER, body[:300], lengths=(4096,), strata=10, seed=0)


def test_grid_gathers_haystacks() -> None:
    runner = OnePass(tiny())
    scored = [
        answer.scored(seed)
        for seed in range(3)
        for answer in retrieval.answers(runner, haystack(seed, strata=2), retrieval.BRANCH_ROWS)
    ]
    cells = grid(scored)
    assert sum(c.count for c in cells) == len(scored)
    first = [a.nll for a in scored if (a.length, a.stratum) == (cells[0].length, cells[0].stratum)]
    assert cells[0].nll == pytest.approx(sum(first) / len(first))


def test_longest_leaves_longer_cells_out() -> None:
    found = retrieval.answers(OnePass(tiny()), haystack(), retrieval.BRANCH_ROWS, longest=180)
    assert {a.cell.length for a in found} == {100, 180}


def test_words_of_the_package_are_distinct() -> None:
    words = needles.bundled_words()
    assert len(set(words)) == len(words) >= 60
    assert token_ids(3) == token_ids(3)


def test_every_seed_divides_a_length_into_the_same_strata() -> None:
    strata = [{(c.length, c.strata) for c in haystack(seed, strata=10).cells} for seed in range(8)]
    assert all(found == strata[0] for found in strata)
