"""What `--data` names, how each kind of source is read, and what it says of bad data."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ctxforge.calibrate.data import DataSource, Tally, open_or_build, parse_source, read_documents
from ctxforge.errors import CtxforgeError, ResourceError, UnsupportedError, UsageError
from tests.calibrate.data_builders import texts_of, tokenizer, write_jsonl

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def read(spec: str | DataSource) -> tuple[list[tuple[str, str]], Tally]:
    source = parse_source(spec) if isinstance(spec, str) else spec
    tally = Tally()
    return [(one.id, one.text) for one in read_documents(source, None, tally)], tally


def refused(spec: str | DataSource, kind: type[CtxforgeError] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        read(spec)
    return f"{caught.value.cause} | {caught.value.remedy}"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hf://emozilla/pg19", DataSource("hub", "emozilla/pg19")),
        ("hf://a/b::0.3", DataSource("hub", "a/b", weight=0.3)),
        ("hf://a/b:train", DataSource("hub", "a/b", split="train")),
        ("hf://a/b:code", DataSource("hub", "a/b", config="code")),
        ("hf://a/b::test", DataSource("hub", "a/b", split="test")),
        ("hf://a/b:code:test@v1#body::2", DataSource("hub", "a/b", "body", 2.0, False, "code", "test", "v1")),
        ("hf://a/b@refs/convert/parquet", DataSource("hub", "a/b", revision="refs/convert/parquet")),
    ],
)
def test_hub_specs(spec: str, expected: DataSource) -> None:
    assert parse_source(spec) == expected


def test_local_specs(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", ["x"])
    assert parse_source(str(file)) == DataSource("jsonl", str(file))
    assert parse_source(f"{file}#body::0.25") == DataSource("jsonl", str(file), "body", 0.25)
    odd = write_jsonl(tmp_path / "b#c::0.5.jsonl", ["x"])
    assert parse_source(str(odd)) == DataSource("jsonl", str(odd))  # an existing path is taken as it is
    assert parse_source(f"{odd}#body::2") == DataSource("jsonl", str(odd), "body", 2.0)
    assert parse_source(str(tmp_path)).kind == "jsonl"  # a folder of shards
    (tmp_path / "c.py").write_text("pass")
    assert parse_source(str(tmp_path)).kind == "folder"
    assert parse_source(f"{tmp_path}#repositories").by_repository


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("missing.jsonl", "no data at 'missing.jsonl'"),
        ("", "no data at ''"),
        ("a.jsonl::many", "'many' of a.jsonl is not a number"),
        ("a.jsonl::-1", "not a positive number"),
        ("a.jsonl::0", "not a positive number"),
        ("a.jsonl::nan", "not a positive number"),
        ("hf://", "does not name a Hub data set"),
        ("hf://a/b/c", "does not name a Hub data set"),
        ("hf://a:b:c:d", "does not name a Hub data set"),
    ],
)
def test_malformed_specs(spec: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(spec)
    assert words in caught.value.cause


def test_other_suffixes_and_columns_of_text(tmp_path: Path) -> None:
    for name, words in (("a.json", "one JSON object a line"), ("a.csv", ".jsonl.gz")):
        (tmp_path / name).write_text("{}")
        with pytest.raises(UsageError) as caught:
            parse_source(str(tmp_path / name))
        assert words in caught.value.remedy
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match="no column 'body'"):
        parse_source(f"{tmp_path / 'a.txt'}#body")
    with pytest.raises(UsageError, match="no column 'body'"):
        parse_source(f"{tmp_path}#body")


def test_jsonl_plain_and_gzip(tmp_path: Path) -> None:
    plain = tmp_path / "a.jsonl"
    lines = ['{"text": "one"}', "", '{"text": "zwei \\u00e4\\n", "n": 1}', '{"text": null}', '{"text": "  "}']
    plain.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")  # no line break at the end
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (plain, packed):
        found, tally = read(str(path))
        assert found == [(f"{path.name}:1", "one"), (f"{path.name}:3", "zwei ä\n")]
        assert tally.dropped == {"empty": 2}
        assert tally.examples == {"empty": [f"{path.name}:4", f"{path.name}:5"]}
        assert tally.bytes_done == tally.bytes_total == path.stat().st_size


def test_jsonl_zstandard(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    zstandard = pytest.importorskip("zstandard")
    path.write_bytes(zstandard.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert [text for _, text in read(str(path))[0]] == ["one", "two"]
    whole = path.read_bytes()
    path.write_bytes(whole + zstandard.compress(b'{"text": "three"}\n' * 20_000))  # a second frame
    assert len(read(str(path))[0]) == 20_002
    for damaged in (whole[:-5], whole[:-1], b"no frame", whole[:12] + b"\xff" * 20):
        path.write_bytes(damaged)
        assert "whole compressed file" in refused(str(path))


def test_jsonl_zstandard_without_a_reader(tmp_path: Path) -> None:
    for module in ("compression.zstd", "zstandard"):
        try:
            __import__(module)
        except ImportError:
            continue
        pytest.skip(f"{module} is installed")
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd")
    assert "pip install zstandard" in refused(str(path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds no records"),
        (b"\n \n", "holds no records"),
        (b"\0\1\2\n", "binary file"),
        (b'[{"text": "a"}]', "jq -c '.[]'"),
        (b'{"text": "a"}\n{"text": ', "line 2 of"),
        (b'{"text": "a"}\n"b"\n', "line 2 of"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "is not UTF-8: byte 0xff at 10"),
        (b'{"body": "a", "title": "b"}\n', "no column text, content or messages; it has body, title"),
        (b'{"text": "a"}\n{"other": "a"}\n', "line 2 of"),
        (b'{"text": 3}\n', "holds a number"),
        (b'{"text": ["a"]}\n', "holds a list"),
        (b"[" * 100_000, "JSON array"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not JSON"),
    ],
)
def test_bad_jsonl(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    assert words in refused(str(path))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(data))
    assert words in refused(str(packed))


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["x"], field="body")
    assert "has no column 'prose'; it has id, body" in refused(f"{path}#prose")
    assert read(f"{path}#body")[0] == [("a.jsonl:1", "x")]


def test_fields_are_taken_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [], "content": "c", "text": "t"}) + "\n")
    assert read(str(path))[0][0][1] == "t"
    assert read(f"{path}#content")[0][0][1] == "c"


def test_a_cut_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 5000)[:-20])
    assert "not a whole compressed file" in refused(str(path))
    path.write_bytes(b"not gzip at all")
    assert "not a whole compressed file" in refused(str(path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"PNG\0\0", "binary file"),
        (b"caf\xe9", "is not UTF-8: byte 0xe9 at 3 | convert it, for instance with iconv"),
    ],
)
def test_bad_text(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert words in refused(str(path))


def test_a_single_line_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one line, " * 50_000)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "one line, " * 50_000}))
    assert len(read(str(tmp_path / "a.txt"))[0][0][1]) == len(read(str(tmp_path / "b.jsonl"))[0][0][1]) == 500_000


def code_tree(root: Path) -> Path:
    for name, data in {
        "a/main.c": b"int main;\n",
        "a/lib/x.c": b"int x;",
        "a-b/y.c": b"int y;",
        "top.md": b"\xef\xbb\xbftop",
        "a/logo.png": b"\x89PNG\0\0",
        "a/latin.c": b"caf\xe9",
        "a/empty.c": b"",
        ".git/config": b"hidden",
        "a/.cache/z": b"hidden",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def test_a_folder_of_code(tmp_path: Path) -> None:
    root = code_tree(tmp_path)
    found, tally = read(str(root))
    assert found == [("a-b/y.c", "int y;"), ("a/lib/x.c", "int x;"), ("a/main.c", "int main;\n"), ("top.md", "top")]
    assert tally.dropped == {"binary": 1, "not UTF-8": 1, "empty": 1}
    assert tally.examples["binary"] == ["a/logo.png"]


def test_repositories_are_one_document_each(tmp_path: Path) -> None:
    found, _ = read(f"{code_tree(tmp_path)}#repositories")
    assert found == [(".", "top"), ("a", "int x;\nint main;\n"), ("a-b", "int y;")]


def test_folders_without_files(tmp_path: Path) -> None:
    assert "holds no files" in refused(str(tmp_path))
    (tmp_path / ".hidden").write_text("x")
    assert "holds no files" in refused(str(tmp_path))


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "2.jsonl", ["c"])
    write_jsonl(tmp_path / "1.jsonl", ["a", "b"])
    assert read(str(tmp_path))[0] == [("1.jsonl:1", "a"), ("1.jsonl:2", "b"), ("2.jsonl:1", "c")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["x"])
    path.chmod(0)
    assert "cannot be read" in refused(str(path), ResourceError)


def test_parquet_without_pyarrow(tmp_path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        assert "pip install 'ctxforge-llm[data]'" in refused(str(tmp_path / "a.parquet"))
    else:
        pytest.skip("pyarrow is installed")


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    values = [f"document {i}" for i in range(150)]
    values[3] = None  # type: ignore[call-overload]
    parquet.write_table(arrow.table({"n": list(range(150)), "content": values}), path, row_group_size=40)
    found, tally = read(str(path))
    assert [text for _, text in found] == [one for one in values if one is not None]
    assert found[0][0] == "a.parquet:1"
    assert tally.dropped == {"empty": 1}
    assert tally.bytes_done == path.stat().st_size
    assert "no column 'text'; it has n, content" in refused(f"{path}#text")
    assert "holds a number" in refused(f"{path}#n")
    path.write_bytes(path.read_bytes()[:-30])
    assert "not a sound parquet file" in refused(str(path))


def test_hub_without_datasets() -> None:
    try:
        import datasets  # noqa: F401
    except ImportError:
        assert "pip install 'ctxforge-llm[data]'" in refused(DataSource("hub", "a/b", revision=COMMIT))
    else:
        pytest.skip("datasets is installed")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


def test_hub_rows(tmp_path: Path, no_network: Any) -> None:
    """`datasets` itself streams a folder as it streams a repository."""
    write_jsonl(tmp_path / "train.jsonl", ["one", "two"], field="body")
    write_jsonl(tmp_path / "test.jsonl", ["three"], field="body")
    source = DataSource("hub", str(tmp_path), "body")
    assert [text for _, text in read(source)[0]] == ["one", "two"]
    assert [text for _, text in read(DataSource("hub", str(tmp_path), "body", split="test"))[0]] == ["three"]
    assert "no column text, content or messages; it has id, body" in refused(DataSource("hub", str(tmp_path)))
    assert "cannot be read" in refused(DataSource("hub", str(tmp_path), "body", split="dev"))
    assert "cannot be read" in refused(DataSource("hub", str(tmp_path), "body", config="german"))
    (tmp_path / "none").mkdir()
    assert "none cannot be read" in refused(DataSource("hub", str(tmp_path / "none")))


def test_a_pinned_hub_set_is_cached(tmp_path: Path, no_network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTXFORGE_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "set"
    root.mkdir()
    file = write_jsonl(root / "train.jsonl", ["one", "two"])
    cache = open_or_build(DataSource("hub", str(root), revision=COMMIT), tokenizer())
    assert texts_of(cache) == ["one", "two"]
    assert cache.header.source["revision"] == COMMIT
    file.unlink()  # a commit does not change: nothing is asked again
    assert open_or_build(DataSource("hub", str(root), revision=COMMIT), tokenizer()).folder == cache.folder


def test_hub_scripts_point_to_parquet(tmp_path: Path, no_network: Any) -> None:
    root = tmp_path / "old"
    root.mkdir()
    (root / "old.py").write_text("import datasets\n")
    said = refused(DataSource("hub", str(root), split="test"), UnsupportedError)
    assert "is a script" in said
    assert f"hf://{root}::test@refs/convert/parquet" in said
