"""Trains a tiny random Gemma with Tunix's GRPOLearner on rewards of a judge.

    PYTHONPATH=. PEERS_PYTHON tests/serving/hosts/tunix_grpo.py URL_OR_MODEL [STEPS]

URL of a running `grm serve`, or a model that is loaded in this process, on the mesh of the trainer.
Prints one JSON object per batch: what the judge returned, and what Tunix logged.
"""

import functools
import json
import sys
import tempfile

import jax
import numpy as np
import optax
from flax import nnx
from tunix.generate import tokenizer_adapter
from tunix.models.gemma import model as gemma
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout import base_rollout
from tunix.sft import metrics_logger

from grm_jax.judging.rewards import RewardOptions
from grm_jax.serving.adapters import tunix
from grm_jax.serving.client import Client, Scorer

WORDS = (
    "<pad> <eos> <bos> name a moon planet bird io luna mars owl is the largest of all no".split()
)
GENERATIONS, PROMPT, NEW = 2, 8, 8


class Words(tokenizer_adapter.TokenizerAdapter):
    """A tokenizer of whole words."""

    def __init__(self) -> None:
        pass

    def encode(self, text: str, **_) -> list[int]:
        return [WORDS.index(word) for word in text.split()]

    def decode(self, ids, **_) -> str:
        return " ".join(WORDS[int(i)] for i in ids if int(i) > 2)

    def bos_id(self) -> int:
        return 2

    def eos_id(self) -> int:
        return 1

    def pad_id(self) -> int:
        return 0

    def dedup_bos_ids(self, ids: list[int]) -> list[int]:
        return ids


def tiny_policy() -> gemma.Gemma:
    kinds = (gemma.AttentionType.LOCAL_SLIDING, gemma.AttentionType.GLOBAL)
    shape = gemma.ModelConfig(
        num_layers=2, num_embed=len(WORDS), embed_dim=32, hidden_dim=64, num_heads=2, head_dim=16,
        num_kv_heads=1, final_logit_softcap=30.0, use_post_attn_norm=True, use_post_ffw_norm=True,
        attention_types=kinds, attn_logits_soft_cap=50.0, sliding_window_size=16,
    )  # fmt: skip
    return gemma.Gemma(shape, rngs=nnx.Rngs(0))


def scorer_of(judge: str, options: RewardOptions, mesh: jax.sharding.Mesh) -> Scorer:
    """Returns a client of a URL, or `score` with a judge on the devices of the trainer."""
    if judge.startswith("http"):
        return Client(judge, options)
    from grm_jax import Judge
    from grm_jax.serving import score
    from grm_jax.sharding import make_mesh

    devices = make_mesh(fsdp=-1, devices=mesh.devices.flat)
    return functools.partial(score, judge=Judge.load(judge, mesh=devices), options=options)


def main(judge: str, steps: int = 5) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    scorer = scorer_of(judge, RewardOptions(k=4, reward="mean"), mesh)
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)

    def logged(groups):
        results = scorer(groups)
        statuses = [reward.status for result in results for reward in result.rewards]
        print(
            json.dumps({"rewards": [r.values for r in results], "statuses": statuses}), flush=True
        )
        return results

    with tempfile.TemporaryDirectory() as folder:
        cluster = rl_cluster.RLCluster(
            actor=tiny_policy(),
            reference=tiny_policy(),
            tokenizer=Words(),
            cluster_config=rl_cluster.ClusterConfig(
                role_to_mesh={role: mesh for role in roles},
                training_config=rl_cluster.RLTrainingConfig(
                    actor_optimizer=optax.adamw(1e-3),
                    eval_every_n_steps=10_000,
                    max_steps=steps,
                    metrics_logging_options=metrics_logger.MetricsLoggerOptions(
                        log_dir=folder, flush_every_n_steps=1
                    ),
                ),
                rollout_config=base_rollout.RolloutConfig(
                    max_tokens_to_generate=NEW,
                    max_prompt_length=PROMPT,
                    kv_cache_size=PROMPT + NEW,
                    temperature=1.0,
                    top_p=1.0,
                    eos_tokens=[1],
                ),
            ),
        )
        learner = GRPOLearner(
            rl_cluster=cluster,
            algo_config=GRPOConfig(num_generations=GENERATIONS, num_iterations=1, beta=0.04),
            reward_fns=tunix.reward_fn(logged),
        )
        names = ["moon", "bird", "planet", "owl", "io", "luna"]
        batches = [
            {"prompts": np.array([f"name a {names[(i + j) % 6]}" for j in range(2)])}
            for i in range(steps)
        ]
        learner.train(batches)
        history = {
            name: cluster._rl_metrics_logger.get_metric_history("rewards", name, "train").tolist()
            for name in ("judge", "min", "max")
        }
        print(json.dumps({"steps": cluster.global_steps, "logged": history}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
