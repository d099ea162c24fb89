"""`grm judge IN.jsonl OUT.jsonl --model PATH`: scores the comparisons of a file."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from grm_jax.data.layouts import LAYOUTS
from grm_jax.judging import orders, votes
from grm_jax.judging.options import Options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="grm judge",
        description="Scores the comparisons of a JSONL file with a generative reward model: k critiques each, then a vote.",
        epilog="Exit status: 0 all rows judged, 1 some rows are error rows, 2 wrong command line or files, 130 interrupted.",
    )
    p.add_argument("input", help="JSONL file (or one JSON array) of comparisons")
    p.add_argument(
        "output", help="JSONL file to write; OUT.part is its journal while the run goes on"
    )
    p.add_argument(
        "--model",
        required=True,
        help="model folder (safetensors), DeepMind checkpoint or GGUF file",
    )
    p.add_argument(
        "--tokenizer", help="folder or file of the tokenizer, where the model's folder has none"
    )
    p.add_argument(
        "--meta_rm", help="folder of a meta reward model, which chooses the critiques that vote"
    )
    p.add_argument(
        "--template",
        help="grm, compact, another template's name, or a Jinja file (default: what the model's judge.json names, else grm)",
    )
    p.add_argument(
        "--meta_template", help="template of the meta reward model: a name or a Jinja file"
    )
    p.add_argument(
        "--format", choices=sorted(LAYOUTS), help="format of the input (default: found out per row)"
    )
    p.add_argument("--k", type=int, default=8, help="critiques per comparison (default 8)")
    p.add_argument("--temperature", type=float, default=0.5, help="0 is greedy (default 0.5)")
    p.add_argument("--top_p", type=float, default=1.0)
    p.add_argument("--top_k", type=int, default=0)
    p.add_argument(
        "--max_new_tokens",
        type=int,
        help="longest critique in tokens (default: the model's judge.json, else 1024)",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--orders",
        choices=orders.KINDS,
        default="balanced",
        help="orders of the responses (default balanced)",
    )
    p.add_argument(
        "--vote",
        choices=list(votes.VOTES),
        default="sum",
        help="the vote that decides (default sum)",
    )
    p.add_argument(
        "--k_meta",
        type=int,
        help="critiques that the meta reward model lets vote (default half of k)",
    )
    p.add_argument(
        "--principles",
        default="own",
        help="own, first (a call of their own per query), or a text file",
    )
    p.add_argument(
        "--expected", action="store_true", help="also expected scores from the token probabilities"
    )
    p.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    p.add_argument(
        "--mesh", help="data=1,fsdp=8,tensor=1; one axis may be -1 (default: one device)"
    )
    p.add_argument(
        "--prompt_slots", type=int, help="most prompts sampled at once (default: what memory holds)"
    )
    p.add_argument(
        "--rows",
        type=int,
        help="most critiques per prompt sampled at once (default: what memory holds)",
    )
    p.add_argument(
        "--chunk",
        type=int,
        default=256,
        help="comparisons handed to the sampler at once (default 256)",
    )
    p.add_argument("--limit", type=int, help="judge the first rows only")
    p.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    p.add_argument("--overwrite", action="store_true", help="start again, replacing what is there")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs `grm judge`; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        return judge(args)
    except (ValueError, OSError, MemoryError) as error:
        print(f"grm judge: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\ngrm judge: stopped; {args.output}.part holds what is done, --resume goes on with it",
            file=sys.stderr,
        )
        return 130


def judge(args: argparse.Namespace) -> int:
    """Judges the file that the arguments name. Whatever can be wrong is found out before the weights are read."""
    from grm_jax.text import rendering

    fill_in(args)
    options = options_of(args)
    if not Path(args.input).is_file():
        raise FileNotFoundError(f"no input file {args.input}")
    rendering.load(args.template)
    existing = "resume" if args.resume else "overwrite" if args.overwrite else "refuse"
    from grm_jax.judging.judge import Judge
    from grm_jax.judging.run import RunConfig, judge_file, refuse_existing

    if existing == "refuse":
        refuse_existing(args.output)
    refuse_several_hosts()
    loaded = Judge.load(
        args.model,
        meta_rm=args.meta_rm,
        mesh=mesh_of(args.mesh),
        template=args.template,
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        meta_template=args.meta_template,
        prompt_slots=args.prompt_slots,
        rows=args.rows,
    )
    config = RunConfig(existing=existing, chunk=args.chunk, progress=not args.quiet)
    outcome = judge_file(
        loaded, args.input, args.output, options, config, format=args.format, limit=args.limit
    )
    print(summary_text(args.output, outcome), file=sys.stderr)
    return 1 if outcome.errors else 0


def fill_in(args: argparse.Namespace) -> None:
    """Fills unset flags from the model's judge.json."""
    from grm_jax.judging.metadata import JudgeMetadata

    for name, value in dataclasses.asdict(JudgeMetadata.load(args.model)).items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def refuse_several_hosts() -> None:
    """Raises ValueError on a slice of several hosts, where each would write the output."""
    import jax

    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} hosts would each write the output: split the input and run one host on each part"
        )


def options_of(args: argparse.Namespace) -> Options:
    """The options that the arguments state."""
    principles, given = args.principles, None
    if principles not in ("own", "first"):
        given, principles = Path(principles).read_text(encoding="utf-8"), "own"
    return Options(
        k=args.k,
        temperature=args.temperature,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        top_p=args.top_p,
        top_k=args.top_k,
        vote=args.vote,
        orders=args.orders,
        k_meta=args.k_meta,
        principles=principles,
        given_principles=given,
        expected=args.expected,
    )


def mesh_of(text: str | None):
    """The mesh of "data=1,fsdp=8,tensor=1"; None for None."""
    if text is None:
        return None
    from grm_jax.sharding import AXES, make_mesh

    sizes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name.strip() not in AXES or not size.strip().lstrip("-").isdigit():
            raise ValueError(f"mesh {text!r}: write it as data=1,fsdp=8,tensor=1")
        sizes[name.strip()] = int(size)
    return make_mesh(**sizes)


def summary_text(output: str, outcome) -> str:
    """What a run came to, in a few lines."""
    from grm_jax.judging.codec import read_judged_rows
    from grm_jax.judging.summary import summarise

    found = summarise(read_judged_rows(output))
    share = lambda value: "-" if value is None else f"{value:.1%}"  # noqa: E731
    lines = [
        f"{output}: {outcome.rows} rows, {outcome.errors} of them errors, {outcome.resumed} from an earlier run"
    ]
    lines.append(
        f"critiques read {share(found['parsed'])}, ties {share(found['ties'])}, flips {share(found['flips'])}"
    )
    if found["labelled"]:
        lines.append(
            f"accuracy {share(found['accuracy'])} of {found['labelled']} labelled, {share(found['tie_credit'])} with ties shared"
        )
    return "\n".join(lines)
