"""The command-line arguments of `grm judge` and `grm eval` that say how a model judges."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from grm_jax.judging import orders
from grm_jax.judging.metadata import JudgeMetadata
from grm_jax.judging.options import POSITIVE, Options
from grm_jax.judging.votes import VOTES

if TYPE_CHECKING:  # JAX is imported only when a model is loaded
    from jax.sharding import Mesh

    from grm_jax.judging.judge import Judge

_BATCH = "(default: what fits in memory)"


def add_judging_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `options_from` and `judge_from` read, except --model."""
    model = parser.add_argument_group("models")
    model.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer folder, file or hub name (default: the model's own)",
    )
    model.add_argument(
        "--meta_rm", metavar="PATH", help="meta reward model that selects the critiques that vote"
    )
    model.add_argument(
        "--template",
        metavar="NAME",
        help="grm, compact, a template's name, or a Jinja file (default: from the model's "
        "judge.json, else grm)",
    )
    model.add_argument("--meta_template", metavar="NAME", help="template of the meta reward model")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--k", type=int, default=8, help="critiques per comparison (default 8)")
    sampling.add_argument(
        "--temperature", type=float, default=0.5, help="of the samples; 0 is greedy (default 0.5)"
    )
    sampling.add_argument(
        "--top_p", type=float, default=1.0, help="nucleus sampling (default 1: off)"
    )
    sampling.add_argument(
        "--top_k", type=int, default=0, help="sample only the N most likely tokens (default 0: off)"
    )
    sampling.add_argument(
        "--max_new_tokens",
        type=int,
        help="longest critique in tokens (default: from the model's judge.json, else 1024)",
    )
    sampling.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    vote = parser.add_argument_group("judging")
    vote.add_argument(
        "--vote", choices=list(VOTES), default="sum", help="voting rule (default sum)"
    )
    vote.add_argument(
        "--orders",
        choices=orders.KINDS,
        default="balanced",
        help="orders in which samples see the responses (default balanced)",
    )
    vote.add_argument(
        "--k_meta", type=int, help="critiques that the meta reward model keeps (default half of k)"
    )
    vote.add_argument(
        "--principles",
        default="own",
        metavar="own|first|FILE",
        help="own: generated in each critique (default); first: generated before, once per query; "
        "or a text file",
    )
    vote.add_argument(
        "--expected", action="store_true", help="compute expected scores from token probabilities"
    )
    device = parser.add_argument_group("devices")
    device.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="of weights and activations (default bfloat16)",
    )
    device.add_argument(
        "--mesh",
        metavar="AXES",
        help="data=1,fsdp=8,tensor=1; one axis may be -1 (default: one device)",
    )
    device.add_argument(
        "--prompt_slots", type=POSITIVE, help=f"largest number of prompts in a batch {_BATCH}"
    )
    device.add_argument(
        "--rows", type=POSITIVE, help=f"largest number of critiques per prompt in a batch {_BATCH}"
    )
    device.add_argument(
        "--chunk",
        type=POSITIVE,
        default=256,
        help="comparisons per call of the sampler (default 256)",
    )


def fill_unset(args: argparse.Namespace) -> None:
    """Fills the unset template and length from the model's judge.json.

    args.own_template: whether the template is the model's own, not one of the command line.
    """
    metadata = JudgeMetadata.load(args.model)
    args.own_template = args.template is None
    for name in ("template", "max_new_tokens"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(metadata, name))


def options_from(args: argparse.Namespace) -> Options:
    """Returns the options of the arguments, after `fill_unset`.

    Without it an unset length has its default, which is enough to check the other options.
    """
    names = {field.name for field in dataclasses.fields(Options)}
    fields = {name: value for name, value in vars(args).items() if name in names}
    if fields["max_new_tokens"] is None:
        del fields["max_new_tokens"]
    for name in ("k_meta", "meta_template"):
        if (value := getattr(args, name)) is not None and not args.meta_rm:
            raise ValueError(f"--{name} {value} needs a meta reward model: give --meta_rm")
    if args.principles not in ("own", "first"):
        if not Path(args.principles).is_file():
            raise FileNotFoundError(
                f"--principles {args.principles}: no such file; give own, first, or a text file"
            )
        fields["given_principles"] = _text_of(args.principles)
        fields["principles"] = "own"
    return Options(**fields)


def files_read(args: argparse.Namespace) -> list[str | None]:
    """Returns the paths that the arguments name, which must not be outputs."""
    given = (args.model, args.tokenizer, args.meta_rm, args.template, args.meta_template)
    return [*given, args.principles]


def _text_of(path: str) -> str:
    """Returns the principles of a file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--principles {path} is not UTF-8 text: {error.reason}") from None
    if not text.strip():
        raise ValueError(f"--principles {path} is empty: write them, or give own or first")
    return text


def judge_from(args: argparse.Namespace) -> Judge:
    """Loads the judge of the arguments, after `fill_unset`.

    Raises ValueError on more than one host.
    """
    import jax

    from grm_jax.judging.judge import Judge

    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} hosts would each write the output: split the input and run "
            "each part on one host"
        )
    return Judge.load(
        args.model,
        meta_rm=args.meta_rm,
        mesh=mesh_from(args.mesh),
        template=None if args.own_template else args.template,
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        meta_template=args.meta_template,
        prompt_slots=args.prompt_slots,
        rows=args.rows,
    )


def mesh_from(text: str | None) -> Mesh | None:
    """Builds the mesh of "data=1,fsdp=8,tensor=1"; None for None."""
    if text is None:
        return None
    from grm_jax.sharding import AXES, make_mesh

    sizes = {}
    for item in text.split(","):
        axis, _, size = (field.strip() for field in item.partition("="))
        if axis not in AXES or axis in sizes or not re.fullmatch(r"-1|[1-9][0-9]{0,6}", size):
            raise ValueError(f"mesh {text!r}: write it as data=1,fsdp=8,tensor=1")
        sizes[axis] = int(size)
    return make_mesh(**sizes)  # type: ignore[arg-type]
