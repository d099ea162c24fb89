"""`grm eval`: benchmarks with their official metrics, for a model, a baseline, or a scores file."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grm_jax import strict_json
from grm_jax.commands import Number, Parser, run_command
from grm_jax.data.records import strict_records
from grm_jax.evals import results, run, shards
from grm_jax.evals.benchmark import Benchmark
from grm_jax.evals.benchmarks import BENCHMARKS, PAPER
from grm_jax.evals.content_blind import CONTENT_BLIND
from grm_jax.evals.files import MissingData
from grm_jax.evals.measure import compare, measure
from grm_jax.evals.run import Judgement, Task, num_parameters
from grm_jax.hosts import distributed
from grm_jax.judging import arguments
from grm_jax.judging.codec import read_judged_rows
from grm_jax.judging.options import POSITIVE, Options
from grm_jax.judging.summary import failure_text
from grm_jax.storage import as_path, check_outputs, fetch, write_atomic

if TYPE_CHECKING:  # JAX is imported only to judge with a model
    from grm_jax.judging.judge import Judge
    from grm_jax.judging.run import RunConfig
    from grm_jax.judging.shards import Shard


DRAWS = Number(int, 1, 1_000_000)


JudgeFunction = Callable[[Task], Judgement]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="grm eval",
        usage="grm eval --benchmark NAMES --data DIR --model MODEL [options]\n"
        "       grm eval --benchmark NAMES --data DIR --judge BASELINE [options]\n"
        "       grm eval --benchmark NAMES --data DIR --scores PATH [options]",
        description="Runs reward-model benchmarks with their official metrics and 95% bootstrap "
        "intervals.",
        epilog=f"Benchmarks: {', '.join(BENCHMARKS)}. Exit status: 0, or 2 for a wrong command "
        "line or missing files.",
    )
    p.add_argument(
        "--benchmark",
        required=True,
        metavar="NAMES",
        help="names, comma-separated; 'paper' for the paper's four; 'all' for those in --data",
    )
    p.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="folder with one folder per benchmark (docs/evaluation.md lists the files)",
    )
    p.add_argument(
        "--out",
        metavar="DIR",
        help="folder for verdicts, results.json, results.md and results.html (default eval/JUDGE)",
    )
    judge = p.add_mutually_exclusive_group(required=True)
    judge.add_argument("--model", help="as of grm judge; with --endpoint, the model's name there")
    judge.add_argument(
        "--judge", choices=CONTENT_BLIND, help="a content-blind baseline instead of a model"
    )
    judge.add_argument(
        "--scores",
        metavar="PATH",
        help="scores computed elsewhere: a JSONL file, or a folder with BENCHMARK.jsonl",
    )
    judge.add_argument(
        "--write_comparisons",
        metavar="DIR",
        help="write BENCHMARK.jsonl as input of another judge, and exit",
    )
    p.add_argument(
        "--part",
        action="store_true",
        help="measure only the comparisons in --scores, if it lacks some",
    )
    p.add_argument(
        "--against",
        metavar="DIR",
        help="--out folder of another run: paired tests, this run minus that one",
    )
    p.add_argument(
        "--limit", type=POSITIVE, help="judge N comparisons per benchmark, selected by hashed id"
    )
    p.add_argument("--subset", metavar="NAME", help="judge this subset only")
    p.add_argument(
        "--with_reference",
        action="store_true",
        help="include the data's reference answers in the prompt",
    )
    p.add_argument(
        "--draws",
        type=DRAWS,
        default=1000,
        help="bootstrap draws per interval of a metric (default 1000); curves, gains and "
        "content-blind baselines use 200, biases 500",
    )
    p.add_argument("--overwrite", action="store_true", help="replace earlier verdicts in --out")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    p.add_argument(
        "--no_greedy", action="store_true", help="skip the greedy run, the baseline of the gains"
    )
    arguments.add_shard_argument(p)
    arguments.add_judging_arguments(p)
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs `grm eval`; returns the exit status."""
    hint = "the same command resumes the run"

    def command() -> int:
        return run_command("grm eval", lambda: evaluate(parser().parse_args(argv)), hint)

    return distributed.together(command, "grm eval")


def evaluate(args: argparse.Namespace) -> int:
    """Loads, judges, measures, and writes the reports."""
    arguments.options_from(args)  # checks them for a baseline and a scores file as well
    if args.part and not args.scores:
        raise ValueError("--part needs --scores: it measures the comparisons that the file has")
    if args.model:
        arguments.join_hosts(args, "grm eval")
    if shard := arguments.shard_from(args):
        return judge_shard(args, shard)
    tasks = load(args)
    if args.write_comparisons:
        folder = Path(args.write_comparisons)
        for task in tasks:
            check_outputs([folder / f"{task.benchmark.name}.jsonl"], task.read)
        results.make_folder(folder)
        for task in tasks:
            path = folder / f"{task.benchmark.name}.jsonl"
            run.write_comparisons(task.comparisons, path)
            print(f"{path}: {len(task.comparisons)} comparisons")
        return 0
    out = Path(args.out or Path("eval") / judge_name(args))
    if distributed.is_first():
        check_files(args, tasks, out)
        results.make_folder(out)
        earlier_entries(out)  # a damaged file is an error before anything is judged
    judge, entries = judge_function(args, out), []
    for task in tasks:
        made = judge(task)
        if distributed.is_first():  # on a slice, one process measures and writes
            entries.append(measured(task, made, args))
    if distributed.is_first():
        write_reports(entries, out)
    return 0


def judge_shard(args: argparse.Namespace, shard: Shard) -> int:
    """Judges one part of each benchmark; `grm merge` measures all parts together."""
    if not args.model:
        raise ValueError("--shard needs --model: a baseline or a scores file needs one machine")
    out = as_path(args.out or Path("eval") / judge_name(args))
    return shards.judge(args, shard, load(args), out, lambda: model_function(args, out, shard))


def measured(task: Task, made: Judgement, args: argparse.Namespace) -> dict:
    """Returns the entry of results.json of a judged benchmark."""
    entry = measure(
        *(task.benchmark, made.judged, task.total, made.judge, args.draws),
        greedy=made.greedy,
        cost=dict(made.cost),
    )
    if args.against:
        path = Path(args.against) / f"{task.benchmark.name}.jsonl"
        theirs = run.load_judged(task.comparisons, path)
        entry["against"] = {"run": Path(args.against).name}
        entry["against"] |= compare(task.benchmark, made.judged, theirs, args.draws)
    return entry


def check_files(args: argparse.Namespace, tasks: Sequence[Task], out: Path) -> None:
    """Raises ValueError for a file in `out` that would be written and is read by this command."""
    if args.against and Path(args.against).resolve() == out.resolve():
        raise ValueError(f"--against {args.against} is the --out of this run: name another run")
    read: list[str | Path | None] = [*arguments.files_read(args)]
    written = [out / name for name in results.FILES]
    for task in tasks:
        name = task.benchmark.name
        rows, greedy = out / f"{name}.jsonl", out / f"{name}.greedy.jsonl"
        read += task.read
        if args.scores and scores_path(args.scores, name).resolve() == rows.resolve():
            continue  # measured where they are, and not written
        read += [scores_path(args.scores, name)] if args.scores else []
        read += [Path(args.against) / f"{name}.jsonl"] if args.against else []
        for path in (rows, greedy) if args.model else (rows,):
            written += [path, Path(f"{path}.part"), path.with_suffix(".cost.json")]
    check_outputs(written, read)


def judge_name(args: argparse.Namespace) -> str:
    """The name of the judge, for the default --out: of RUN/STAGE/hf it is RUN/STAGE.

    With a LoRA adapter, that of the base, "+" and that of the adapter's folder.
    """
    if args.model and not args.endpoint:
        from grm_jax.judging.loading import folder_name

        name = Path(folder_name(args.model))
        adapter = f"+{folder_name(args.lora).replace('/', '_')}" if args.lora else ""
        return str(name.with_name(name.name.split(".")[0] + adapter))
    named = args.endpoint and args.model.replace("/", "_")
    return named or args.judge or Path(args.scores).name.split(".")[0]


def load(args: argparse.Namespace) -> list[Task]:
    """Loads the benchmarks of --benchmark; 'all' skips those without files."""
    names = {"paper": PAPER, "all": BENCHMARKS}.get(args.benchmark) or args.benchmark.split(",")
    tasks: list[Task] = []
    missing: list[str] = []
    for name in dict.fromkeys(name.strip() for name in names):
        benchmark = BENCHMARKS[name]
        others = [BENCHMARKS[other] for other in benchmark.beside if other not in names]
        try:
            tasks.append(load_task(args, benchmark))
        except MissingData as error:
            if args.benchmark == "all":
                print(f"grm eval: skipped: {error}", file=sys.stderr)
            elif not any(_has_rows(args, other) for other in others):
                missing.append(str(error))
        tasks += [load_task(args, other) for other in others if _has_rows(args, other)]
    if missing:
        raise MissingData(" ".join(missing))
    if not tasks:
        raise MissingData(f"{args.data} has the files of no benchmark")
    return tasks


def _has_rows(args: argparse.Namespace, benchmark: Benchmark) -> bool:
    """Whether a benchmark beside the one that was named has data, and scores if these are read."""
    try:
        ids = {str(comparison.id) for comparison in benchmark.load(fetch(args.data))}
    except MissingData:
        return False
    path = scores_path(args.scores, benchmark.name) if args.scores else None
    return path is None or (
        path.is_file() and any(str(row.get("id")) in ids for row in strict_records(path))
    )


def load_task(args: argparse.Namespace, benchmark: Benchmark) -> Task:
    """Loads one benchmark with the comparisons that --part, --limit and --subset select."""
    read: set[Path] = set()
    comparisons = benchmark.load(fetch(args.data), read)
    total = len(comparisons)
    if args.part and args.scores:
        path = scores_path(args.scores, benchmark.name)
        ids = {str(row.get("id")) for row in strict_records(path)}
        comparisons = [c for c in comparisons if str(c.id) in ids]
        if not comparisons:
            raise ValueError(
                f"{args.scores} has none of the {total} comparisons of {benchmark.name}"
            )
    try:
        comparisons = run.choose(comparisons, args.limit, args.subset)
    except ValueError as error:
        raise ValueError(f"{benchmark.title} has {error}") from None
    if not args.with_reference:
        comparisons = [dataclasses.replace(c, reference=None) for c in comparisons]
    return Task(benchmark, comparisons, total, frozenset(read))


def scores_path(scores: str, name: str) -> Path:
    """The scores file of a benchmark: the file itself, or the one in a folder."""
    return Path(scores) / f"{name}.jsonl" if Path(scores).is_dir() else Path(scores)


# ---------------------------------------------------------------- judges


def judge_function(args: argparse.Namespace, out: Path) -> JudgeFunction:
    """The judge of the command line as a function."""
    if args.judge:
        return lambda task: _judge_content_blind(args.judge, args.seed, task, out)
    if args.scores:
        return lambda task: _load_scores(args.scores, task, out)
    return model_function(args, out)


def _judge_content_blind(name: str, seed: int, task: Task, out: Path) -> Judgement:
    judged = [CONTENT_BLIND[name].judge(comparison, seed) for comparison in task.comparisons]
    run.write_scores(judged, out / f"{task.benchmark.name}.jsonl")
    settings = {"rule": CONTENT_BLIND[name].description, "seed": seed}
    return Judgement(judged, {"kind": "content-blind baseline", "name": name} | settings)


def _load_scores(scores: str, task: Task, out: Path) -> Judgement:
    """Loads a scores file and copies it into `out`."""
    path, copy = scores_path(scores, task.benchmark.name), out / f"{task.benchmark.name}.jsonl"
    judged = run.load_judged(task.comparisons, path)
    settings = run.settings_of(path)
    if path.resolve() != copy.resolve():
        write_atomic(copy, path.read_bytes())
    return Judgement(
        judged, {"kind": "scores", "name": settings.get("model", path.stem)} | settings
    )


def model_function(args: argparse.Namespace, out: Any, shard: Shard | None = None) -> JudgeFunction:
    """Loads the model of the command line. shard: the part that it judges, without measuring it."""
    from grm_jax.judging.run import RunConfig

    arguments.fill_unset(args)
    options = arguments.options_from(args)
    existing = "overwrite" if args.overwrite else "resume"
    config = RunConfig(existing, chunk=args.chunk, progress=not args.quiet, shard=shard)
    judge = arguments.judge_from(args)
    count = None if args.endpoint else num_parameters(args.model)

    def judge_task(task: Task) -> Judgement:
        with distributed.lost_peer_first():
            made = judge_benchmark(judge, task, out, options, config, greedy=not args.no_greedy)
        rows = out / f"{task.benchmark.name}.jsonl"
        is_read = distributed.is_first() and not shard
        if is_read and (failures := failure_text(read_judged_rows(rows))):
            print(f"grm eval: {task.benchmark.name}: {failures}", file=sys.stderr)
        more = arguments.price_of(args, made.cost) | ({"parameters": count} if count else {})
        return dataclasses.replace(made, cost={**made.cost, **more})

    return judge_task


def judge_benchmark(
    judge: Judge, task: Task, out: Any, options: Options, config: RunConfig, greedy: bool = True
) -> Judgement:
    """Judges one benchmark into `out`: with the options, and greedily if these sample."""
    config = dataclasses.replace(config, private=task.benchmark.private)
    path = out / f"{task.benchmark.name}.jsonl"
    judged, cost = run.judge_with_model(judge, task.comparisons, path, options, config)
    if judge.is_scalar:
        return Judgement(judged, {"kind": "scalar reward model", "name": judge.name}, cost=cost)
    description = {
        "kind": "model",
        "name": judge.name,
        "meta_rm": getattr(judge.meta_rm, "name", None),
        **dataclasses.asdict(options),
        "template": judge.family,
    }
    made = Judgement(judged, description, cost=cost)
    if not greedy or options.temperature == 0:
        return made
    # A protocol with both orders needs one greedy critique of each.
    k = 2 if task.benchmark.both_orders else 1
    options = dataclasses.replace(
        options, temperature=0.0, k=k, vote="sum", expected=False, k_meta=None
    )
    path = out / f"{task.benchmark.name}.greedy.jsonl"
    greedily, _ = run.judge_with_model(judge, task.comparisons, path, options, config)
    return dataclasses.replace(made, greedy=greedily)


def earlier_entries(out: Path) -> list[dict]:
    """Returns the entries of earlier evaluations in a folder.

    Raises ValueError for a damaged file, or a benchmark that this installation does not have, which
    would be lost.
    """
    path = out / results.FILE
    entries = results.read_results(path, complete=True) if path.exists() else []
    for name in (entry["benchmark"] for entry in entries):
        if name not in BENCHMARKS:
            raise ValueError(
                f"{path} has results of {name!r}, an unknown benchmark: name another --out"
            )
    return entries


def write_reports(entries: Sequence[dict], out: Path) -> None:
    """Writes results.json, results.md and results.html, and prints the table.

    Entries of other benchmarks in `out` stay, so an evaluation may be run in several commands.
    """
    from grm_jax.evals import page, tables

    path = out / results.FILE
    with results.alone(out):
        merged = {entry["benchmark"]: entry for entry in (*earlier_entries(out), *entries)}
        ordered = [merged[name] for name in BENCHMARKS if name in merged]
        write_atomic(path, strict_json.dumps(ordered, indent=1) + "\n")
        write_atomic(out / "results.md", tables.markdown(ordered))
        write_atomic(out / "results.html", page.page(ordered))
    tables.terminal(entries)
    print(f"{out}/results.json, results.md, results.html")
