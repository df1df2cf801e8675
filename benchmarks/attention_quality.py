"""Quality of every training-free system beside YaRN, by the verifier: perplexity by position and retrieval by distance.

    python benchmarks/attention_quality.py                                      # the bundled model at 2x and 4x
    python benchmarks/attention_quality.py --model smollm2 --device cuda --dtype bfloat16 --out quality
    python benchmarks/attention_quality.py --model FOLDER --text FILE --systems yarn-paper lm-infinite string@yarn-paper
    python benchmarks/attention_quality.py --from quality/attention-quality.json other/attention-quality.json

Each system is converted with `ctxforge.extend`, loaded, and measured and judged as `ctxforge verify --tier quick` does:
the same windows, haystacks and gates. The source and the text's tokens are prepared once a target length. A system is a
method (`yarn-paper`), an attachment with its parameters (`lm-infinite:sinks=4`), an attachment on a method
(`string@yarn-paper`), or `unmodified`: the source run past its length. Left out: all attachments that need no training,
with what their defaults choose for the target.

The output folder gets `attention-quality.json` (whole reports) and `attention-quality.md`. The same command goes on
after the systems that are already in there; what they depend on is recorded with them (weights, text, emitted code,
settings, versions). `--from` prints the tables of such files again, later ones over earlier ones, and measures nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from attention_quality_tables import RESULTS, contradictions, identified, merged, render, write  # noqa: E402

import ctxforge  # noqa: E402
from ctxforge import pipeline, verification  # noqa: E402
from ctxforge.attention.registry import attachments  # noqa: E402
from ctxforge.errors import CtxforgeError  # noqa: E402
from ctxforge.sources import BUNDLED, bundled_text, resolve_source  # noqa: E402

# STRING improves the use of a length and does not extend: it needs a method that does.
ON_A_METHOD = {"string": "yarn-paper"}
TIER = "quick"


@dataclass(frozen=True)
class System:
    """What is measured in one row.

    Attributes:
        name: as on the command line.
        method: of RoPE; "none" where it is left as it is.
        attach: an attachment with parameters; None without one.
    """

    name: str
    method: str
    attach: str | None = None

    @property
    def role(self) -> str:
        """What its own description promises: "unmodified", "window", "untrained" or "sees all"."""
        if self.attach is None:
            return "unmodified" if self.method == "none" else "sees all"
        described = attachments()[self.attach.split(":")[0]]
        if described.needs != "nothing":
            return "untrained"
        return "window" if any("no retrieval" in line for line in described.cannot) else "sees all"


def parse_system(name: str) -> System:
    """`unmodified`, a method, an attachment, or ATTACHMENT@METHOD."""
    if name == "unmodified":
        return System(name, "none")
    attach, _, method = name.partition("@")
    if attach.split(":")[0] in attachments():
        return System(name, method or "none", attach)
    return System(name, name)


def default_systems() -> list[System]:
    """The source itself, YaRN, every attachment that needs no training, and the methods that follow the length."""
    free = [name for name, one in attachments().items() if one.needs == "nothing" and one.exported]
    attached = [f"{name}@{ON_A_METHOD[name]}" if name in ON_A_METHOD else name for name in free]
    return [parse_system(n) for n in ("unmodified", "yarn-paper", *attached, "dynamic-yarn", "dynamic-ntk-exact")]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED, help="bundled, smollm2 (from the registry) or a checkpoint folder")
    parser.add_argument("--text", type=Path, help="UTF-8 text; default: that of the bundled model, Emma for smollm2")
    parser.add_argument("--factors", default="2,4", help="targets as multiples of the trained length, comma-separated")
    parser.add_argument("--systems", nargs="+", metavar="SYSTEM", help="only these, in this order")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--windows", type=int, default=4, help="windows of the target length, where the text has them")
    parser.add_argument("--needles", type=int, default=8, help="depth strata; 8 puts an edge at L0 and at L0/2 back")
    parser.add_argument("--seeds", type=int, default=4, help="haystacks")
    parser.add_argument("--buckets", type=int, default=8, help="buckets of position up to the target")
    parser.add_argument("--out", type=Path, help="folder for results; default: ctxforge's cache folder")
    parser.add_argument("--work", type=Path, help="keep the converted checkpoints in this folder")
    parser.add_argument("--fresh", action="store_true", help="measure again what the output folder holds")
    parser.add_argument("--check", action="store_true", help="exit 1 when a number is not as a system is described")
    parser.add_argument(
        "--from", dest="files", type=Path, nargs="+", metavar="FILE", help="print these, measure nothing"
    )
    options = parser.parse_args(arguments)
    try:
        records = merged(options.files) if options.files else measure_all(options)
    except CtxforgeError as error:
        print(f"Error: {error.cause}\nHint: {error.remedy}", file=sys.stderr)
        return int(error.exit_code)
    print(render(records), end="")
    if options.files and options.out:
        write(options.out, records)
    return 1 if options.check and contradictions(records) else 0


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every system at every factor, in order; what the output folder already holds is not measured again."""
    systems = [parse_system(name) for name in options.systems] if options.systems else default_systems()
    out = options.out or _default_out()
    path = out / RESULTS
    kept = {identified(record): record for record in (merged([path]) if path.exists() else [])}
    model = Model.chosen(options)
    print(f"results: {path}", file=sys.stderr)
    wanted: list[dict[str, Any]] = []
    for factor in (float(part) for part in options.factors.split(",")):
        bench = Bench(model, factor, options)
        for system in systems:
            record, again = bench.record(system, kept.get((model.name, factor, system.name)))
            kept[identified(record)] = record
            wanted.append(record)
            write(out, list(kept.values()))
            print(f"{factor:g}x {system.name}: {_said(record)}{' (as before)' if again else ''}", file=sys.stderr)
        bench.close()
    return wanted


@dataclass(frozen=True)
class Model:
    """The source: its name in the tables, its folder, a digest of its weights, its trained length, and the text."""

    name: str
    folder: Path
    sha256: str
    trained_length: int
    text: str

    @classmethod
    def chosen(cls, options: argparse.Namespace) -> Model:
        """As the command line says; a folder of one's own needs a text."""
        if options.model == "smollm2":
            from tests import assets

            folder, text = assets.smollm2_folder(), "" if options.text else assets.emma_text()
        elif options.model == BUNDLED:
            folder, text = Path(resolve_source(BUNDLED)), bundled_text()
        elif options.text is None:
            raise SystemExit("a model of your own needs --text FILE")
        else:
            folder, text = Path(options.model), ""
        name = BUNDLED if options.model == BUNDLED else folder.resolve().name
        trained = pipeline.inspect(str(folder)).geometry.trained_length
        if trained is None:
            raise SystemExit(f"{folder} does not tell its trained length")
        digest = hashlib.sha256()
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        text = options.text.read_text("utf-8") if options.text else text
        return cls(name, folder, digest.hexdigest(), trained, text)


class Bench:
    """One source at one target length: its tokens, and its own measures once a system needs them."""

    def __init__(self, model: Model, factor: float, options: argparse.Namespace) -> None:
        from ctxforge.verification.gates import tier
        from ctxforge.verification.load import load_tokenizer, pick_device, pick_dtype
        from ctxforge.verification.settings import tier_settings

        self.model, self.factor, self.work, self.fresh = model, factor, options.work, options.fresh
        self.trained, self.target = model.trained_length, round(factor * model.trained_length)
        self.device = pick_device(options.device)
        choices = {
            "lengths": (self.trained, self.target),
            "buckets": options.buckets,
            "documents": 1,
            "needles": options.needles,
            "seeds": options.seeds,
            "device": options.device,
            "dtype": pick_dtype(options.dtype, model.folder, self.device, self.target),
            "source_curve": False,
            "truncated_source": True,
            "trust_remote_code": True,
        }
        settings = tier_settings(tier(TIER), self.trained, self.target, choices)
        self.tokenizer = load_tokenizer(model.folder, settings)
        self.tokens = verification.prepare_text(
            self.tokenizer, model.text, self.target, settings, whole=options.windows
        )
        self.settings = replace(settings, documents=min(options.windows, self.tokens.windows_of(self.target)))
        self.protocol = verification.protocol(self.tokens, self.trained, self.target, self.settings, self.device)
        self._source: Any = None

    def record(self, system: System, before: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
        """A system's record, and whether it is `before`; a refusal or a failure is a record too."""
        found: dict[str, Any] = {
            "model": self.model.name,
            "factor": self.factor,
            "system": system.name,
            "role": system.role,
            "parameters": {},
            "error": None,
            "report": None,
        }
        start = time.perf_counter()
        try:
            with self._converted(system) as converted:
                found["parameters"] = _parameters(converted.conversion)
                found["identity"] = self._identity(converted.out)
                if before and not self.fresh and not before["error"] and before["identity"] == found["identity"]:
                    return before, True
                source, start = self.source(), time.perf_counter()
                found["report"] = self._report(converted.out, source).to_dict()
        except CtxforgeError as error:
            found["error"] = str(error.cause)
        # A model's own code may fail in any way, and that is a result.
        except (
            RuntimeError,
            ValueError,
            TypeError,
            NotImplementedError,
            AttributeError,
            KeyError,
            IndexError,
        ) as error:
            found["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        found["seconds"] = time.perf_counter() - start
        return found, False

    def source(self) -> Any:
        """The source's measures inside its length, and cut to it."""
        from ctxforge.verification.units import Scope

        if self._source is None:
            scope = Scope(curve=False, retrieval_up_to=self.trained, truncated=True, protocols=False)
            self._source = self._measures(self.model.folder, "source", scope)
        return self._source

    def close(self) -> None:
        """Forget what the next target length does not share."""
        self._source = None

    def _report(self, folder: Path, source: Any) -> Any:
        """What `ctxforge verify` reports on `folder`, from the source's measures as they are known."""
        from ctxforge.static_checks import check
        from ctxforge.verification.gates import tier
        from ctxforge.verification.settings import short_window_length
        from ctxforge.verification.units import Scope
        from ctxforge.verification.verdict import judged

        failures = sum(one.verdict == "fail" for one in check(folder).checks)
        result = self._measures(folder, "result", Scope(retrieval_up_to=self.target, far_context=True))
        size = short_window_length(self.settings, self.trained, self.target)
        short = verification.short_context(source, result, size)
        report = verification.VerifyReport(self.protocol, result, source, short)
        return judged(report, tier(TIER), config_failures=failures)

    def _measures(self, folder: Path, label: str, scope: Any) -> Any:
        from ctxforge.verification.load import load_model, memory_errors, release

        try:
            with memory_errors(self.target, self.settings, folder, self.device):
                return verification.evaluate_model(
                    load_model(folder, self.settings, self.device),
                    self.tokenizer,
                    text=self.tokens,
                    trained_length=self.trained,
                    target_length=self.target,
                    settings=self.settings,
                    label=label,
                    scope=scope,
                )
        finally:
            release(self.device)

    @contextmanager
    def _converted(self, system: System) -> Iterator[pipeline.Converted]:
        # transformers keeps code under a folder's name: one of its own for each system.
        name = "".join(c if c.isalnum() else "_" for c in f"{self.model.name}_{self.target}_{system.name}")
        with tempfile.TemporaryDirectory() as temporary:
            out = (self.work or Path(temporary)) / name
            out.parent.mkdir(parents=True, exist_ok=True)
            yield ctxforge.extend(
                self.model.folder, method=system.method, attach=system.attach, to=self.target, out=out, overwrite=True
            )

    def _identity(self, folder: Path) -> dict[str, Any]:
        """Everything that the numbers depend on."""
        emitted = hashlib.sha256()
        for path in sorted(folder.glob("*")):
            if path.suffix == ".py" or path.name == "config.json":
                emitted.update(path.name.encode() + path.read_bytes())
        settings = {name: repr(value) for name, value in vars(self.settings).items()}
        return {
            "weights": self.model.sha256,
            "text": self.protocol.text_sha256,
            "emitted": emitted.hexdigest(),
            "settings": settings,
            "device": self.protocol.device,
            "versions": dict(self.protocol.versions),
        }


def _parameters(conversion: Any) -> dict[str, Any]:
    """What the defaults chose: the attachment's own parameters, and the method's where there is one."""
    found = {} if conversion.plan.method == "none" else dict(conversion.plan.parameters)
    if conversion.attached is not None:
        known = {parameter.name for parameter in attachments()[conversion.attached.name].parameters}
        found |= {name: value for name, value in conversion.attached.parameters.items() if name in known}
    return {name: value for name, value in found.items() if value is not None}


def _said(record: Mapping[str, Any]) -> str:
    if record["error"]:
        return str(record["error"])
    return f"{record['report']['judgement']['headline']}, {record['seconds']:.1f} s"


def _default_out() -> Path:
    from ctxforge.verification.journal import journals

    return journals().parent / "attention-quality"


if __name__ == "__main__":
    sys.exit(main())
