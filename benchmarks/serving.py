"""Compares `grm serve` under load with the offline sampler: tokens per second and latencies.

    python benchmarks/serving.py --model runs/spct_tiny/rl/hf       about five minutes on two cores

Writes benchmarks/results/serving.{json,md}. The same groups of two responses (k = 8) are scored by
`score` in one process, as one list, and by clients that each send one group at a time over HTTP.
Both have the same batch (--prompt_slots, --rows) and give the same rewards, which is checked. They
take turns; the table has the median over the rounds.
"""

import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

SLOTS, ROWS, K, MAX_PROMPT, MAX_NEW = 16, 4, 8, 192, 64


def groups(count: int) -> list[dict[str, Any]]:
    """Returns groups of the built-in world."""
    from grm_jax.data.world import items

    comparisons = [item for item in items.make_items("test", 0, 3 * count) if item.n > 1]
    return [
        {"prompt": item.query, "responses": list(item.responses[:2]), "id": str(i)}
        for i, item in enumerate(comparisons[:count])
    ]


def offline(model: str, rows: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Scores the groups by `score`; the first round compiles and does not count."""
    from grm_jax.judging.judge import Judge
    from grm_jax.judging.rewards import score

    judge = Judge.load(model, prompt_slots=SLOTS, rows=ROWS)
    results = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        rewards = score(rows, judge, k=K, max_new_tokens=MAX_NEW)
        seconds = time.perf_counter() - start
        tokens = sum(reward.new_tokens for reward in rewards)
        values = [reward.values for reward in rewards]
        results.append({"seconds": seconds, "tokens": tokens, "values": values})
    return results[1:]


async def _load(url: str, rows: list[dict[str, Any]], clients: int) -> dict[str, Any]:
    import httpx

    queue, latencies, tokens = list(reversed(list(enumerate(rows)))), [], 0
    values: list[Any] = [None] * len(rows)

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal tokens
        while queue:
            i, row = queue.pop()
            body = {"groups": [row], "k": K, "max_new_tokens": MAX_NEW}
            start = time.perf_counter()
            reply = (await http.post("/v1/score", json=body)).json()
            latencies.append(time.perf_counter() - start)
            (group,) = reply["groups"]
            tokens += group["new_tokens"]
            values[i] = [reward["reward"] for reward in group["rewards"]]

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as http:
        start = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        seconds = time.perf_counter() - start
    cuts = statistics.quantiles(latencies, n=100)
    shares = {name: cuts[int(name[1:]) - 1] for name in ("p50", "p95", "p99")}
    return {"seconds": seconds, "tokens": tokens, "values": values, **shares}


def served(
    model: str, rows: list[dict[str, Any]], clients: list[int], rounds: int
) -> dict[int, list[dict[str, Any]]]:
    """Starts a server, and scores the groups with each number of clients."""
    import httpx

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "grm_jax.cli", "serve", "--model", model, "--port", str(port)]
    settings = {"prompt_slots": SLOTS, "rows": ROWS, "max_prompt": MAX_PROMPT}
    command += common.flags({**settings, "max_new_tokens": MAX_NEW, "queue": 256})
    environment = {"JAX_PLATFORMS": "cpu", **os.environ, "PYTHONPATH": str(common.ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    url, start = f"http://127.0.0.1:{port}", time.perf_counter()
    try:
        while True:
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None:
                raise RuntimeError("the server did not start")
            time.sleep(0.2)
        print(f"ready after {time.perf_counter() - start:.1f} s")
        asyncio.run(_load(url, rows[:64], 16))  # first uses
        return {n: [asyncio.run(_load(url, rows, n)) for _ in range(rounds)] for n in clients}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--groups", type=int, default=512)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "serving")
    args = parser.parse_args()
    about = {
        "machine": common.machine(),
        "command": "python benchmarks/serving.py --model runs/spct_tiny/rl/hf "
        f"--groups {args.groups} --rounds {args.rounds}",
        "batch": f"{SLOTS} prompt slots x {ROWS} rows",
        "groups": args.groups,
        "k": K,
    }
    rows = groups(args.groups)
    own = offline(args.model, rows, args.rounds)
    by_clients = served(args.model, rows, args.clients, args.rounds)
    expected = own[0]["values"]
    for run in [*own, *(run for runs in by_clients.values() for run in runs)]:
        assert run.pop("values") == expected, "the rewards differ"
    rate = lambda runs: statistics.median(r["tokens"] / r["seconds"] for r in runs)
    base = rate(own)
    table: list[tuple[str, ...]] = [("`score`, one list", f"{base:,.0f}", "", "", "", "")]
    for clients, runs in by_clients.items():
        seconds = [statistics.median(r[name] for r in runs) for name in ("p50", "p95", "p99")]
        cells = [f"{rate(runs):,.0f}", f"{rate(runs) / base:.0%}", *(f"{s:.2f}" for s in seconds)]
        table.append((f"server, {clients} clients", *cells))
    titles = ("tokens/s", "of `score`", "p50 s", "p95 s", "p99 s")
    text = common.markdown_table({"": "left"} | dict.fromkeys(titles, "right"), table) + "\n"
    print(text)
    results = {"score": own, "server": {str(n): runs for n, runs in by_clients.items()}}
    common.write_json(common.result_file(args.out, ".json"), {"about": about, "runs": results})
    common.result_file(args.out, ".md").write_text(text)


if __name__ == "__main__":
    main()
