"""A tiny SPCT run that test_resume.py kills: `python resume_child.py WORKDIR`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


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


if __name__ == "__main__":
    from grm_jax.training import grpo
    from grm_jax.training.main import run

    grpo.reward = chance_reward
    run(make_config(), sys.argv[1])
