"""Token caches: the tokenizer's own ids, found again by content, and noticed when they are not whole."""

from __future__ import annotations

import copy
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from ctxforge.calibrate.data import (
    DamagedCacheError,
    Filters,
    TokenCache,
    make_guard,
    open_or_build,
    parse_source,
    require_length,
)
from ctxforge.errors import UsageError
from tests.calibrate.data_builders import EOS, stretches, synthetic, texts_of, tokenizer, with_prefix, write_jsonl


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CTXFORGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", [*stretches(40), "", "Ünïcode 漢字 <s> & \0 zero"])


def build(path: Path | str, **more: object) -> TokenCache:
    return open_or_build(parse_source(str(path)), tokenizer(), **more)  # type: ignore[arg-type]


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != "digests")


def test_ids_are_those_of_the_tokenizer(data: Path) -> None:
    cache = build(data)
    texts = [*stretches(40), "Ünïcode 漢字 <s> & \0 zero"]
    assert len(cache) == cache.header.documents == 41
    for index, text in enumerate(texts):
        assert cache.document(index).tolist() == [*tokenizer()(text, add_special_tokens=False)["input_ids"], EOS]
    assert cache.header.dropped == {"empty": 1}
    assert cache.header.tokens == len(cache.tokens) == cache.lengths.sum()
    assert cache.header.longest == cache.lengths.max() == 401
    assert cache.header.characters == sum(map(len, texts))
    assert cache.header.vocabulary == 259
    assert cache.tokens.dtype == np.uint16
    cache.check()


def test_documents_are_views_of_the_mapped_file(data: Path) -> None:
    cache = build(data)
    one = cache.document(7)
    assert isinstance(cache.tokens.base, np.memmap)
    assert np.shares_memory(one, cache.tokens)
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 1
    with pytest.raises(IndexError):
        cache.document(41)


def test_the_prefix_is_told_and_not_stored(data: Path) -> None:
    plain, other = build(data), open_or_build(parse_source(str(data)), with_prefix())
    assert other.header.prefix == (256,)
    assert plain.header.prefix == ()
    assert other.folder != plain.folder
    assert (other.tokens == plain.tokens).all()


def test_truncation_and_padding_of_the_tokenizer_change_nothing(data: Path) -> None:
    limited = copy.deepcopy(tokenizer())
    limited.backend_tokenizer.enable_truncation(50)
    limited.backend_tokenizer.enable_padding()
    cache = open_or_build(parse_source(str(data)), limited)
    assert cache.header.longest == 401
    assert build(data).folder == cache.folder


def test_the_same_content_is_the_same_cache(data: Path, tmp_path: Path, own_cache: Path) -> None:
    first = build(data)
    inode = (first.folder / "tokens.bin").stat().st_ino
    copied = tmp_path / "elsewhere.jsonl"
    copied.write_bytes(data.read_bytes())
    os.utime(data)
    for path in (data, copied, f"{data}::0.5"):
        again = build(path)
        assert again.folder == first.folder
        assert (again.folder / "tokens.bin").stat().st_ino == inode
    assert folders(own_cache) == [first.folder.name]


def test_everything_that_decides_makes_another_cache(data: Path) -> None:
    more = copy.deepcopy(tokenizer())
    more.add_tokens(["the"])
    keys = [
        build(data).folder,
        build(f"{data}#text").folder,
        build(data, filters=Filters(min_characters=10)).folder,
        build(data, filters=Filters(max_tokens=900)).folder,
        build(data, guard=make_guard(["x" * 1500])).folder,
        open_or_build(parse_source(str(data)), more).folder,
        open_or_build(parse_source(str(data)), with_prefix()).folder,
    ]
    data.write_bytes(data.read_bytes().replace(b"Elliot", b"Eliott", 1))
    keys.append(build(data).folder)
    assert len(set(keys)) == len(keys)


def test_a_change_of_one_byte_with_size_and_times_kept_is_seen(data: Path) -> None:
    before = data.stat()
    first = build(data)
    content = bytearray(data.read_bytes())
    content[40] ^= 1
    data.write_bytes(content)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert data.stat().st_mtime_ns == before.st_mtime_ns
    assert build(data).header.content != first.header.content


def test_a_known_file_is_not_hashed_again(data: Path) -> None:
    said: list[str] = []
    build(data, progress=lambda what, _done, _total: said.append(what))
    assert said == ["hashing the data", "tokenising"]  # it was written a moment ago, and might change again unseen
    time.sleep(2.1)
    build(data, progress=lambda what, _done, _total: said.append(what))
    assert said[2:] == ["hashing the data"]
    build(data, progress=lambda what, _done, _total: said.append(what))
    assert said[3:] == []


@pytest.mark.parametrize("name", ["header.json", "tokens.bin", "offsets.bin", "hashes.bin", "spans.bin"])
@pytest.mark.parametrize("damage", ["cut", "longer", "missing", "changed"])
def test_damage_is_noticed_and_repaired(data: Path, name: str, damage: str) -> None:
    cache = build(data)
    good = {path.name: path.read_bytes() for path in cache.folder.iterdir()}
    path = cache.folder / name
    content = bytearray(good[name])
    if damage == "missing":
        path.unlink()
    elif damage == "longer":
        path.write_bytes(content + b"x")
    elif not content:
        pytest.skip("an empty file has nothing to cut or change")
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    if (name, damage) == ("tokens.bin", "changed"):  # only a full reading sees it
        with pytest.raises(DamagedCacheError, match="changed"):
            TokenCache.open(cache.folder).check()
        return
    with pytest.raises(DamagedCacheError):
        TokenCache.open(cache.folder)
    again = build(data)
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == good


def test_another_schema_is_not_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = build(data)
    monkeypatch.setattr("ctxforge.calibrate.data.header.SCHEMA", 2)
    with pytest.raises(DamagedCacheError, match="schema 1, not 2"):
        TokenCache.open(cache.folder)


def test_limits_on_documents_and_tokens(data: Path) -> None:
    assert texts_of(build(data, filters=Filters(max_documents=3))) == stretches(3)
    cache = build(data, filters=Filters(max_tokens=900))
    assert cache.header.documents == 3  # 401 tokens each: the third reaches 900
    short = build(data, filters=Filters(min_tokens=100))
    assert short.header.documents == 40
    assert short.header.dropped == {"empty": 1, "shorter than the minimum": 1}


def test_many_small_batches_keep_the_order(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(5000)]
    assert texts_of(build(write_jsonl(tmp_path / "many.jsonl", texts))) == texts


def test_nothing_is_left(tmp_path: Path, own_cache: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "one", ""])
    with pytest.raises(UsageError) as caught:
        build(path, filters=Filters(min_tokens=100))
    assert caught.value.cause.endswith("is left: 1 repeated, 1 empty, 1 shorter than the minimum")
    assert folders(own_cache) == []


def test_an_error_in_the_data_leaves_nothing(tmp_path: Path, own_cache: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", stretches(30))
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(UsageError, match="line 31 of"):
        build(path)
    assert folders(own_cache) == []


def test_long_documents_and_data_that_is_too_short(tmp_path: Path) -> None:
    cache = synthetic(tmp_path / "a", [10, 700, 300, 900, 520])
    other = synthetic(tmp_path / "b", [100], prefix=(1,))
    assert cache.long_documents(520).tolist() == [1, 3, 4]
    require_length([cache, other], 900)
    with pytest.raises(UsageError) as caught:
        require_length([cache, other], 901)
    assert caught.value.cause == "the data has 6 documents, the longest of 900 tokens, and none reaches 901"
    assert "train at 512, which 3 of them reach" in caught.value.remedy
    require_length([other], 101)  # with the prefix
    with pytest.raises(UsageError):
        require_length([other], 102)


def test_a_folder_moves_as_a_whole(tmp_path: Path) -> None:
    root = tmp_path / "one"
    root.mkdir()
    for index, text in enumerate(stretches(3)):
        (root / f"{index}.md").write_text(text)
    first = build(root)
    shutil.copytree(root, tmp_path / "two")
    assert build(tmp_path / "two").folder == first.folder
    (root / "2.md").rename(root / "3.md")
    assert build(root).folder != first.folder
