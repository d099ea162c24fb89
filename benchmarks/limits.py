"""Compares the decode step and the parts of a GRPO step with their arithmetic limit here.

    python benchmarks/limits.py                  both; 4 to 6 minutes on 2 cores
    python benchmarks/limits.py --only decode    the decode workload of sampling.py
    python benchmarks/limits.py --only grpo      the steps of grpo_step.py

The limit is the time of the program's matrix products by themselves, at the same shapes, dtypes and
layouts (see products.py). Limit and program take turns in one process; the table shows the medians
over the rounds, each as wall / CPU, and the range of their ratio. On a busy machine CPU seconds are
the more reliable. Writes benchmarks/results/limits.{json,md}.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, grpo_step, products, sampling  # noqa: E402
from grm_jax.checkpoints import load  # noqa: E402
from grm_jax.sampling import Engine, Request, decode, prefill, programs  # noqa: E402


def compare(
    name: str, counts: dict[products.Product, int], run: Callable[[], np.ndarray], rounds: int
) -> dict[str, Any]:
    """Times the products and the program in turn.

    Args:
      run: runs the program once and returns its wall and CPU seconds.
    """
    calls = products.compile_products(counts)
    run()
    pairs = np.array([(products.limit_seconds(calls), run()) for _ in range(rounds)])
    limit, program = np.median(pairs, axis=0).tolist()
    shares = pairs[:, 0] / pairs[:, 1]
    row = {
        "name": name,
        "gflop": products.total_flops(counts) / 1e9,
        "limit_seconds": limit,
        "program_seconds": program,
        "share": np.median(shares, axis=0).tolist(),
        "range": [[low, high] for low, high in zip(shares.min(axis=0), shares.max(axis=0))],
    }
    print(" | ".join(cells(row)), flush=True)
    return row


def decode_products(engine: Engine) -> dict[products.Product, int]:
    """Returns the products of one decode step of the engine's present shape."""
    state = programs.abstract_state(engine.cfg, engine.shape)

    def segment(params: Any, state: Any) -> Any:
        model = nnx.merge(engine.graphdef, params)
        return decode.decode_segment(model, state, np.int32(1), np.int32(1), engine.segment)

    return products.products_of(segment, engine.params, state)


def prefill_products(engine: Engine, shape: tuple[int, int]) -> dict[products.Product, int]:
    """Returns the products of a prefill of (prompts, tokens)."""

    def run(params: Any, tokens: Any, lengths: Any) -> Any:
        return prefill.prefill(nnx.merge(engine.graphdef, params), tokens, lengths)

    B, S = shape
    return products.products_of(
        run, engine.params, np.zeros((B, S), np.int32), np.full(B, S, np.int32)
    )


def engine_parts(name: str, engine: Engine, prompts: list, k: int, new: int, rounds: int) -> list:
    """Compares prefill and decode step of an engine that samples k times from each prompt.

    The decode step is the mean over a whole run, host work included.
    """

    def submit() -> None:
        for i, prompt in enumerate(prompts):
            engine.submit(Request(prompt, k, new, item=i))

    def decode_step() -> np.ndarray:
        submit()
        seconds, steps = np.zeros(2), 0
        while engine.busy:
            before = engine.stats.steps
            step = products.timed(engine.step)
            if engine.stats.steps > before:
                seconds += step
                steps += engine.stats.steps - before
        return seconds / steps

    decode_step()
    counts = decode_products(engine)
    tokens, lengths = np.array(prompts, np.int32), np.full(len(prompts), len(prompts[0]), np.int32)

    def prefill() -> np.ndarray:
        program = programs.prefill_program(engine.graphdef)
        return products.timed(lambda: program(engine.params, tokens, lengths))

    return [
        compare(f"{name}: decode step", counts, decode_step, rounds),
        compare(f"{name}: prefill", prefill_products(engine, tokens.shape), prefill, rounds),
    ]


def sampling_parts(rounds: int) -> list[dict[str, Any]]:
    """Compares the workload of sampling.py with its limit."""
    prompts = np.random.default_rng(1).integers(
        200, sampling.CONFIG["vocab_size"], (sampling.PROMPTS, sampling.PROMPT)
    )
    with tempfile.TemporaryDirectory() as folder:
        sampling.write_weights(Path(folder))
        model = load(folder, dtype="float32")
    engine = Engine(model, sampling.PROMPTS, sampling.K)
    name = f"sampling, {sampling.PROMPTS} x {sampling.K}, {sampling.PROMPT} + {sampling.NEW}"
    return engine_parts(name, engine, prompts.tolist(), sampling.K, sampling.NEW, rounds)


def grpo_parts(shape: str, rounds: int) -> list[dict[str, Any]]:
    """Compares the parts of a GRPO step of grpo_step.py with their limits."""
    from grm_jax.models import abstract_model
    from grm_jax.sharding import make_mesh
    from grm_jax.training import grpo, optim, state as states
    from grm_jax.training.programs import model_config

    P, G, S, T = grpo_step.SHAPES[shape]
    config, mesh = grpo_step.our_config(P, G, S, T), make_mesh(devices=jax.devices()[:1])
    cfg = model_config(config)
    model = graphdef, _ = abstract_model(cfg, mesh)
    update = grpo.build_grpo_update(config, mesh, model)
    reference = grpo.build_logps(config, mesh, model)
    prompts = grpo_step.prompts_of(P, S, 0)
    with jax.set_mesh(mesh):
        params, frozen = states.split(states.init_params(cfg, mesh, 0))
        engine = Engine(nnx.merge(graphdef, params), P, G)
        rows = engine_parts(f"GRPO {shape}", engine, prompts, G, T, rounds)
        completions = np.random.default_rng(1).integers(10, cfg.vocab_size, (P, G, T), np.int32)
        advantages = np.linspace(-1, 1, P * G, dtype=np.float32).reshape(P, G)
        logps = np.full((P, G, T), -8.0, np.float32)
        batch = states.put_batch(
            {
                "prompts": np.array(prompts, np.int32),
                "prompt_lengths": np.full(P, S, np.int32),
                "completions": completions,
                "mask": np.ones((P, G, T), np.float32),
                "advantages": advantages,
                "sampler_logps": logps,
                "ref_logps": logps,
                "old_logps": logps,
            },
            mesh,
        )
        rollout = {name: batch[name] for name in grpo.rollout_shapes(config)}
        reference_counts = products.products_of(reference.fn, *reference.args)
        update_counts = products.products_of(update.fn, *update.args)

        def run_reference() -> np.ndarray:
            return products.timed(lambda: reference.fn(params, rollout, frozen))

        rows.append(compare(f"GRPO {shape}: reference", reference_counts, run_reference, rounds))
        # The update donates its state.
        state = [states.init_state(params, optim.make_optimizer(config.rl), mesh, 0)]

        def step() -> Any:
            state[0], metrics = update.fn(state[0], batch, frozen)
            return metrics

        def run_update() -> np.ndarray:
            return products.timed(step)

        rows.append(compare(f"GRPO {shape}: update", update_counts, run_update, rounds))
    rows.append(sum_of_parts(f"GRPO {shape}: sum of the parts", rows, (T - 1, 1, 1, 1)))
    print(" | ".join(cells(rows[-1])), flush=True)
    return rows


def sum_of_parts(name: str, rows: list[dict[str, Any]], times: tuple[int, ...]) -> dict[str, Any]:
    """Returns the row of a step that runs each part so many times."""
    total = lambda key: sum(n * np.array(row[key]) for row, n in zip(rows, times))
    limit, program = total("limit_seconds"), total("program_seconds")
    return {
        "name": name,
        "gflop": float(total("gflop")),
        "limit_seconds": limit.tolist(),
        "program_seconds": program.tolist(),
        "share": (limit / program).tolist(),
        "range": [],
    }


def cells(row: dict[str, Any]) -> list[str]:
    """Returns a row of the table."""
    times = [
        " / ".join(f"{1e3 * seconds:,.1f}" for seconds in row[key])
        for key in ("limit_seconds", "program_seconds")
    ]
    shares = " / ".join(f"{100 * share:.0f}%" for share in row["share"])
    low_high = [f"{100 * low:.0f} to {100 * high:.0f}" for low, high in row["range"]]
    spread = f" ({'; '.join(low_high)})" if low_high else ""
    return [row["name"], f"{row['gflop']:,.1f}", *times, shares + spread]


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--only", choices=("decode", "grpo"))
    parser.add_argument("--shape", choices=grpo_step.SHAPES, help="only this GRPO step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "limits.json")
    args = parser.parse_args()
    about = {"machine": common.machine(), "rounds": args.rounds}
    rows = [] if args.only == "grpo" else sampling_parts(args.rounds)
    if args.only != "decode":
        for shape in [args.shape] if args.shape else grpo_step.SHAPES:
            rows += grpo_parts(shape, args.rounds)
    common.write_json(args.out, {"about": about, "rows": rows})
    titles = ("GFLOP", "limit, ms", "program, ms", "limit / program (range)")
    columns = {"program": "left"} | dict.fromkeys(titles, "right")
    table = common.markdown_table(columns, [cells(row) for row in rows])
    common.result_file(args.out, ".md").write_text(table + "\n")


if __name__ == "__main__":
    main()
