"""`grm convert SRC DST`: converts any supported checkpoint to a Hugging Face folder."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grm_jax.commands import Number, Parser, add_lora_argument, run_command

DTYPES = ("bfloat16", "float32", "keep")


def main(argv: list[str] | None = None) -> int:
    """Runs `grm convert`; returns the exit status."""

    def run() -> int:
        options = vars(_parser().parse_args(argv))
        options["max_file_bytes"] = int(options.pop("file_gb") * 1e9)
        options["bar"] = not options.pop("quiet")
        convert(**options)
        return 0

    return run_command("grm convert", run)


def _parser() -> argparse.ArgumentParser:
    from grm_jax.models.config import CONFIGS

    parser = Parser(
        prog="grm convert",
        description=(
            "Converts a checkpoint to a Hugging Face folder for transformers, vLLM and grm_jax."
        ),
        epilog="example: grm convert gemma-3-270m.gguf gemma-3-270m --dtype float32",
    )
    add = parser.add_argument
    add(
        "src",
        metavar="SRC",
        help="a Hugging Face folder, a DeepMind Flax checkpoint, a .gguf file, or a name on the "
        "Hugging Face Hub: ORG/MODEL[@REVISION][/FILE.gguf]",
    )
    add(
        "dst",
        metavar="DST",
        help="the folder to write: config.json, *.safetensors, tokenizer files",
    )
    add(
        "--dtype",
        choices=DTYPES,
        default="keep",
        help="of the written weights (default keep: as in SRC)",
    )
    add(
        "--quantize",
        choices=("int8",),
        help="int8: write matrices and embedding tables in int8, for grm_jax alone",
    )
    add(
        "--config",
        metavar="NAME",
        help=f"the model, if SRC does not determine it: {', '.join(CONFIGS)}",
    )
    add_lora_argument(add)
    add("--tokenizer", metavar="PATH", help="a folder, file or hub name, if SRC has no tokenizer")
    add(
        "--file_gb",
        type=Number(float, above=0, high=1e6),
        default=5.0,
        metavar="GB",
        help="size limit of one file (default 5)",
    )
    add("--overwrite", action="store_true", help="replace weights that DST already holds")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    dtype: str = "keep",
    config: str | None = None,
    lora: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    max_file_bytes: int = 5 << 30,
    overwrite: bool = False,
    bar: bool = False,
    quantize: str | None = None,
) -> None:
    """Converts `src` to a Hugging Face folder `dst`; raises ValueError or OSError.

    The judge.json and meta_rm.json of a folder are copied, with the templates that they name;
    those of an adapter's folder take precedence.
    """
    from rich import progress as bars
    from rich.console import Console

    from grm_jax.checkpoints import copy_tokenizer, load, save
    from grm_jax.checkpoints.saving import tokenizer_files
    from grm_jax.hub import ADAPTER_FILES, METADATA_FILES, OWN_TEMPLATE
    from grm_jax.model_files import exists, read_bytes
    from grm_jax.models import get_config
    from grm_jax.storage import fetch, fetch_adapter, is_remote, write_atomic

    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    for what, path in (("SRC", src), ("DST", dst)):
        if not str(path).strip() or "\0" in str(path):
            raise ValueError(f"{what} is {str(path)!r}: name a path")
    if is_remote(dst):
        raise ValueError(f"{dst} is not local: name a local folder, and copy it there afterwards")
    src, dst = fetch(src, quiet=not bar), Path(dst).expanduser()
    if tokenizer:
        tokenizer = fetch(tokenizer, weights=False)
        if not tokenizer_files(tokenizer):
            raise ValueError(
                f"--tokenizer {tokenizer} holds no tokenizer: give a folder with tokenizer.model "
                "or tokenizer.json, or one of these files"
            )
    if dst.exists() and not dst.is_dir():
        raise ValueError(f"{dst} is a file: name a folder to write")
    if dst.exists() and src.resolve() == dst.resolve():
        raise ValueError(f"{dst} is both the source and the destination: give another folder")
    if lora is not None and exists(dst / ADAPTER_FILES[0]):
        raise ValueError(f"{dst} holds an adapter: give another folder for the merged weights")
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    # Raises for a tokenizer that cannot be written, before the weights are.
    with tempfile.TemporaryDirectory() as scratch:
        copy_tokenizer(tokenizer or src, scratch)
    console = Console(stderr=True, force_terminal=sys.stderr.isatty())
    display = bars.Progress(*columns, console=console, disable=not bar)
    try:
        model = load(
            src,
            dtype=None if dtype == "keep" else dtype,
            cfg=get_config(config) if config else None,
            adapter=lora,
            progress=_progress(display, "loading"),
            quantize=quantize,
        )
        save(
            model,
            dst,
            like=src if exists(src / "config.json") else None,
            max_file_bytes=max_file_bytes,
            overwrite=overwrite,
            progress=_progress(display, "saving"),
        )
    finally:
        if display.live.is_started:
            display.stop()
    for folder in (src, *([] if lora is None else [fetch_adapter(lora)])):
        own = [file.name for file in folder.glob("*") if OWN_TEMPLATE.fullmatch(file.name)]
        for name in (*METADATA_FILES, *own):
            if exists(folder / name):
                write_atomic(dst / name, read_bytes(folder / name))
    if not copy_tokenizer(tokenizer or src, dst):
        print(
            f"grm convert: {dst} has no tokenizer: copy tokenizer.model or tokenizer.json there, "
            "or use --tokenizer",
            file=sys.stderr,
        )
    if bar:
        params = model.cfg.num_params / 1e6
        print(f"{dst}: {model.cfg.name}, {params:,.1f}M parameters", file=sys.stderr)


def _progress(display: Any, description: str) -> Callable[[int, int], None]:
    """Returns the callback with (done, total) of a bar, which appears with its first call."""
    task = display.add_task(description, total=None, visible=False)

    def update(done: int, total: int) -> None:
        display.start()
        display.update(task, completed=done, total=total, visible=True)

    return update


if __name__ == "__main__":
    sys.exit(main())
