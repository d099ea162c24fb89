"""A tiny run that tests kill: `python resume_child.py WORKDIR [policy|lora]`.

SPCT (test_resume.py), or a supervised start and a policy (test_policy_stage.py) whose judge needs
no model.
"""

import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "judging"))  # fake_judge


def make_config():
    from experiments.spct_tiny import get_config

    config = get_config()
    config.stages = ("rft", "rl", "meta_rm")
    config.tensorboard = False
    config.model_overrides.update(d_model=32, d_ff=32, head_dim=8, num_layers=2)
    config.data.general_items = 40
    config.batch_size = 4
    config.rft.update(steps=8, warmup_steps=2, comparisons=40, save_every=2)
    config.rl.update(
        steps=8, prompts=4, max_new_tokens=12, length_buckets=2, save_every=2, updates_per_rollout=2
    )
    config.meta_rm.update(
        steps=8, warmup_steps=2, batch_size=8, comparisons=8, rft_trials=60, save_every=2
    )
    return config


def chance_reward(comparison, critique):
    """Rewards half of an untrained model's critiques, so that the gradients of RL are not zero."""
    return 1.0 if len(critique.text) % 2 else -1.0


def make_policy_config():
    config = make_config()
    config.stages = ("sft", "policy")
    with config.unlocked():
        config.sft = config.rft.copy_and_resolve_references()
        for name in ("comparisons", "samples", "hinted", "reject", "sampler", "sampling"):
            del config.sft[name]
        config.sft.update(first_item=1000, tasks=40, demonstrations=1)
        config.policy = config.rl.copy_and_resolve_references()
        config.policy.max_unscored = 0.9
        config.policy.judge = dict(source="toy", k=2)
    return config


def toy(settings, run):
    """A reward source: a judge whose scores depend on the texts, their places and the seed."""
    from fake_judge import fake_judge, well_formed

    from grm_jax.training import reward_sources

    def critique(responses, key):
        texts = [f"{text} {i} {key}" for i, text in enumerate(responses)]
        return well_formed([1 + zlib.crc32(text.encode()) % 10 for text in texts])

    return reward_sources.by_judge(fake_judge(critique), settings)


if __name__ == "__main__":
    from grm_jax.training import grpo, reward_sources
    from grm_jax.training.main import run

    grpo.reward = chance_reward
    reward_sources.SOURCES.add("toy", toy)
    config = make_policy_config() if "policy" in sys.argv[2:] else make_config()
    if "lora" in sys.argv[2:]:
        config.lora.update(rank=2, alpha=4.0, base="int8")
    run(config, sys.argv[1])
