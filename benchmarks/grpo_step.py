"""One GRPO step (rollout, reference, update) against Tunix's GRPO learner and TRL's trainer: the same shapes, machine and run.

    .venv/bin/python benchmarks/grpo_step.py --peers PYTHON      PYTHON: an interpreter with the `bench` extra; without it only ours
    .venv/bin/python benchmarks/grpo_step.py --tunix PYTHON --trl PYTHON      the two in environments of their own; one may be left out

A Gemma 2 of 4 layers, width 256, 4 heads over 2 KV heads of 64, ffn 1,024, vocabulary 4,096, random float32 weights; beta 0.08, AdamW, one update per
rollout batch, temperature 1 from the whole distribution, no stop. Each system is a process of its own that makes two steps to warm up
and then `--steps` under the clock; the systems take turns, and the median of all timed steps counts. CPU seconds are those of all threads:
where other work shares the machine they say more than the clock.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

# prompts, G, prompt tokens, new tokens
SHAPES = {"4x8, 512+128": (4, 8, 512, 128), "8x4, 128+64": (8, 4, 128, 64)}
MODEL = dict(layers=4, width=256, heads=4, kv_heads=2, head=64, ffn=1024, vocab=4096)
WARM = 2


def prompts_of(count, length, step):
    return np.random.default_rng(step).integers(10, MODEL["vocab"], (count, length)).tolist()


def reward_of(tokens):
    """Any rule that splits a group: the parity of the sum of the ids."""
    return 1.0 if sum(tokens) % 2 else -1.0


def clock():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])


def ours(P, G, S, T, steps):
    """Seconds and CPU seconds of each step, and of its parts."""
    import jax
    from flax import nnx
    from ml_collections import ConfigDict

    from grm_jax import sampling
    from grm_jax.sharding import make_mesh
    from grm_jax.training import grpo, losses, optim
    from grm_jax.training import state as states
    from grm_jax.training.programs import model_config

    m, config = MODEL, ConfigDict()
    config.model = "tiny_gemma2"
    from grm_jax.models import LayerSpec

    config.model_overrides = dict(
        num_layers=m["layers"], d_model=m["width"], d_ff=m["ffn"], num_heads=m["heads"], num_kv_heads=m["kv_heads"], head_dim=m["head"],
        query_pre_attn_scalar=m["head"], vocab_size=m["vocab"], max_length=1024, pattern=(LayerSpec(4096), LayerSpec(None)),
    )  # fmt: skip
    stage = dict(
        steps=100, lr=1e-6, warmup_steps=0, schedule="constant", final_lr_share=0.0, b1=0.9, b2=0.999, eps=1e-8,
        weight_decay=0.0, clip_norm=0.0, micro_batches=1,
    )  # fmt: skip
    rl = dict(
        prompts=P,
        group_size=G,
        prompt_len=S,
        max_new_tokens=T,
        temperature=1.0,
        beta=0.08,
        clip=0.2,
    )
    config.rl = ConfigDict(stage | rl | dict(kl_estimator="k3", updates_per_rollout=1))
    mesh = make_mesh(devices=jax.devices()[:1])
    cfg = model_config(config)
    abstract = states.abstract_model(cfg, mesh)
    update, reference_logps = (
        grpo.build_grpo_update(config, mesh, abstract),
        grpo.build_logps(config, mesh, abstract),
    )
    rows, parts = [], []
    with jax.set_mesh(mesh):
        params = states.init_params(cfg, mesh, 0)
        reference = jax.tree.map(lambda x: x.copy(), params)
        state = states.init_state(params, optim.make_optimizer(config.rl), mesh, 0)
        for step in range(WARM + steps):
            times = [clock()]
            prompts = prompts_of(P, S, step)
            model = nnx.merge(abstract[0], state["params"])
            samples = sampling.sample(
                model, prompts, G, T, temperature=1.0, seed=step, prompt_slots=P
            )
            rewards = np.array(
                [[reward_of(row.tolist()) for row in group] for group in samples.tokens], np.float32
            )
            batch = {
                "prompts": np.array(prompts, np.int32),
                "prompt_lengths": np.full(P, S, np.int32),
                "completions": samples.tokens,
                "mask": np.ones((P, G, T), np.float32),
                "advantages": np.asarray(losses.group_advantages(rewards)),
                "sampler_logps": samples.logprobs,
            }
            batch = states.put_batch(batch, mesh)
            times.append(clock())
            rollout = {name: batch[name] for name in grpo.rollout_shapes(config)}
            batch["ref_logps"] = jax.block_until_ready(reference_logps.fn(reference, rollout))
            batch["old_logps"] = batch["ref_logps"]
            times.append(clock())
            state, metrics = update.fn(state, batch)
            gap = float(metrics["gap_max"])
            times.append(clock())
            rows.append((times[-1] - times[0]).tolist())
            parts.append([(b - a)[0] for a, b in zip(times, times[1:])])
    middle = np.median(parts[WARM:], axis=0).tolist()
    return {
        "steps": rows[WARM:],
        "parts": dict(zip(("rollout", "reference", "update"), middle)),
        "gap_max": gap,
    }


def tunix(P, G, S, T, steps):
    """The same by Tunix's GRPO learner; a step ends where the next one's rewards are asked for."""
    import jax
    import optax
    from flax import nnx
    from sampling_systems import tunix_tokenizer
    from tunix.generate import tokenizer_adapter
    from tunix.models.gemma import model as gemma
    from tunix.rl import rl_cluster
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rollout import base_rollout

    m = MODEL
    kinds = (gemma.AttentionType.LOCAL_SLIDING, gemma.AttentionType.GLOBAL)
    shape = gemma.ModelConfig(
        num_layers=m["layers"], num_embed=m["vocab"], embed_dim=m["width"], hidden_dim=m["ffn"], num_heads=m["heads"], head_dim=m["head"],
        num_kv_heads=m["kv_heads"], final_logit_softcap=30.0, use_post_attn_norm=True, use_post_ffw_norm=True,
        attention_types=kinds * (m["layers"] // 2), attn_logits_soft_cap=50.0, sliding_window_size=4096,
    )  # fmt: skip
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    Role = rl_cluster.Role
    cluster = rl_cluster.RLCluster(
        actor=gemma.Gemma(shape, rngs=nnx.Rngs(0)),
        reference=gemma.Gemma(shape, rngs=nnx.Rngs(0)),
        tokenizer=tunix_tokenizer(tokenizer_adapter),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role: mesh for role in (Role.ACTOR, Role.REFERENCE, Role.ROLLOUT)},
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adamw(1e-6),
                eval_every_n_steps=10_000,
                max_steps=WARM + steps + 1,
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

    def reward(prompts, completions, **_):
        times.append(clock())
        return [reward_of([int(i) for i in text.split()]) for text in completions]

    # An array, not a list: Tunix repeats every leaf of the batch G times.
    texts = [
        [" ".join(map(str, p)) for p in prompts_of(P, S, step)] for step in range(WARM + steps + 1)
    ]
    data = [{"prompts": np.array(batch)} for batch in texts]
    learner = GRPOLearner(
        cluster, GRPOConfig(num_generations=G, num_iterations=1, beta=0.08, epsilon=0.2), reward
    )
    learner.train(data)
    rows = [(b - a).tolist() for a, b in zip(times, times[1:])]
    return {"steps": rows[WARM:], "parts": {}}


def trl(P, G, S, T, steps):
    """The same by TRL's GRPOTrainer, PyTorch eager, Hugging Face's generate; a step ends where the next one's rewards are asked for."""
    import tempfile

    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    m = MODEL
    words = Tokenizer(models.WordLevel({str(i): i for i in range(m["vocab"])}, unk_token="3"))
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
        num_hidden_layers=m["layers"], vocab_size=m["vocab"], hidden_size=m["width"], intermediate_size=m["ffn"], num_attention_heads=m["heads"],
        head_dim=m["head"], num_key_value_heads=m["kv_heads"], query_pre_attn_scalar=m["head"], sliding_window=4096, pad_token_id=0,
        eos_token_id=1, bos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    times = []

    def reward(completion_ids, **_):
        times.append(clock())
        assert all(len(ids) == T for ids in completion_ids), "a completion stopped early"
        return [reward_of(ids) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        # TRL reads the reference model again from where the policy was.
        Gemma2ForCausalLM(shape).save_pretrained(folder)
        prompts = [
            " ".join(map(str, p))
            for step in range(WARM + steps + 1)
            for p in prompts_of(P, S, step)
        ]
        options = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=P * G, num_generations=G, max_completion_length=T, beta=0.08, epsilon=0.2,
            temperature=1.0, top_p=1.0, top_k=0, num_iterations=1, steps_per_generation=1, learning_rate=1e-6, lr_scheduler_type="constant",
            max_steps=WARM + steps + 1, generation_kwargs={"min_new_tokens": T}, shuffle_dataset=False, use_cpu=True, bf16=False,
            gradient_checkpointing=False, model_init_kwargs={"attn_implementation": "eager", "dtype": "float32"}, max_grad_norm=0.0,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        GRPOTrainer(
            folder,
            reward,
            options,
            Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
        ).train()
    rows = [(b - a).tolist() for a, b in zip(times, times[1:])]
    return {"steps": rows[WARM:], "parts": {}}


def measure(python, system, shape, steps):
    """Runs one system in a process of its own; its last line is the result."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'benchmarks'}"
    command = [
        *shlex.split(python),
        __file__,
        "--system",
        system,
        "--shape",
        shape,
        "--steps",
        str(steps),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{system} failed on {shape}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", default="")
    parser.add_argument("--tunix", default="")
    parser.add_argument("--trl", default="")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--shape", default="", choices=["", *SHAPES])
    parser.add_argument("--system", default="", help=argparse.SUPPRESS)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "grpo_step.json"))
    options = parser.parse_args()
    if options.system:
        run = {"ours": ours, "tunix": tunix, "trl": trl}[options.system]
        print(json.dumps(run(*SHAPES[options.shape], options.steps)))
        return
    peers = {"tunix": options.tunix or options.peers, "trl": options.trl or options.peers}
    systems = {"ours": sys.executable, **{name: python for name, python in peers.items() if python}}
    results = {}
    for name in [options.shape] if options.shape else SHAPES:
        runs = {system: [] for system in systems}
        for _ in range(options.rounds):
            for system, python in systems.items():
                runs[system].append(measure(python, system, name, options.steps))
        results[name] = {}
        for system, found in runs.items():
            steps = [step for run in found for step in run["steps"]]
            seconds, cpu = (statistics.median(step[i] for step in steps) for i in (0, 1))
            results[name][system] = {
                "seconds": seconds,
                "cpu_seconds": cpu,
                "timed_steps": len(steps),
                "parts": found[-1]["parts"],
            }
            print(
                f"{name}  {system:<6} {seconds:7.3f} s a step, {cpu:7.3f} CPU s  {found[-1]['parts']}",
                flush=True,
            )
        for peer in list(systems)[1:]:
            ratios = [
                results[name][peer][k] / results[name]["ours"][k]
                for k in ("seconds", "cpu_seconds")
            ]
            print(
                f"{name}  against {peer}: {ratios[0]:.1f}x by the clock, {ratios[1]:.1f}x in CPU time",
                flush=True,
            )
    about = {
        "model": MODEL,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
