"""The command-line arguments of `grm judge` and `grm eval` that say how a model judges."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grm_jax.commands import Number, add_device_arguments, add_host_arguments, add_lora_argument
from grm_jax.judging import orders
from grm_jax.judging.metadata import JudgeMetadata
from grm_jax.judging.options import CHUNK, POSITIVE, Options
from grm_jax.judging.scalar_options import SCALAR, check_unused, is_scalar
from grm_jax.judging.shards import Shard
from grm_jax.judging.votes import VOTES

if TYPE_CHECKING:  # JAX is imported only when a model is loaded
    from jax.sharding import Mesh

    from grm_jax.judging.judge import Judge

SERVER = ("parallel", "retries", "timeout", "total_timeout", "key_variable")
# Options that a scalar reward model has no use for; its texts per batch are the prompt slots.
UNUSED = (
    *("endpoint", "meta_rm", "meta_template", "template", "k", "temperature", "top_p", "top_k"),
    *("max_new_tokens", "vote", "orders", "k_meta", "principles", "expected", "rows"),
    *("reference", "with_reference", "kv_cache_dtype"),
)
PRICE = Number(float, 0, 1e9)
_BATCH = "(see docs/judging.md for the default)"


def add_judging_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `options_from` and `judge_from` read, except --model."""
    model = parser.add_argument_group("models")
    model.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer folder, file or hub name (default: the model's own)",
    )
    add_lora_argument(model.add_argument)
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
    sampling.add_argument("--k", type=int, help="critiques per comparison (default 8)")
    sampling.add_argument(
        "--temperature", type=float, help="of the samples; 0 is greedy (default 0.5)"
    )
    sampling.add_argument("--top_p", type=float, help="nucleus sampling (default 1: off)")
    sampling.add_argument(
        "--top_k", type=int, help="sample only the N most likely tokens (default 0: off)"
    )
    sampling.add_argument(
        "--max_new_tokens",
        type=int,
        help="longest critique in tokens (default: from the model's judge.json, else 1024)",
    )
    sampling.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    vote = parser.add_argument_group("judging")
    vote.add_argument("--vote", choices=list(VOTES), help="voting rule (default sum)")
    vote.add_argument(
        "--orders",
        choices=orders.KINDS,
        help="orders in which samples see the responses (default balanced)",
    )
    vote.add_argument(
        "--k_meta", type=int, help="critiques that the meta reward model keeps (default half of k)"
    )
    vote.add_argument(
        "--principles",
        metavar="own|first|FILE",
        help="own: generated in each critique (default); first: generated before, once per query; "
        "or a text file",
    )
    vote.add_argument(
        "--expected", action="store_true", help="compute expected scores from token probabilities"
    )
    _add_endpoint_arguments(parser)
    add_host_arguments(parser)
    add_device = add_device_arguments(parser)
    add_device(
        "--prompt_slots", type=POSITIVE, help=f"largest number of prompts in a batch {_BATCH}"
    )
    add_device(
        "--rows", type=POSITIVE, help=f"largest number of critiques per prompt in a batch {_BATCH}"
    )
    add_device(
        "--chunk",
        type=POSITIVE,
        default=CHUNK,
        help=f"comparisons per call of the sampler (default {CHUNK})",
    )


def _add_endpoint_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("endpoint")
    add = group.add_argument
    add(
        "--endpoint",
        metavar="URL",
        help="judge by an OpenAI-compatible server, such as "
        "http://localhost:8000/v1; --model is the model's name there",
    )
    add("--parallel", type=int, help="requests in flight (default 16)")
    add("--retries", type=int, help="further tries of a failed request (default 5)")
    add("--timeout", type=float, help="seconds for one try (default 120)")
    add(
        "--total_timeout",
        type=float,
        help="seconds for all critiques of a comparison (default: "
        "no limit but (retries + 1) x timeout for each request)",
    )
    add(
        "--key_variable",
        metavar="NAME",
        help="environment variable with the API key (default OPENAI_API_KEY)",
    )
    for name in ("in", "out"):
        kind = "prompt" if name == "in" else "new"
        add(f"--price_{name}", type=PRICE, help=f"price of a million {kind} tokens")


def join_hosts(args: argparse.Namespace, program: str) -> None:
    """Joins the other workers of a slice; by endpoint, one process requests all critiques.

    Call it before JAX touches a device. Raises LaunchError as `distributed.start`, ValueError for
    arguments that do not fit.
    """
    from grm_jax.hosts import distributed

    if args.endpoint:
        if args.num_processes or args.coordinator or args.process_id is not None:
            raise ValueError(f"--endpoint judges from one process: start {program} on one host")
        return
    distributed.join_command(args, program)


def add_shard_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --shard; `shard_from` parses it."""
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="judge part I (from 1) of N on this machine, into the shard's own file; grm merge "
        "joins all N into the output of a run without --shard",
    )


def shard_from(args: argparse.Namespace) -> Shard | None:
    """Returns the part of the run that --shard names. Raises ValueError for a wrong one."""
    return None if args.shard is None else Shard.parse(args.shard)


def endpoint_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings of the server that the arguments set.

    Raises ValueError for arguments that do not fit --endpoint, or need it.
    """
    settings = {name: getattr(args, name) for name in SERVER if getattr(args, name) is not None}
    priced = [name for name in ("price_in", "price_out") if getattr(args, name) is not None]
    if not args.endpoint:
        if given := [*settings, *priced]:
            raise ValueError(f"--{given[0]} needs --endpoint URL: it is a setting of a server")
        return {}
    if VOTES[args.vote or "sum"].needs == "expected_scores" or args.expected:
        raise ValueError(
            "--expected needs the model's probabilities, which an endpoint does not return: give "
            "a model folder as --model, without --endpoint"
        )
    unused = ["tokenizer", "lora", "quantize", "kv_cache_dtype", "prompt_slots", "rows"]
    unused += [] if args.meta_rm else ["mesh"]
    for name in unused:
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name} is of weights that are loaded here: omit it, the server "
                "at --endpoint has the model"
            )
    return settings


def fill_unset(args: argparse.Namespace) -> None:
    """Fills the unset template and length from the model's judge.json.

    args.own_template: whether the template is the model's own, not one of the command line.
    Raises ValueError for an option that has no effect on a scalar reward model.
    """
    by_endpoint, lora = getattr(args, "endpoint", None), getattr(args, "lora", None)
    if (not by_endpoint or Path(args.model).is_dir()) and is_scalar(args.model, lora):
        check_unused(args.model, {n: getattr(args, n, None) for n in UNUSED}, is_command_line=True)
        vars(args).update(SCALAR)
    metadata = JudgeMetadata() if by_endpoint else JudgeMetadata.of(args.model, lora)
    args.own_template = args.template is None
    for name in ("template", "max_new_tokens"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(metadata, name))


def options_from(args: argparse.Namespace) -> Options:
    """Returns the options of the arguments, after `fill_unset`; unset ones have their defaults.

    Before `fill_unset`, max_new_tokens has its default too: enough to check the other options.
    """
    endpoint_settings(args)
    names = {field.name for field in dataclasses.fields(Options)}
    fields = {n: value for n, value in vars(args).items() if n in names and value is not None}
    for name in ("k_meta", "meta_template"):
        if (value := getattr(args, name)) is not None and not args.meta_rm:
            raise ValueError(f"--{name} {value} needs a meta reward model: give --meta_rm")
    if args.principles not in (None, "own", "first"):
        if not Path(args.principles).is_file():
            raise FileNotFoundError(
                f"--principles {args.principles}: no such file; give own, first, or a text file"
            )
        fields["given_principles"] = _text_of(args.principles)
        fields["principles"] = "own"
    return Options(**fields)


def files_read(args: argparse.Namespace) -> list[str | None]:
    """Returns the paths that the arguments name, which must not be outputs."""
    given = (
        None if args.endpoint else args.model,
        args.lora,
        args.tokenizer,
        args.meta_rm,
        args.template,
        args.meta_template,
    )
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
    """Loads the judge of the arguments, after `fill_unset`; by endpoint, no weights of it.

    On several hosts the default mesh shards the weights and the batch over all devices.
    """
    from grm_jax.hosts import distributed
    from grm_jax.judging.judge import Judge

    if args.endpoint:
        return Judge.endpoint(
            *(args.endpoint, args.model),
            meta_rm=args.meta_rm,
            mesh=mesh_from(args.mesh),
            template=args.template,
            max_new_tokens=args.max_new_tokens,
            dtype=args.dtype,
            meta_template=args.meta_template,
            **endpoint_settings(args),
        )
    mesh = args.mesh or ("fsdp=-1" if distributed.has_peers() else None)
    return Judge.load(
        args.model,
        meta_rm=args.meta_rm,
        mesh=mesh_from(mesh),
        template=None if args.own_template else args.template,
        dtype=args.dtype,
        quantize=args.quantize,
        lora=args.lora,
        kv_cache_dtype=args.kv_cache_dtype,
        tokenizer=args.tokenizer,
        meta_template=args.meta_template,
        prompt_slots=args.prompt_slots,
        rows=args.rows,
    )


def price_of(args: argparse.Namespace, counts: Mapping[str, Any]) -> dict[str, float]:
    """Returns {"price": that of "prompt_tokens" and "tokens"}; {} if no price is set."""
    if args.price_in is None and args.price_out is None:
        return {}
    new, prompt = (counts.get(name) or 0 for name in ("tokens", "prompt_tokens"))
    return {"price": (prompt * (args.price_in or 0.0) + new * (args.price_out or 0.0)) / 1e6}


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
