"""Times one GRPO step (rollout, reference, update) against Tunix's GRPO learner and TRL's trainer.

    python benchmarks/grpo_step.py --peers PYTHON                with the `bench` extra
    python benchmarks/grpo_step.py --tunix PYTHON --trl PYTHON   each in its own environment
    python benchmarks/grpo_step.py                               without peers
    python benchmarks/grpo_step.py --adapters                    LoRA and QLoRA beside full training

Writes benchmarks/results/grpo_step.{json,md}: a table for each peer, with time-outs as such
(`--timeout`). With --adapters it writes grpo_step_adapters.{json,md}, with the peak memory of each
process, also at the sizes of Qwen 2.5 0.5B. All others train a Gemma 2 of 4 layers, width 256,
4 heads over 2 KV heads of 64, ffn 1,024, vocabulary 4,096. Random float32 weights; beta 0.08,
AdamW, one update per rollout batch, temperature 1 from the whole distribution, no stop. Each system
runs in a process of its own, which takes two steps to warm up and then `--steps` under the clock.
Systems take turns; the result is the median of all timed steps. CPU seconds are those of all
threads: on a shared machine they are more reliable than wall time.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402
from benchmarks.sampling_systems import gemma_shape, tunix_tokenizer  # noqa: E402

# name -> prompts P, samples per prompt G, prompt tokens S, new tokens T
SHAPES = {"4x8, 512+128": (4, 8, 512, 128), "8x4, 128+64": (8, 4, 128, 64)}
LARGE = "Qwen 2.5 0.5B, 2x4, 256+64"
ADAPTER_SHAPES = {LARGE: (2, 4, 256, 64), "4x8, 512+128": SHAPES["4x8, 512+128"]}
ADAPTERS = {"ours": {}, "lora": {"rank": 16}, "qlora": {"rank": 16, "base": "int8"}}
MODEL = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 1024,
    "vocab_size": 4096,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
BETA, CLIP, LEARNING_RATE = 0.08, 0.2, 1e-6
WARM_UP = 2
Result = dict[str, Any]


def prompts_of(count: int, length: int, step: int) -> list[list[int]]:
    """Returns the prompts of one step, the same for all systems."""
    rng = np.random.default_rng(step)
    return rng.integers(10, MODEL["vocab_size"], (count, length)).tolist()


def prompt_texts(P: int, S: int, steps: int) -> list[list[str]]:
    """Returns the prompts of warm-up, timed and one more step, as texts of ids."""
    return [
        [" ".join(map(str, prompt)) for prompt in prompts_of(P, S, step)]
        for step in range(WARM_UP + steps + 1)
    ]


def reward_of(tokens: list[int]) -> float:
    """A rule that splits a group: the parity of the sum of the ids."""
    return 1.0 if sum(tokens) % 2 else -1.0


def clock() -> np.ndarray:
    """Returns wall and CPU seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])


def differences(times: list[np.ndarray]) -> list[list[float]]:
    """Returns (wall, CPU) seconds of each timed step, for times at the ends of steps."""
    return [(b - a).tolist() for a, b in zip(times, times[1:])][WARM_UP:]


def our_config(P: int, G: int, S: int, T: int) -> Any:
    from ml_collections import ConfigDict

    from experiments import spct_27b
    from grm_jax.models import LayerSpec

    config = ConfigDict()
    config.lora = spct_27b.lora()
    config.model = "tiny_gemma2"
    config.model_overrides = {
        "num_layers": MODEL["num_hidden_layers"],
        "d_model": MODEL["hidden_size"],
        "d_ff": MODEL["intermediate_size"],
        "num_heads": MODEL["num_attention_heads"],
        "num_kv_heads": MODEL["num_key_value_heads"],
        "head_dim": MODEL["head_dim"],
        "query_pre_attn_scalar": MODEL["head_dim"],
        "vocab_size": MODEL["vocab_size"],
        "max_length": 1024,
        "pattern": (LayerSpec(MODEL["sliding_window"]), LayerSpec(None)),
    }
    config.rl = {
        "steps": 100,
        "lr": LEARNING_RATE,
        "warmup_steps": 0,
        "schedule": "constant",
        "final_lr_share": 0.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
        "micro_batches": 1,
        "prompts": P,
        "group_size": G,
        "prompt_len": S,
        "max_new_tokens": T,
        "temperature": 1.0,
        "beta": BETA,
        "clip": CLIP,
        "kl_estimator": "k3",
        "updates_per_rollout": 1,
    }
    return config


def with_adapters(system: str, shape: str) -> Any:
    """Returns the config of a system of ADAPTERS."""
    config = our_config(*ADAPTER_SHAPES[shape])
    config.lora.update(ADAPTERS[system])
    if shape == LARGE:
        config.model, config.model_overrides = "qwen2_0.5b", {"dtype": "float32"}
    return config


def ours(P: int, G: int, S: int, T: int, steps: int, config: Any = None) -> Result:
    """Times our programs, also the phases of a step; config: default `our_config`."""
    import jax
    from flax import nnx

    from grm_jax import sampling
    from grm_jax.models import abstract_model
    from grm_jax.sharding import make_mesh
    from grm_jax.training import grpo, losses, optim, state as states
    from grm_jax.training.programs import model_config

    config = config or our_config(P, G, S, T)
    mesh = make_mesh(devices=jax.devices()[:1])
    cfg = model_config(config)
    model = graphdef, _ = abstract_model(cfg, mesh)
    update = grpo.build_grpo_update(config, mesh, model)
    reference_logps = grpo.build_logps(config, mesh, model)
    totals, phases = [], []
    with jax.set_mesh(mesh):
        params, frozen = states.split(states.init_params(cfg, mesh, 0))
        reference = jax.tree.map(lambda x: x.copy(), params)
        state = states.init_state(params, optim.make_optimizer(config.rl), mesh, 0)
        for step in range(WARM_UP + steps):
            times = [clock()]
            prompts = prompts_of(P, S, step)
            policy = nnx.merge(graphdef, states.join(state["params"], frozen))
            samples = sampling.sample(
                policy, prompts, G, T, temperature=1.0, seed=step, prompt_slots=P
            )
            rewards = [[reward_of(s.tolist()) for s in group] for group in samples.tokens]
            advantages = losses.group_advantages(np.array(rewards, np.float32))
            batch = {
                "prompts": np.array(prompts, np.int32),
                "prompt_lengths": np.full(P, S, np.int32),
                "completions": samples.tokens,
                "mask": np.ones((P, G, T), np.float32),
                "advantages": np.asarray(advantages),
                "sampler_logps": samples.logprobs,
            }
            batch = states.put_batch(batch, mesh)
            times.append(clock())
            rollout = {name: batch[name] for name in grpo.rollout_shapes(config)}
            batch["ref_logps"] = jax.block_until_ready(
                reference_logps.fn(reference, rollout, frozen)
            )
            batch["old_logps"] = batch["ref_logps"]
            times.append(clock())
            state, metrics = update.fn(state, batch, frozen)
            gap = float(metrics["gap_max"])
            times.append(clock())
            totals.append((times[-1] - times[0]).tolist())
            phases.append([(b - a)[0] for a, b in zip(times, times[1:])])
    medians = np.median(phases[WARM_UP:], axis=0).tolist()
    return {
        "steps": totals[WARM_UP:],
        "parts": dict(zip(("rollout", "reference", "update"), medians)),
        "gap_max": gap,
        "trained": sum(x.size for x in jax.tree.leaves(state["params"])),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def tunix(P: int, G: int, S: int, T: int, steps: int) -> Result:
    """Times Tunix's GRPO learner; a step ends where the next one's rewards are computed."""
    import jax
    import optax
    from flax import nnx
    from tunix.generate import tokenizer_adapter
    from tunix.models.gemma import model as gemma
    from tunix.rl import rl_cluster
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rollout import base_rollout

    kinds = (gemma.AttentionType.LOCAL_SLIDING, gemma.AttentionType.GLOBAL)
    shape = gemma.ModelConfig(num_layers=MODEL["num_hidden_layers"], **gemma_shape(MODEL, kinds))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=gemma.Gemma(shape, rngs=nnx.Rngs(0)),
        reference=gemma.Gemma(shape, rngs=nnx.Rngs(0)),
        tokenizer=tunix_tokenizer(tokenizer_adapter),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role: mesh for role in roles},
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adamw(LEARNING_RATE),
                eval_every_n_steps=10_000,
                max_steps=WARM_UP + steps + 1,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=T,
                max_prompt_length=S,
                kv_cache_size=S + T,
                temperature=1.0,
                top_p=1.0,
                eos_tokens=[-1],
            ),
        ),
    )
    times = []

    def reward(prompts: list, completions: list[str], **_: Any) -> list[float]:
        times.append(clock())
        return [reward_of([int(i) for i in text.split()]) for text in completions]

    # Arrays, not lists: Tunix repeats every leaf of the batch G times.
    batches = [{"prompts": np.array(texts)} for texts in prompt_texts(P, S, steps)]
    grpo = GRPOConfig(num_generations=G, num_iterations=1, beta=BETA, epsilon=CLIP)
    GRPOLearner(cluster, grpo, reward).train(batches)
    return {"steps": differences(times), "parts": {}}


def trl(P: int, G: int, S: int, T: int, steps: int) -> Result:
    """Times TRL's GRPOTrainer (PyTorch eager, Hugging Face's generate) like Tunix's learner."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = {str(i): i for i in range(MODEL["vocab_size"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="0",
        eos_token="1",
        bos_token="2",
        unk_token="3",
        padding_side="left",
    )
    shape = Gemma2Config(
        **MODEL,
        query_pre_attn_scalar=MODEL["head_dim"],
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    times = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        times.append(clock())
        assert all(len(ids) == T for ids in completion_ids), "a completion stopped early"
        return [reward_of(ids) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        # TRL loads the reference model from where the policy was.
        Gemma2ForCausalLM(shape).save_pretrained(folder)
        prompts = [text for texts in prompt_texts(P, S, steps) for text in texts]
        options = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=P * G,
            num_generations=G,
            max_completion_length=T,
            beta=BETA,
            epsilon=CLIP,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            num_iterations=1,
            steps_per_generation=1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_steps=WARM_UP + steps + 1,
            generation_kwargs={"min_new_tokens": T},
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            model_init_kwargs={"attn_implementation": "eager", "dtype": "float32"},
            max_grad_norm=0.0,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        dataset = Dataset.from_dict({"prompt": prompts})
        GRPOTrainer(folder, reward, options, dataset, processing_class=tokenizer).train()
    return {"steps": differences(times), "parts": {}}


SYSTEMS = {"ours": ours, "tunix": tunix, "trl": trl}


def summary(runs: list[Result]) -> Result:
    """Returns the medians over all timed steps of a system, or the time-out that stopped it."""
    if any("timed_out_after" in run for run in runs):
        return next(run for run in runs if "timed_out_after" in run)
    steps = [step for run in runs for step in run["steps"]]
    seconds, cpu_seconds = (statistics.median(step[i] for step in steps) for i in (0, 1))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "timed_steps": len(steps),
        "parts": runs[-1]["parts"],
        **{
            name: max(run[name] for run in runs)
            for name in ("trained", "peak_bytes")
            if name in runs[0]
        },
    }


def ratios(runs: list[Result], ours: list[Result], kind: int) -> list[float]:
    """Returns the median step of a system over ours, for each round in which it finished.

    kind: 0 compares wall seconds, 1 CPU seconds.
    """
    median = lambda run: statistics.median(step[kind] for step in run["steps"])
    return [median(a) / median(b) for a, b in zip(runs, ours) if "steps" in a]


def run_system(flags: list[str], python: str, timeout: float) -> Result:
    """Runs one system in a process of its own, which is killed after `timeout` seconds."""
    try:
        return common.run_apart(__file__, *flags, python=python, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"timed_out_after": timeout}


def table(results: dict[str, dict[str, Result]], peer: str) -> str:
    """Returns a Markdown table of our step and one peer's."""
    times = lambda r: (f"{r['seconds']:.2f} s", f"{r['cpu_seconds']:.2f} s")
    rows = []
    for shape, systems in results.items():
        if peer not in systems:
            continue
        theirs = systems[peer]
        if "timed_out_after" in theirs:
            last = (f"timed out after {theirs['timed_out_after']:.0f} s", "-")
        else:
            spread = [" to ".join(f"{f(r):.1f}" for f in (min, max)) for r in theirs["ratios"]]
            last = (" / ".join(times(theirs)), f"{spread[0]} (CPU {spread[1]})")
        rows.append((shape, " / ".join(times(systems["ours"])), *last))
    columns = {"step": "left"} | dict.fromkeys(
        ("grm_jax, wall / CPU", f"{peer}, wall / CPU", "ratio over the rounds"), "right"
    )
    return common.markdown_table(columns, rows) if rows else ""


def adapters_table(results: dict[str, dict[str, Result]]) -> str:
    """Returns a Markdown table of full training, LoRA and QLoRA."""
    titles = {"ours": "all", "lora": "LoRA, bfloat16 base", "qlora": "LoRA, int8 base"}
    rows = [
        (
            shape,
            titles[system],
            f"{result['trained'] / 1e6:.1f}M",
            f"{result['seconds']:.2f} s",
            f"{result['cpu_seconds']:.2f} s",
            *(f"{result['parts'][part]:.2f} s" for part in ("rollout", "reference", "update")),
            f"{result['peak_bytes'] / 2**30:.1f} GiB",
        )
        for shape, systems in results.items()
        for system, result in systems.items()
    ]
    columns = {"step": "left", "trained weights": "left"} | dict.fromkeys(
        ("numbers", "wall", "CPU", "rollout", "reference", "update", "peak memory"), "right"
    )
    return common.markdown_table(columns, rows)


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--peers", default="", help="interpreter with both peers")
    parser.add_argument("--tunix", default="", help="interpreter with Tunix")
    parser.add_argument("--trl", default="", help="interpreter with TRL")
    parser.add_argument("--adapters", action="store_true", help="LoRA and QLoRA, no peers")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=900, help="seconds of one process")
    parser.add_argument("--shape", choices=SHAPES | ADAPTER_SHAPES, help="only this shape")
    names = SYSTEMS | ADAPTERS
    parser.add_argument("--system", choices=names, help="internal: time one system and print it")
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results")
    args = parser.parse_args()
    shapes = ADAPTER_SHAPES if args.adapters else SHAPES
    if args.shape and args.shape not in shapes:
        parser.error(f"--shape {args.shape}: use {' or '.join(shapes)}")
    if args.system:
        size = shapes[args.shape]
        if args.adapters:
            result = ours(*size, args.steps, with_adapters(args.system, args.shape))
        else:
            result = SYSTEMS[args.system](*size, args.steps)
        print(json.dumps(result))
        return
    out = args.out or common.RESULTS / f"grpo_step{'_adapters' * args.adapters}.json"
    pythons = dict.fromkeys(ADAPTERS, "")
    if not args.adapters:
        peers = {name: getattr(args, name) or args.peers for name in ("tunix", "trl")}
        pythons = {"ours": ""} | {name: python for name, python in peers.items() if python}
    about = {"machine": common.machine()}
    if LARGE not in shapes:  # which is of another model
        about["model"] = MODEL
    results: dict[str, dict[str, Result]] = {}
    for shape in [args.shape] if args.shape else shapes:
        runs: dict[str, list[Result]] = {system: [] for system in pythons}
        for _ in range(args.rounds):
            for system, python in pythons.items():
                if any("timed_out_after" in run for run in runs[system]):
                    continue  # one time-out is enough
                options = {"system": system, "shape": shape, "steps": args.steps}
                flags = [*common.flags(options), *(["--adapters"] if args.adapters else [])]
                runs[system].append(run_system(flags, python, args.timeout))
        results[shape] = {system: summary(measured) for system, measured in runs.items()}
        for system, result in results[shape].items():
            result["ratios"] = [ratios(runs[system], runs["ours"], kind) for kind in (0, 1)]
            print(shape, system, json.dumps(result), flush=True)
        common.write_json(out, {"about": about, "results": results})
    tables = [t for peer in ("tunix", "trl") if (t := table(results, peer))]
    if args.adapters:
        tables = [adapters_table(results)]
    common.result_file(out, ".md").write_text("\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
