"""Tasks that read the user's copy of a data set."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from ctxforge.errors import ResourceError, UsageError
from ctxforge.verification.tasks import Frame, build
from tests.verification.task_tokenizers import bytes_tokenizer, sentence_piece

SIZES = (300, 900, 2000)


@pytest.fixture(scope="module")
def frame() -> Frame:
    return Frame(bytes_tokenizer())


def wiki_rows() -> list[dict[str, Any]]:
    rows = []
    for number, size in enumerate(SIZES):
        text = f"Naïve article {number}: " + "x" * size + f" The year was {1900 + number}. Which year was it?"
        rows.append(
            {
                "conversations": [
                    {"from": "human", "value": text, "tok_len": 9},
                    {"from": "gpt", "value": f" {1900 + number} "},
                ]
            }
        )
    return rows


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    path = tmp_path / "ffqa_4k.json"
    path.write_text(json.dumps(wiki_rows()))
    return path


@pytest.mark.parametrize("name", ["free-form-qa", "altered-numeric-qa"])
def test_wiki_prompts_are_whole_and_within_the_length(frame: Frame, wiki: Path, name: str) -> None:
    rows = wiki_rows()
    for seed in range(3):
        prompt = build(name, frame, 2600, seed=seed, data=wiki)
        text = bytes_tokenizer().decode(list(prompt.ids))
        assert text == rows[seed]["conversations"][0]["value"] + "\nAnswer:"
        assert prompt.references == (f" {1900 + seed} ",)
        assert prompt.tokens == len(text.encode()) + 50 <= 2600
        assert (prompt.match, prompt.exact_length) == ("presence", False)
        assert prompt.depth == 9
    with pytest.raises(UsageError, match=r"2 of the 3 prompts in .* fit into 1500 tokens") as error:
        build(name, frame, 1500, seed=2, data=wiki)
    assert "shortest prompt needs" in error.value.remedy


def test_json_lines_are_read_too(frame: Frame, wiki: Path, tmp_path: Path) -> None:
    lines = tmp_path / "ffqa.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in wiki_rows()))
    assert build("free-form-qa", frame, 2600, data=lines) == build("free-form-qa", frame, 2600, data=wiki)


def test_parquet(frame: Frame, wiki: Path, tmp_path: Path) -> None:
    path = tmp_path / "ffqa.parquet"
    if importlib.util.find_spec("pyarrow") is None:
        path.write_bytes(b"PAR1")
        with pytest.raises(ResourceError, match="needs pyarrow") as error:
            build("free-form-qa", frame, 2600, data=path)
        assert "pip install pyarrow" in error.value.remedy
        return
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(wiki_rows()), path)
    assert build("free-form-qa", frame, 2600, data=path) == build("free-form-qa", frame, 2600, data=wiki)


def squad() -> dict[str, Any]:
    def paragraph(article: int, number: int) -> dict[str, Any]:
        fact = f"The river of town {article}{number} is the Alder{article}{number}. "
        return {
            "context": fact + "It flows. " * 12,
            "qas": [
                {
                    "question": f"Which river has town {article}{number}?",
                    "answers": [{"text": f"Alder{article}{number}"}, {"text": f"the Alder{article}{number}"}],
                    "is_impossible": False,
                },
                {"question": "And the sea?", "answers": [], "is_impossible": True},
            ],
        }

    return {"data": [{"paragraphs": [paragraph(a, n) for n in range(4)]} for a in range(3)]}


def hotpot() -> list[dict[str, Any]]:
    return [
        {
            "question": f"Who founded firm {n}?",
            "answer": f"Founder{n}",
            "context": [
                [f"Firm {n}", [f"Firm {n} was founded by Founder{n}. ", "It sells tea."]],
                [f"Tea {n}", ["Tea."]],
            ],
        }
        for n in range(5)
    ]


@pytest.mark.parametrize("tokenizer", [bytes_tokenizer, sentence_piece])
@pytest.mark.parametrize("kind", ["squad", "hotpot"])
def test_documents_fill_the_length_exactly(tmp_path: Path, kind: str, tokenizer: Any) -> None:
    path = tmp_path / f"{kind}.json"
    path.write_text(json.dumps(squad() if kind == "squad" else hotpot()))
    made = Frame(tokenizer())
    for seed, length in ((0, 1500), (3, 2111), (4, 1900)):
        prompt = build("ruler-qa", made, length, seed=seed, data=path)
        assert prompt.tokens == length
        text = "".join(made.encode.decode(prompt.context).split())
        # The answer's own document is there, and the position is where it begins; HotpotQA's answers have several.
        assert prompt.references[0] in text
        if kind == "hotpot":
            assert (prompt.position, prompt.depth) == (None, None)
            continue
        assert prompt.position is not None
        start = "".join(made.encode.decode(prompt.context[prompt.position :]).split())
        assert start.startswith(f"Document:Theriveroftown{prompt.references[0].removeprefix('Alder')}is")
        assert prompt.match == "any"
        assert len(prompt.references) == 2


def test_own_documents_come_first_then_related_ones(tmp_path: Path, frame: Frame) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad()))
    text = bytes_tokenizer().decode(list(build("ruler-qa", frame, 900, seed=5, data=path).context))
    towns = [word for word in ("town 10", "town 11", "town 12", "town 13", "town 0", "town 2") if word in text]
    assert "town 11" in towns
    assert all(town.startswith("town 1") for town in towns)
    with pytest.raises(UsageError, match="12 questions"):
        build("ruler-qa", frame, 900, seed=12, data=path)


def test_a_missing_or_foreign_file_is_said_in_one_line(tmp_path: Path, frame: Frame) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text('[{"text": "no conversations"}]')
    broken = tmp_path / "broken.json"
    broken.write_text('{"data": [')
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    for name, dataset in (
        ("free-form-qa", "abacusai/WikiQA-Free_Form_QA"),
        ("altered-numeric-qa", "abacusai/WikiQA-Altered_Numeric_QA"),
        ("ruler-qa", "dev-v2.0.json"),
    ):
        for data, says in ((None, "needs a data set"), (tmp_path / "none.json", "is not a file")):
            with pytest.raises(UsageError, match=says) as error:
                build(name, frame, 2000, data=data)
            assert dataset in error.value.remedy
            assert f"--task-data {name}=FILE" in error.value.remedy
        for data, says in ((foreign, "does not hold"), (broken, "not valid JSON"), (binary, "not a text file")):
            with pytest.raises(UsageError, match=says):
                build(name, frame, 2000, data=data)


def test_too_short_for_its_own_documents(tmp_path: Path, frame: Frame) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad()))
    with pytest.raises(UsageError, match="too few") as error:
        build("ruler-qa", frame, 200, data=path)
    shortest = int(error.value.remedy.rstrip(".").split()[-1])
    assert build("ruler-qa", frame, shortest, data=path).tokens == shortest
