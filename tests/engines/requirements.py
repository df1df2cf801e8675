"""Run by another environment's Python: what an installed distribution requires, without torch and its companions."""

from __future__ import annotations

import importlib.metadata
import re
import sys

OURS = {"torch", "torchaudio", "torchvision", "torchcodec"}


def main() -> None:
    for line in importlib.metadata.requires(sys.argv[1]) or ():
        name = re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0].lower()
        if name not in OURS and "extra ==" not in line:
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
