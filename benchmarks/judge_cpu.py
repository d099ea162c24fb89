"""Measures the tokens per second of a judge on a CPU: our sampler beside llama.cpp.

    python benchmarks/judge_cpu.py --gguf qwen2.5-coder-0.5b.gguf --data DATA --llama PYTHON

PYTHON: an interpreter with xllamacpp. DATA has `pandalm/`. Each system runs in a process of its
own, one after the other, on the same prompts: PandaLM comparisons under the template `grm` in both
orders, four critiques of each order (k = 8), temperature 0.5, a fixed number of new tokens. Ours
runs on the weights of the GGUF file, dequantised to float32 or bfloat16; llama.cpp runs on the file
itself, mostly 4 bits a weight, with as many slots as a comparison has critiques. Each warms up on
the same prompts, so loading and compiling are not measured.

Results go to benchmarks/results/judge_cpu.json, one entry per file, with the load average: on a
shared machine compare CPU seconds, which count all threads.
"""

import json
import os
import resource
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

RESULT = common.RESULTS / "judge_cpu.json"
SYSTEMS = ("bfloat16", "float32", "llama.cpp")
K, TEMPERATURE = 8, 0.5
Work = dict[str, Any]


def prompts(folder: Path, data: Path, count: int) -> list[dict[str, Any]]:
    """Returns the chat messages and token ids of `count` comparisons, in both orders."""
    from grm_jax.evals.benchmarks import BENCHMARKS
    from grm_jax.evals.run import choose
    from grm_jax.text import rendering, tokenizer

    codec = tokenizer.load(folder)
    made = []
    for comparison in choose(BENCHMARKS["pandalm"].load(data), count):
        template = rendering.load(rendering.choose("grm", comparison, None))
        for order in ((0, 1), (1, 0)):
            messages = rendering.render(template, comparison, order)
            made.append({"messages": messages, "ids": codec.encode_chat(messages)})
    return made


def ours(work: Work, dtype: str) -> Callable[[int], int]:
    """Returns run(seed) -> number of sampled tokens."""
    from grm_jax.checkpoints import load
    from grm_jax.judging.sampler import engine_sampler
    from grm_jax.sampling import Request

    sample = engine_sampler(load(work["folder"], dtype=dtype), few_shapes=True)

    def run(seed: int) -> int:
        samples = {"k": K // 2, "max_new_tokens": work["new"], "temperature": TEMPERATURE}
        requests = [
            Request(prompt["ids"], **samples, seed=seed, item=i)
            for i, prompt in enumerate(work["prompts"])
        ]
        return sum(len(completion.tokens) for completion in sample(requests))

    return run


def llama_cpp(work: Work, _: str) -> Callable[[int], int]:
    """Returns run(seed) -> number of sampled tokens, of a server in this process."""
    import xllamacpp

    length = max(len(prompt["ids"]) for prompt in work["prompts"]) + work["new"] + 64
    params = xllamacpp.CommonParams()
    params.model.path = work["gguf"]
    params.n_parallel, params.n_ctx, params.port = K, K * length, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = work["cores"]
    server = xllamacpp.Server(params)

    def complete(job: tuple[dict, int]) -> int:
        prompt, seed = job
        body = {"messages": prompt["messages"], "max_tokens": work["new"], "seed": seed}
        body |= {"temperature": TEMPERATURE, "ignore_eos": True}
        # The closure holds the server, which stops when it is freed.
        url = f"{server.listening_address}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:
            usage = json.load(answer)["usage"]
        assert abs(usage["prompt_tokens"] - len(prompt["ids"])) <= 1, usage  # BOS
        return int(usage["completion_tokens"])

    def run(seed: int) -> int:
        half = K // 2
        jobs = [(p, seed * 1000 + i) for p in work["prompts"] for i in range(half)]
        with ThreadPoolExecutor(len(jobs)) as pool:
            return sum(pool.map(complete, jobs))

    return run


def measure(system: str, path: str) -> dict[str, Any]:
    """Runs one system in this process: a warm-up, then once under the clock."""
    work = json.loads(Path(path).read_text())
    run = llama_cpp(work, system) if system == "llama.cpp" else ours(work, system)
    run(0)
    load = os.getloadavg()[0]
    start, cpu = time.perf_counter(), time.process_time()
    tokens = run(1)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "tokens_per_second": round(tokens / seconds, 2),
        "tokens_per_cpu_second": round(tokens / cpu, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20), 2),
        "load_average": round(load, 1),
    }


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--llama", default="", help="interpreter with xllamacpp")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--comparisons", type=int, default=2)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--one", nargs=2, help="internal: SYSTEM WORK.json")
    args = parser.parse_args()
    if args.one:
        try:
            print(json.dumps(measure(*args.one)), flush=True)
        except Exception:
            traceback.print_exc()
            os._exit(1)  # a failed run must not wait for the server's threads
        os._exit(0)
    from grm_jax import cli

    systems = args.systems.split(",")
    with tempfile.TemporaryDirectory() as folder:
        model, work = Path(folder) / "model", Path(folder) / "work.json"
        if status := cli.main(["convert", str(args.gguf), str(model), "--dtype", "bfloat16"]):
            raise SystemExit(status)
        made = prompts(model, args.data, args.comparisons)
        settings = {"new": args.new_tokens, "cores": len(os.sched_getaffinity(0))}
        files = {"folder": str(model), "gguf": str(args.gguf.resolve())}
        work.write_text(json.dumps({"prompts": made, **settings, **files}))
        entry: dict[str, Any] = {
            "machine": common.machine(),
            "prompt_tokens": [len(prompt["ids"]) for prompt in made],
            "critiques_per_prompt": K // 2,
            "new_tokens": args.new_tokens,
            "systems": {},
        }
        for system in systems:
            python = args.llama if system == "llama.cpp" else ""
            entry["systems"][system] = common.run_apart(
                __file__, "--one", system, work, python=python
            )
            print(system, entry["systems"][system], flush=True)
    results = common.read_json(RESULT, {})
    common.write_json(RESULT, results | {args.gguf.stem: entry})


if __name__ == "__main__":
    main()
