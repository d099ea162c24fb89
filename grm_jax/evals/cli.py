"""`grm eval`: benchmarks with their official metrics, for a model, a floor, or judgements made elsewhere."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

from grm_jax.evals import results, run
from grm_jax.evals.benchmarks import BENCHMARKS, PAPER
from grm_jax.evals.content_blind import CONTENT_BLIND
from grm_jax.evals.files import MissingData
from grm_jax.evals.measure import compare, measure


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="grm eval",
        description="Runs reward-model benchmarks with their official metrics and 95% bootstrap intervals.",
        epilog=f"Benchmarks: {', '.join(BENCHMARKS)}. Exit status: 0, or 2 for a wrong command line or missing files.",
    )
    p.add_argument(
        "--benchmark",
        required=True,
        help="names, comma separated; 'paper' for the paper's four; 'all' for what --data holds",
    )
    p.add_argument(
        "--data",
        required=True,
        help="folder with one folder per benchmark (docs/evaluation.md says which files)",
    )
    p.add_argument(
        "--out",
        help="folder for verdicts, results.json, results.md and results.html (default eval/NAME-OF-JUDGE)",
    )
    judge = p.add_mutually_exclusive_group(required=True)
    judge.add_argument(
        "--model", help="model folder, checkpoint or GGUF file: judge with it, resumable"
    )
    judge.add_argument("--judge", choices=CONTENT_BLIND, help="a rule instead of a model")
    judge.add_argument(
        "--scores", help="judgements made elsewhere: a JSONL file, or a folder with BENCHMARK.jsonl"
    )
    judge.add_argument(
        "--write_comparisons",
        metavar="DIR",
        help="write BENCHMARK.jsonl for a judge elsewhere, and stop",
    )
    p.add_argument(
        "--part",
        action="store_true",
        help="measure the comparisons that --scores holds, where it lacks some",
    )
    p.add_argument("--against", help="--out folder of another run: paired tests, ours minus theirs")
    p.add_argument(
        "--limit",
        type=int,
        help="judge this many comparisons of each benchmark, picked by a hash of their ids",
    )
    p.add_argument("--subset", help="judge this subset only")
    p.add_argument(
        "--with_reference",
        action="store_true",
        help="show the judge the reference answer, where the data hold one",
    )
    p.add_argument("--draws", type=int, default=1000, help="draws of the bootstrap (default 1000)")
    p.add_argument("--overwrite", action="store_true", help="judge again what is in --out")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    p.add_argument("--seed", type=int, default=0)
    model = p.add_argument_group("judging with a model (as `grm judge`)")
    model.add_argument("--meta_rm", help="folder of a meta reward model")
    model.add_argument(
        "--tokenizer", help="folder or file of the tokenizer, where the model's folder has none"
    )
    model.add_argument("--template", help="default: what the model's judge.json names, else grm")
    model.add_argument("--k", type=int, default=8, help="critiques per comparison (default 8)")
    model.add_argument("--k_meta", type=int)
    model.add_argument("--temperature", type=float, default=0.5)
    model.add_argument("--top_p", type=float, default=1.0)
    model.add_argument(
        "--max_new_tokens", type=int, help="default: the model's judge.json, else 1024"
    )
    model.add_argument("--vote", default="sum")
    model.add_argument("--orders", default="balanced")
    model.add_argument("--expected", action="store_true")
    model.add_argument(
        "--no_greedy",
        action="store_true",
        help="leave out the greedy run that gains are measured against",
    )
    model.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    model.add_argument("--mesh", help="data=1,fsdp=8,tensor=1")
    model.add_argument("--prompt_slots", type=int)
    model.add_argument("--rows", type=int)
    model.add_argument("--chunk", type=int, default=256)
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs `grm eval`; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        return evaluate(args)
    except (ValueError, OSError, MemoryError) as error:
        print(f"grm eval: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ngrm eval: stopped; the same command goes on with what is done", file=sys.stderr)
        return 130


def evaluate(args: argparse.Namespace) -> int:
    """Reads, judges, measures and writes the reports."""
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit}: ask for at least one comparison")
    loaded = load(args)
    if args.write_comparisons:
        folder = Path(args.write_comparisons)
        folder.mkdir(parents=True, exist_ok=True)
        for benchmark, comparisons, _ in loaded:
            run.write_comparisons(comparisons, folder / f"{benchmark.name}.jsonl")
            print(f"{folder / benchmark.name}.jsonl: {len(comparisons)} comparisons")
        return 0
    out = Path(args.out or Path("eval") / default_name(args))
    out.mkdir(parents=True, exist_ok=True)
    judge_all = _judge_of(args, out)
    entries = []
    for benchmark, comparisons, total in loaded:
        judged, greedy, judge, cost = judge_all(benchmark, comparisons)
        entry = measure(benchmark, judged, total, judge, args.draws, greedy, cost)
        if args.against:
            theirs = run.load_judged(comparisons, Path(args.against) / f"{benchmark.name}.jsonl")
            entry["against"] = {"run": Path(args.against).name} | compare(
                benchmark, judged, theirs, args.draws
            )
        entries.append(entry)
    write_reports(entries, out)
    return 0


def load(args) -> list:
    """(benchmark, comparisons to judge, how many there are) for each name. 'all' takes what is there."""
    names = {"paper": PAPER, "all": BENCHMARKS}.get(args.benchmark) or args.benchmark.split(",")
    loaded = []
    for name in dict.fromkeys(name.strip() for name in names):
        benchmark = BENCHMARKS[name]
        try:
            everything = benchmark.load(args.data)
        except MissingData as error:
            if args.benchmark != "all":
                raise
            print(f"grm eval: left out: {error}", file=sys.stderr)
            continue
        if args.part and args.scores:
            ids = {str(row.get("id")) for row in run.read_rows(scores_path(args.scores, name))}
            scored = [c for c in everything if str(c.id) in ids]
            if not scored:
                raise ValueError(
                    f"{args.scores} holds none of the {len(everything)} comparisons of {name}"
                )
            comparisons = run.choose(scored, args.limit, args.subset)
        else:
            comparisons = run.choose(everything, args.limit, args.subset)
        if not args.with_reference:
            comparisons = [dataclasses.replace(c, reference=None) for c in comparisons]
        loaded.append((benchmark, comparisons, len(everything)))
    if not loaded:
        raise MissingData(f"no benchmark found under {args.data}")
    return loaded


def scores_path(given: str, name: str) -> Path:
    """The scores file of a benchmark: the file itself, or the one in the folder that was given."""
    return Path(given) / f"{name}.jsonl" if Path(given).is_dir() else Path(given)


def default_name(args) -> str:
    """The name of the judge, as a folder."""
    return args.judge or Path(args.model or args.scores).name.split(".")[0]


def _judge_of(args, out: Path):
    """(benchmark, comparisons) -> (judged, greedy or None, description, cost)."""
    if args.judge:
        return lambda b, cs: (
            run.judge_content_blind(args.judge, cs, args.seed, out / f"{b.name}.jsonl"),
            None,
            {
                "kind": "content-blind baseline",
                "name": args.judge,
                "rule": CONTENT_BLIND[args.judge].description,
                "seed": args.seed,
            },
            {},
        )
    if args.scores:
        return lambda b, cs: _from_file(args, b, cs, out)
    return _with_model(args, out)


def _from_file(args, benchmark, comparisons, out: Path):
    path = scores_path(args.scores, benchmark.name)
    judged = run.load_judged(comparisons, path)
    copy = out / f"{benchmark.name}.jsonl"
    if path.resolve() != copy.resolve():
        copy.write_bytes(path.read_bytes())
    first = next(run.read_rows(path), {})
    named = {
        key: first[key]
        for key in ("model", "k", "temperature", "vote", "template", "meta_rm")
        if key in first
    }
    return judged, None, {"kind": "scores", "name": named.get("model", path.stem)} | named, {}


def _with_model(args, out: Path):
    from grm_jax.judging.cli import fill_in
    from grm_jax.judging.judge import Judge
    from grm_jax.judging.options import Options

    fill_in(args)
    options = Options(
        k=args.k, temperature=args.temperature, seed=args.seed, max_new_tokens=args.max_new_tokens, top_p=args.top_p,
        vote=args.vote, orders=args.orders, k_meta=args.k_meta, expected=args.expected,
    )  # fmt: skip
    mesh = None
    if args.mesh:
        from grm_jax.judging.cli import mesh_of

        mesh = mesh_of(args.mesh)
    judge = Judge.load(
        args.model, meta_rm=args.meta_rm, mesh=mesh, template=args.template, dtype=args.dtype, tokenizer=args.tokenizer,
        prompt_slots=args.prompt_slots, rows=args.rows,
    )  # fmt: skip
    count = parameters(args.model)

    def judged(benchmark, comparisons):
        *found, cost = judge_benchmark(judge, benchmark, comparisons, out, options, args)
        return *found, cost | ({"parameters": count} if count else {})

    return judged


def judge_benchmark(judge, benchmark, comparisons, out: Path, options, args):
    """One benchmark by one loaded judge: the sampled run, and the greedy one that gains are measured against."""
    named = dict(
        private=benchmark.private,
        chunk=args.chunk,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    path = out / f"{benchmark.name}.jsonl"
    cost = run.judge_with_model(judge, comparisons, path, options, **named)
    judged, greedy = run.load_judged(comparisons, path), None
    if options.temperature > 0 and not args.no_greedy:
        # A protocol of both orders needs one greedy text for each.
        k = 2 if benchmark.both_orders else 1
        once = dataclasses.replace(
            options, temperature=0.0, k=k, vote="sum", expected=False, k_meta=None
        )
        run.judge_with_model(
            judge, comparisons, out / f"{benchmark.name}.greedy.jsonl", once, **named
        )
        greedy = run.load_judged(comparisons, out / f"{benchmark.name}.greedy.jsonl")
    description = {
        "kind": "model",
        "name": judge.name,
        "meta_rm": getattr(judge.meta_rm, "name", None),
    }
    return (
        judged,
        greedy,
        description | dataclasses.asdict(options) | {"template": judge.family},
        cost,
    )


def parameters(path) -> int | None:
    """How many parameters a checkpoint has, from its headers; None where that cannot be told."""
    from grm_jax.checkpoints import open_checkpoint

    try:
        reader = open_checkpoint(path)
        return sum(math.prod(tensor.shape) for tensor in reader.tensors.values())
    except (OSError, ValueError):
        return None


def write_reports(entries: list[dict], out: Path) -> None:
    """results.json, results.md and results.html in `out`, and the table in the terminal.

    Entries of benchmarks that this run did not touch stay: an evaluation may be done a few benchmarks at a time.
    """
    from grm_jax.evals import page, tables

    path = out / results.FILE
    earlier = {e["benchmark"]: e for e in results.read_results(path)} if path.exists() else {}
    merged = earlier | {e["benchmark"]: e for e in entries}
    ordered = [merged[name] for name in BENCHMARKS if name in merged]
    path.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "results.md").write_text(tables.markdown(ordered), encoding="utf-8")
    (out / "results.html").write_text(page.page(ordered), encoding="utf-8")
    tables.terminal(entries)
    print(f"{out}/results.json, results.md, results.html")


if __name__ == "__main__":
    sys.exit(main())
