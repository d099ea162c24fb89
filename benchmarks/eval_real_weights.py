"""Runs `grm eval` with real weights and data: Gemma 3 270M and two sizes of Qwen2.5-Coder.

    python benchmarks/eval_real_weights.py --model gemma-3-270m.gguf --tokenizer tokenizer.model \\
        --data DATA --work runs/eval_270m
    python benchmarks/eval_real_weights.py --judge qwen2.5_coder_0.5b --model MODEL \\
        --data DATA --work runs/eval_05b
    python benchmarks/eval_real_weights.py --tables benchmarks/results/eval_qwen2.5_coder_1.5b

Judges 100 comparisons of each benchmark. --tokenizer is Gemma 3's SentencePiece model. MODEL is the
output of `grm convert qwen2.5-coder-0.5b-instruct-q4_k_m.gguf MODEL`. --work stores every verdict,
so that the same command resumes a killed run. --sets runs only the benchmarks that it names.
Tables, figures and times go to benchmarks/results/eval_JUDGE. --tables rewrites the tables and
figures of a folder from its results.json. --expected computes expected scores for the critiques of
a finished evaluation in --work, without sampling, into WORK/expected: that is a `grm eval
--expected` of the same critiques, except that their texts are encoded again.

- `gemma3_270m`: RM-Bench chat, PandaLM and GSM8K groups. It is a base model: its template has
  worked examples with scores only (benchmarks/judge_base_model.jinja), and its chat format has no
  turns.
- `qwen2.5_coder_0.5b` and `qwen2.5_coder_1.5b_examples`: PandaLM, HumanEvalPack Python, GSM8K
  groups and RM-Bench chat, sampled and greedy. They are instruct models that were never trained to
  judge: the template has short instructions and worked examples
  (benchmarks/judge_small_model.jinja). Of the larger model, benchmarks/results also has an
  evaluation with the template `grm`.
"""

import dataclasses
import functools
import os
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Setup:
    """How a model judges.

    Attributes:
      sets: benchmark -> its own flags of `grm eval`.
      options: flags with values for all benchmarks.
      flags: flags without values for all benchmarks.
      files: result files to copy into the repository.
    """

    sets: Mapping[str, Sequence[str]]
    options: Mapping[str, object]
    flags: Sequence[str] = ()
    files: Sequence[str] = ("results.json", "results.md")


# Four samples of one order share two rows, so that the rows stay busy. The HTML page is not copied,
# because it quotes comparisons.
WORKED_EXAMPLES = Setup(
    {"pandalm": (), "humanevalpack": ("--subset", "python"), "gsm8k": ()}
    | {"rm_bench": ("--subset", "chat")},
    {"template": HERE / "judge_small_model.jinja", "max_new_tokens": 256}
    | {"prompt_slots": 64, "rows": 2, "chunk": 100},
)
JUDGES = {
    # GSM8K keeps the order of the file. With balanced orders a group of four is four prompts of 800
    # tokens, an hour on one core for 100 comparisons.
    "gemma3_270m": Setup(
        {"rm_bench": ("--subset", "chat"), "pandalm": (), "gsm8k": ("--orders", "given")},
        {"template": HERE / "judge_base_model.jinja", "max_new_tokens": 20, "dtype": "float32"}
        | {"prompt_slots": 8, "rows": 4, "chunk": 8},
        ("--no_greedy",),
        ("results.json", "results.md", "results.html"),
    ),
    "qwen2.5_coder_0.5b": WORKED_EXAMPLES,
    "qwen2.5_coder_1.5b_examples": WORKED_EXAMPLES,
}
VOTES = {"sum": "sum of scores", "majority": "majority", "expected": "expected scores"}
RATES = {
    **{"benchmark": "left", "n": "right", "longest": "right", "first": "right"},
    **{"parsed": "right", "ties": "right", "orders disagree": "right"},
    **{"tokens a critique": "right", "seconds": "right", "tokens/s": "right"},
}


def interval(point: Mapping[str, Any] | None) -> str:
    """Returns "62.5 (51.0 to 72.9)" in percent; "-" without a value."""
    if not point or point["value"] is None:
        return "-"
    value, low, high = (point.get(key) for key in ("value", "low", "high"))
    return f"{100 * value:.1f}" + ("" if low is None else f" ({100 * low:.1f} to {100 * high:.1f})")


def tables(entries: Sequence[Mapping[str, Any]]) -> str:
    """Returns Markdown tables of results.json: accuracy over k by voting rule, and rates."""
    ks = sorted({int(k) for entry in entries for k in entry["curves"].get("sum", {})})
    columns = {"benchmark": "left", "vote": "left", "greedy": "right"}
    columns |= {f"k = {k}": "right" for k in ks}
    accuracy, rates = [], []
    for entry in entries:
        title, parsing, cost = entry["title"], entry["parsing"], entry["cost"]
        for vote in (vote for vote in VOTES if vote in entry["curves"]):
            points = [interval(entry["curves"][vote].get(str(k))) for k in ks]
            greedy = interval(entry.get("greedy")) if vote == "sum" else "-"
            accuracy.append([title, VOTES[vote], greedy, *points])
        blind = [interval(entry["content_blind"][name]) for name in ("longest", "first")]
        row = [title, str(entry["comparisons"]), *blind, f"{100 * parsing['parsed']:.1f}"]
        row += [f"{100 * parsing['ties']:.1f}", interval(entry["position"]["flips"])]
        row += [f"{parsing['tokens_per_critique']:.0f}"]
        row += [f"{cost['seconds']:,.0f}", f"{cost['tokens'] / cost['seconds']:.0f}"]
        rates.append(row)
    return (
        "Percent, with 95% bootstrap intervals over prompts; ties share their credit.\n\n"
        f"{common.markdown_table(columns, accuracy)}\n\n{common.markdown_table(RATES, rates)}\n"
    )


def write_results(setup: Setup, work: Path, out: Path) -> None:
    """Writes the results folder `out` from the files that `grm eval` wrote to `work`."""
    out.mkdir(parents=True, exist_ok=True)
    for file in setup.files:
        text = (work / file).read_text(encoding="utf-8")
        # The template's path becomes relative to the repository.
        (out / file).write_text(text.replace(f"{common.ROOT}/", ""), encoding="utf-8")
    write_tables(out)
    host = f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    clocks = common.read_json(work / "seconds.json", {})
    common.write_json(out / "seconds.json", {"machine": host} | clocks)


def write_tables(folder: Path) -> None:
    """Writes tables.md, and BENCHMARK.svg with the accuracy over k, beside a results.json."""
    from grm_jax.evals import figures, plots, results

    entries = results.read_results(folder / results.FILE, complete=True)
    (folder / "tables.md").write_text(tables(entries), encoding="utf-8")
    for entry in entries:
        if figure := plots.curve(entry):
            path = folder / f"{entry['benchmark']}.svg"
            path.write_text(figures.standalone(figure), encoding="utf-8")


def run(name: str, argv: Sequence[str], clocks: Path) -> None:
    """Runs `grm eval` on a benchmark; adds its seconds to the file `clocks`.

    Raises SystemExit if it fails.
    """
    from grm_jax.evals import cli

    clock, cpu = time.monotonic(), time.process_time()
    if status := cli.main(list(argv)):
        raise SystemExit(status)
    seconds = common.read_json(clocks, {})
    earlier = seconds.get(name, {"sessions": 0, "wall": 0, "cpu": 0})
    seconds[name] = {
        "sessions": earlier["sessions"] + 1,
        "wall": earlier["wall"] + round(time.monotonic() - clock),
        "cpu": earlier["cpu"] + round(time.process_time() - cpu),
    }
    common.write_json(clocks, seconds)


def stored_completions(
    tokenizer: Any, critiques: Mapping[tuple[int, ...], list[Any]], requests: Sequence[Any]
) -> Iterator[Any]:
    """A sampler that yields stored critiques, their texts encoded again.

    critiques: prompt -> the critiques of each comparison that has it, by sample.
    """
    from grm_jax.sampling import Completion

    for i, request in enumerate(requests):
        stored = critiques[tuple(request.prompt)]
        for sample, critique in enumerate(stored.pop(0)):
            ids = np.array(tokenizer.encode(critique["text"]), np.int32)
            none = np.zeros(len(ids), np.float32)
            yield Completion(i, sample, ids, none, none, critique["finish"])


def add_expected(name: str, argv: Sequence[str], work: Path, out: Path) -> None:
    """Judges the stored critiques of a benchmark in `work` again, with expected scores, into `out`.

    The greedy critiques are copied. Prints how many critiques got no expected scores. A killed run
    resumes.
    """
    from grm_jax.evals import cli
    from grm_jax.judging import arguments
    from grm_jax.judging.codec import read_judged_rows
    from grm_jax.judging.run import RunConfig, part_path
    from grm_jax.text import rendering

    args = cli.parser().parse_args(list(argv))
    arguments.fill_unset(args)
    options, judge = arguments.options_from(args), arguments.judge_from(args)
    (task,) = cli.load(args)
    critiques: dict[tuple[int, ...], list[Any]] = {}
    rows, rescored = read_judged_rows(work / f"{name}.jsonl"), out / f"{name}.jsonl"
    finished = [path for path in (rescored, part_path(rescored)) if path.exists()]
    done = {row["line"] for path in finished for row in read_judged_rows(path)}
    for comparison, row in zip(task.comparisons, rows, strict=True):
        if row["line"] in done:
            continue
        template = judge.template_for(comparison, options)
        for order in {tuple(critique["order"]) for critique in row["critiques"]}:
            prompt = judge.tokenizer.encode_chat(rendering.render(template, comparison, order))
            same = [c for c in row["critiques"] if tuple(c["order"]) == order]
            same.sort(key=lambda critique: critique["sample"])
            critiques.setdefault(tuple(prompt), []).append(same)
    out.mkdir(parents=True, exist_ok=True)
    for file in (f"{name}.cost.json", f"{name}.greedy.cost.json", f"{name}.greedy.jsonl"):
        # The cost is that of the sampling, to which this one is added.
        if (work / file).exists() and not (out / file).exists():
            shutil.copy(work / file, out / file)
    sampler = functools.partial(stored_completions, judge.tokenizer, critiques)
    judge = dataclasses.replace(judge, sampler=sampler)
    config = RunConfig("resume", chunk=args.chunk)
    cli.judge_benchmark(judge, task, out, options, config, greedy=False)
    states = Counter(
        (critique["status"] == "ok", critique["expected_scores"] is not None)
        for row in read_judged_rows(rescored)
        for critique in row["critiques"]
    )
    print(f"{name}: {states[True, False]} parsed critiques without expected scores", flush=True)


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--judge", default="gemma3_270m", choices=JUDGES)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="of a base model without a chat format")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--sets", nargs="+", help="only these benchmarks")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--greedy", action="store_true", help="add the greedy run, for Gemma")
    parser.add_argument("--expected", action="store_true", help="add expected scores, see above")
    parser.add_argument("--tables", type=Path, help="a results folder: write its tables, and exit")
    args = parser.parse_args()
    if args.tables:
        return write_tables(args.tables)
    if missing := [name for name in ("model", "data", "work") if not getattr(args, name)]:
        parser.error(f"--{missing[0]} is missing")
    setup = JUDGES[args.judge]
    sets = args.sets or list(setup.sets)
    if unknown := [name for name in sets if name not in setup.sets]:
        parser.error(f"--sets {unknown[0]}: use some of {', '.join(setup.sets)}")
    options: dict[str, object] = {"data": args.data, "model": args.model, "k": args.k}
    options |= {"limit": args.limit, "out": args.work, **setup.options}
    if args.tokenizer:
        folder = common.base_model_tokenizer(args.tokenizer, args.work / "tokenizer")
        options["tokenizer"] = folder
    flags = [flag for flag in setup.flags if not (args.greedy and flag == "--no_greedy")]
    work = args.work
    if args.expected:
        flags, work = [*flags, "--expected"], args.work / "expected"
        options["out"] = work
    for name in sets:
        argv = [*common.flags({"benchmark": name} | options), *setup.sets[name], *flags]
        if args.expected:
            sampled_only = not (args.work / f"{name}.greedy.jsonl").exists()
            argv += ["--no_greedy"] if sampled_only and "--no_greedy" not in argv else []
            add_expected(name, argv, args.work, work)
        run(name, argv, work / "seconds.json")
        write_results(setup, work, common.RESULTS / f"eval_{args.judge}")


if __name__ == "__main__":
    main()
