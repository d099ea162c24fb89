"""`grm convert SRC DST`: any checkpoint that can be read, written as a Hugging Face folder."""

import argparse
import sys
from pathlib import Path

DTYPES = ("bfloat16", "float32", "keep")


def main(argv: list[str] | None = None) -> int:
    """Runs `grm convert`; returns the exit status (1: the checkpoint cannot be converted, with the reason on stderr)."""
    args = _parser().parse_args(argv)
    try:
        convert(
            args.src,
            args.dst,
            args.dtype,
            args.config,
            args.tokenizer,
            int(args.file_gb * 1e9),
            args.overwrite,
            not args.quiet,
        )
    except (ValueError, OSError) as error:
        print(f"grm convert: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="grm convert",
        description="Write a checkpoint as a Hugging Face folder that transformers, vLLM and grm_jax read.",
        epilog="example: grm convert gemma-3-270m.gguf gemma-3-270m --dtype float32",
    )
    parser.add_argument(
        "src", help="a Hugging Face folder, a DeepMind Flax checkpoint, or a .gguf file"
    )
    parser.add_argument(
        "dst", help="the folder to write: config.json, *.safetensors, tokenizer files"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="keep",
        help="of the weights written (keep: as they are in SRC; GGUF: float32)",
    )
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="the model's name, e.g. gemma2_27b, where SRC does not tell",
    )
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="folder or file with the tokenizer, where SRC has none"
    )
    parser.add_argument(
        "--file-gb", type=float, default=5.0, metavar="GB", help="largest size of one file (5)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace weights that DST already holds"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def convert(
    src,
    dst,
    dtype="keep",
    config=None,
    tokenizer=None,
    max_file_bytes=5 << 30,
    overwrite=False,
    bar=False,
) -> None:
    """Reads SRC and writes DST. Raises ValueError or OSError with the reason and the way out."""
    from grm_jax.checkpoints import copy_tokenizer, load, open_checkpoint, save
    from grm_jax.models import get_config

    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    src, dst = Path(src).expanduser(), Path(dst).expanduser()
    if dst.exists() and src.resolve() == dst.resolve():
        raise ValueError(f"{dst} is both the source and the destination: give another folder")
    kept = None if dtype == "keep" else dtype
    with _progress(bar) as advance:
        model = load(
            src, dtype=kept, cfg=get_config(config) if config else None, progress=advance("reading")
        )
        save(
            model,
            dst,
            like=src if src.is_dir() else None,
            max_file_bytes=max_file_bytes,
            overwrite=overwrite,
            progress=advance("writing"),
        )
    copied = (
        copy_tokenizer(tokenizer, dst)
        if tokenizer
        else copy_tokenizer(src, dst)
        if src.is_dir()
        else []
    )
    if not copied and src.suffix == ".gguf":
        (dst / "tokenizer.model").write_bytes(open_checkpoint(src).sentencepiece_model())
        copied = ["tokenizer.model"]
    if not copied:
        print(
            f"grm convert: {dst} has no tokenizer yet: copy tokenizer.model or tokenizer.json there, or use --tokenizer",
            file=sys.stderr,
        )
    if bar:
        cfg = model.cfg
        print(f"{dst}: {cfg.name}, {cfg.num_params / 1e6:,.1f}M parameters", file=sys.stderr)


class _progress:
    """A bar on stderr for each phase, or nothing at all."""

    def __init__(self, shown: bool):
        self.shown = shown

    def __enter__(self):
        if not self.shown:
            return lambda what: None
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.bar.start()

        def advance(what):
            task = self.bar.add_task(what, total=None)
            return lambda done, total: self.bar.update(task, completed=done, total=total)

        return advance

    def __exit__(self, *_):
        if self.shown:
            self.bar.stop()


if __name__ == "__main__":
    sys.exit(main())
