"""Measures comparisons judged per minute: our judge beside llama.cpp's server and transformers.

    python benchmarks/judging.py --gguf FILE --data DATA --llama PYTHON --transformers PYTHON
    python benchmarks/judging.py --gguf qwen2.5-coder-1.5b-instruct-q4_k_m.gguf --data DATA \\
        --llama PYTHON --systems after,float32,llama.cpp --limit 1 --timeout 300 \\
        --out benchmarks/results/judging_1.5b

On two CPU cores the first takes more than an hour, and with `--limit 12 --timeout 400`, as in
benchmarks/results/judging.md, 18 minutes. The second measures one comparison in a few minutes, into
benchmarks/results/judging_1.5b.{json,md}.

`--count` counts the tokens that the prefill of `before` and `after` computes, in a minute.

PYTHON: interpreters with xllamacpp and with torch and transformers; a system without one is
skipped. DATA has `pandalm/`, `humanevalpack/` and `gsm8k/`: 50 comparisons of two responses, in
turn from each, `--limit` the first of them. Every system samples k = 8 critiques of each under the
template `grm`, in the same balanced response orders, at temperature 0.5, of a fixed number of new
tokens (no stop).

- `before`: our judge, from `Comparison` to `Verdict`, on the weights of the GGUF file as bfloat16,
  with `share_prefixes=False`: each prompt is computed as a whole.
- `after`: the same with `share_prefixes=True`: what prompts begin with is computed once.
- `llama.cpp`: the server on the file itself, mostly 4 bits a weight, 8 slots. It gets the prompts'
  tokens; the critiques of one order are one request, and its prefix cache is on.
- `transformers`: `generate` on the same bfloat16 weights, a batch of k = 8 per comparison.
- `float32`: `after` in float32, on the same values. It runs if `--systems` names it.

Loading and compiling are not in `seconds`; `compile_seconds` has what ours compiled. Each system
runs in a process of its own, one after the other. Results are written as comparisons complete, to
benchmarks/results/judging.{json,md}: the same command skips systems that are done. A system that
exceeds `--timeout` seconds, loading included, is reported with what it completed.
"""

import dataclasses
import functools
import itertools
import json
import os
import resource
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

SETS = ("pandalm", "humanevalpack", "gsm8k")
COMPARISONS, K, TEMPERATURE = 50, 8, 0.5
Work = dict[str, Any]
Counts = dict[str, float]  # totals since the start
# title -> field and format of a cell
COLUMNS = {
    "system": ("name", "{}"),
    "comparisons": ("comparisons", "{}"),
    "per minute": ("per_minute", "{:.2f}"),
    "x of `before`": ("speedup", "{:.2f}"),
    "prefill tokens per comparison": ("prefill_share", "{:,.0f}"),
    "new tokens": ("new_tokens", "{:,.0f}"),
    "tokens/s": ("tokens_per_second", "{:.1f}"),
    "prefill s": ("prefill_seconds", "{:,.0f}"),
    "decode s": ("decode_seconds", "{:,.0f}"),
    "CPU s": ("cpu_seconds", "{:,.0f}"),
    "peak GiB": ("peak_gib", "{:.1f}"),
    "remark": ("remark", "{}"),
}


def comparisons(data: str | Path, limit: int) -> list[Any]:
    """Returns the first `limit` comparisons of two responses, in turn from each set."""
    from grm_jax.evals.benchmarks import BENCHMARKS
    from grm_jax.evals.run import choose

    each = -(-COMPARISONS // len(SETS))
    sets = [choose(BENCHMARKS[name].load(Path(data)), each) for name in SETS]
    mixed = itertools.chain(*zip(*sets))
    return [pair(comparison) for comparison in itertools.islice(mixed, min(limit, COMPARISONS))]


def pair(comparison: Any) -> Any:
    """Returns the comparison, of several solutions of GSM8K the first right and the first wrong."""
    if comparison.n == 2:
        return comparison
    labels = list(comparison.label)
    first = sorted((labels.index(max(labels)), labels.index(min(labels))))
    responses, chosen = ([values[i] for i in first] for values in (comparison.responses, labels))
    return dataclasses.replace(comparison, responses=responses, label=chosen, reference=None)


def judge_with(work: Work, sampler: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Yields verdicts of the comparisons as the sampler completes them."""
    from grm_jax import Judge
    from grm_jax.text import tokenizer

    judge = Judge(tokenizer.load(work["folder"]), sampler, template="grm")
    chosen = comparisons(work["data"], work["limit"])
    settings = {"k": K, "temperature": TEMPERATURE, "max_new_tokens": work["new"]}
    return judge.stream(chosen, **settings)


def prompts(work: Work) -> list[list[dict[str, Any]]]:
    """Returns the prompts of each comparison: token ids and number of critiques."""
    requests: list[Any] = []
    assert not list(judge_with(work, lambda batch: requests.extend(batch) or ()))
    groups = itertools.groupby(requests, lambda request: request.group)
    return [[{"ids": list(r.prompt), "k": r.k} for r in group] for _, group in groups]


def ours(work: Work, share_prefixes: bool, dtype: str = "bfloat16") -> Iterator[Counts]:
    import jax

    from grm_jax.checkpoints import load
    from grm_jax.judging.sampler import EngineSampler
    from grm_jax.sampling import Engine, plan

    compiled: list[float] = []  # lowering and compiling, or loading from the cache

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event.endswith(("jaxpr_to_mlir_module_duration", "backend_compile_duration")):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    counts: Counts = {"prefill_seconds": 0.0}
    engines = []

    class TimedEngine(Engine):
        """Adds up the seconds of prefills, without compiling."""

        def _prefill_common(self) -> Any:
            return self._timed(super()._prefill_common)

        def _fill_slots(self, state: Any) -> Any:
            return self._timed(super()._fill_slots, state)

        def _timed(self, prefill: Callable[..., Any], *arguments: Any) -> Any:
            start, before = time.perf_counter(), sum(compiled)
            result = jax.block_until_ready(prefill(*arguments))
            counts["prefill_seconds"] += time.perf_counter() - start - (sum(compiled) - before)
            return result

    model = load(work["folder"], dtype=dtype)

    class Sampler(EngineSampler):
        def __call__(self, requests: Sequence[Any]) -> Iterable[Any]:
            if not requests:
                return
            engine = TimedEngine(
                model,
                *plan.fit(model.cfg, requests),
                few_shapes=True,
                share_prefixes=share_prefixes,
            )
            engines.append(engine)
            for completion in engine.run([dataclasses.replace(r, stop=()) for r in requests]):
                if completion.finish != "length":
                    reason = f"{completion.finish}: {completion.error}"
                    raise RuntimeError(f"a critique ended with {reason}")
                yield completion

    start = time.perf_counter()
    for _ in judge_with(work, Sampler(model)):
        stats = engines[0].stats
        seconds = time.perf_counter() - start - sum(compiled)
        yield counts | {
            "seconds": seconds,
            "compile_seconds": sum(compiled),
            "decode_seconds": seconds - counts["prefill_seconds"],
            "prefill_tokens": stats.prefill_tokens,
            "prompt_tokens": stats.prompt_tokens,
            "new_tokens": stats.tokens,
            "prompt_slots": engines[0].P,
            "rows_per_prompt": engines[0].R,
        }


def count(work: Work) -> str:
    """Returns how many prompt tokens `before` and `after` compute; runs no model."""
    from grm_jax.judging.sampler import EngineSampler
    from grm_jax.sampling import slots
    from grm_jax.sampling.buckets import prompt_bucket

    requests: list[Any] = []

    class Recorder(EngineSampler):
        def __call__(self, batch: Sequence[Any]) -> Iterable[Any]:
            requests.extend(batch)
            return ()

    assert not list(judge_with(work, Recorder(None)))
    bucket = functools.partial(prompt_bucket, few=True)
    before = sum(bucket(len(request.prompt)) for request in requests)
    made = [slots.Slot(i, r, [], common=r.common_prefix) for i, r in enumerate(requests)]
    slots.find_prefill_groups(made, len(made), bucket)
    rows = [bucket(group.length) for group in {slot.prefill_group for slot in made} - {None}]
    alone = [bucket(len(slot.own)) for slot in made if slot.prefill_group is None]
    prefixes = {tuple(slot.request.prompt[: slot.common]) for slot in made}
    after = sum(rows) + sum(alone) + sum(bucket(len(prefix)) for prefix in prefixes if prefix)
    return (
        f"{len(requests)} prompts: {before:,} tokens without sharing; with it {after:,}, "
        f"{after / before:.3f} of these ({len(rows)} comparisons in one row each)"
    )


def llama_cpp(work: Work) -> Iterator[Counts]:
    import xllamacpp

    length = max(len(p["ids"]) for group in work["prompts"] for p in group) + work["new"] + 64
    params = xllamacpp.CommonParams()
    params.model.path = work["gguf"]
    params.n_parallel, params.n_ctx, params.port = K, K * length, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = work["cores"]
    server = xllamacpp.Server(params)

    def complete(prompt: dict[str, Any]) -> list[dict[str, Any]]:
        body = {"prompt": prompt["ids"], "n_predict": work["new"], "ignore_eos": True}
        body |= {"temperature": TEMPERATURE, "cache_prompt": True, "n": prompt["k"]}
        # The closure holds the server, which stops when it is freed.
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(body).encode()
        )
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:
            answers = json.load(answer)
        return answers if isinstance(answers, list) else [answers]

    totals = {"prefill_tokens": 0, "prompt_tokens": 0, "new_tokens": 0}
    left = [len(group) for group in work["prompts"]]
    start = time.perf_counter()
    # As many requests at once as fill the slots; a queue would cost time-outs, not speed.
    with ThreadPoolExecutor(2) as pool:
        jobs = {pool.submit(complete, p): i for i, g in enumerate(work["prompts"]) for p in g}
        for job in as_completed(jobs):
            timings = [answer["timings"] for answer in job.result()]
            # Each critique states the tokens of their shared prompt, computed once.
            totals["prefill_tokens"] += timings[0]["prompt_n"]
            totals["new_tokens"] += sum(one["predicted_n"] for one in timings)
            left[jobs[job]] -= 1
            if not left[jobs[job]]:
                totals["prompt_tokens"] += sum(len(p["ids"]) for p in work["prompts"][jobs[job]])
                yield totals | {"seconds": time.perf_counter() - start}


def transformers(work: Work) -> Iterator[Counts]:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria

    torch.set_num_threads(work["cores"])
    model = AutoModelForCausalLM.from_pretrained(work["folder"], dtype=torch.bfloat16).eval()
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_new_tokens=work["new"],
        min_new_tokens=work["new"],
        pad_token_id=0,
    )

    class FirstToken(StoppingCriteria):
        """Records when the first token is there; stops nothing."""

        seconds = 0.0

        def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
            self.seconds = self.seconds or time.perf_counter()
            return torch.zeros(len(ids), dtype=torch.bool)

    keys = ("prefill_tokens", "prompt_tokens", "new_tokens", "prefill_seconds", "seconds")
    totals: Counts = dict.fromkeys(keys, 0)
    for group in work["prompts"]:
        start, first = time.perf_counter(), FirstToken()
        longest = max(len(prompt["ids"]) for prompt in group)
        batch = [[0] * (longest - len(p["ids"])) + p["ids"] for p in group for _ in range(p["k"])]
        real = [
            [i >= longest - len(p["ids"]) for i in range(longest)]
            for p in group
            for _ in range(p["k"])
        ]
        with torch.inference_mode():
            out = model.generate(
                torch.tensor(batch),
                attention_mask=torch.tensor(real, dtype=torch.long),
                stopping_criteria=[first],
            )
        totals["prefill_tokens"] += len(batch) * longest
        totals["prompt_tokens"] += sum(len(prompt["ids"]) for prompt in group)
        totals["new_tokens"] += len(batch) * (out.shape[1] - longest)
        totals["prefill_seconds"] += first.seconds - start
        totals["seconds"] += time.perf_counter() - start
        totals["decode_seconds"] = totals["seconds"] - totals["prefill_seconds"]
        yield totals


SYSTEMS: dict[str, Callable[[Work], Iterator[Counts]]] = {
    "before": lambda work: ours(work, share_prefixes=False),
    "after": lambda work: ours(work, share_prefixes=True),
    "llama.cpp": llama_cpp,
    "transformers": transformers,
    "float32": lambda work: ours(work, share_prefixes=True, dtype="float32"),
}
DEFAULT = ("before", "after", "llama.cpp", "transformers")


def measure(system: str, path: str) -> None:
    """Runs one system in this process; prints its totals after each comparison."""
    load = os.getloadavg()[0]
    work = json.loads(Path(path).read_text())
    for done, counts in enumerate(SYSTEMS[system](work), start=1):
        usage = resource.getrusage(resource.RUSAGE_SELF)
        machine = {  # of the process, loading and compiling included
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_gib": usage.ru_maxrss / (1 << 20),
            "load_average_at_start": load,
        }
        totals = {key: round(value, 2) for key, value in (counts | machine).items()}
        print(json.dumps({"comparisons": done, **totals}), flush=True)


def figures(name: str, result: dict[str, Any], before: float | None) -> dict[str, Any]:
    """Returns a system's last totals and what follows from them; before: its rate."""
    values = {"name": name, "remark": "" if result["status"] == "done" else result["status"]}
    if not result["rows"]:
        return values | {"comparisons": f"0 of {result['of']}"}
    last = result["rows"][-1]
    rate = 60 * last["comparisons"] / last["seconds"]
    values |= {"per_minute": rate, "tokens_per_second": last["new_tokens"] / last["seconds"]}
    if before:
        values["speedup"] = rate / before
    if "prefill_tokens" in last:
        values["prefill_share"] = last["prefill_tokens"] / last["comparisons"]
    return last | values | {"comparisons": f"{last['comparisons']} of {result['of']}"}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the Markdown table of the systems."""
    before = figures("before", results.get("before", {"status": "", "of": 0, "rows": []}), None)
    rows = []
    for name, result in results.items():
        values = figures(name, result, before.get("per_minute"))
        cells = (
            format.format(values[field]) if field in values else "-"
            for field, format in COLUMNS.values()
        )
        rows.append(list(cells))
    sides = {title: "left" if title in ("system", "remark") else "right" for title in COLUMNS}
    return common.markdown_table(sides, rows)


def write(out: Path, about: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    common.write_json(common.result_file(out, ".json"), {"about": about, "systems": results})
    remarks = "".join(f"- {key}: {value}\n" for key, value in about.items())
    common.result_file(out, ".md").write_text(f"# Judging\n\n{remarks}\n{table(results)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--llama", default="", help="interpreter with xllamacpp")
    parser.add_argument("--transformers", default="", help="interpreter with transformers")
    parser.add_argument("--systems", default=",".join(DEFAULT), help="only these, comma-separated")
    parser.add_argument("--limit", type=int, default=COMPARISONS, help="number of comparisons")
    parser.add_argument("--new_tokens", type=int, default=64, help="per critique")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds of one system")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--again", action="store_true", help="replace earlier results")
    parser.add_argument("--count", action="store_true", help="count prefill tokens, and exit")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "judging")
    args = parser.parse_args(argv)
    systems = args.systems.split(",")
    if unknown := [name for name in systems if name not in SYSTEMS]:
        parser.error(f"unknown system {unknown[0]!r}: use one of {', '.join(SYSTEMS)}")
    if not 1 <= args.limit <= COMPARISONS:
        parser.error(f"--limit {args.limit}: use 1 to {COMPARISONS}")
    if args.count:
        with tempfile.TemporaryDirectory() as folder:
            print(count(json.loads(prepare(args, Path(folder)).read_text())))
        return 0
    settings = {"model": args.gguf.stem, "comparisons": args.limit, "k": K}
    settings |= {"new_tokens": args.new_tokens, "threads": args.threads}
    earlier = {} if args.again else common.read_json(common.result_file(args.out, ".json"), {})
    if earlier and earlier["about"]["settings"] != settings:
        print(f"{args.out}.json is of {earlier['about']['settings']}: add --again to replace it")
        return 2
    about = earlier.get("about") or {"settings": settings, "machine": common.machine()}
    results: dict[str, dict[str, Any]] = earlier.get("systems", {})
    pythons = {"llama.cpp": args.llama, "transformers": args.transformers}
    ended = [name for name, r in results.items() if r["status"].startswith(("done", "timed out"))]
    missing = [name for name in systems if name not in ended]
    for name in [name for name in missing if not pythons.get(name, sys.executable)]:
        print(f"{name}: skipped, no interpreter given")
        missing.remove(name)
    if not missing:
        print(table(results))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = prepare(args, Path(folder))
        for name in missing:
            result: dict[str, Any] = {"status": "running", "of": args.limit, "rows": []}
            results[name] = result
            run = common.stream_apart(
                __file__, "--one", name, path, python=pythons.get(name, ""), timeout=args.timeout
            )
            try:
                for row in run:
                    result["rows"].append(row)
                    write(args.out, about, results)
                result["status"] = "done"
            except TimeoutError:
                result["status"] = f"timed out after {args.timeout:.0f} s"
            except RuntimeError as error:
                print(error, file=sys.stderr)
                result["status"] = f"failed: {str(error).splitlines()[-1][:100]}"
            write(args.out, about, results)
            print(table({name: result}).splitlines()[-1], flush=True)
    print(table(results))
    return int(any(result["status"].startswith("failed") for result in results.values()))


def prepare(args: Any, folder: Path) -> Path:
    """Converts the weights and renders the prompts; returns the path of the work."""
    from grm_jax import cli

    model = folder / "model"
    if status := cli.main(["convert", str(args.gguf), str(model), "--dtype", "bfloat16"]):
        raise SystemExit(status)
    work: Work = {"folder": str(model), "gguf": str(args.gguf.resolve()), "new": args.new_tokens}
    work |= {"data": str(args.data), "limit": args.limit, "cores": args.threads}
    path = folder / "work.json"
    path.write_text(json.dumps(work | {"prompts": prompts(work)}))
    return path


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        try:
            measure(*sys.argv[2:])
        except Exception:
            traceback.print_exc()
            os._exit(1)  # a failed run must not wait for the server's threads
        os._exit(0)
    sys.exit(main())
