"""A policy of 0.7M parameters answers tasks of the judging world, rewarded by `make demo`'s judge.

    make demo                                                      # the judge: runs/spct_tiny
    python launch/tpu.py --config experiments/policy_world.py      # ends with policy/policy.png
    ... --config.policy.judge.k=4 --config.policy.judge.meta_rm=runs/spct_tiny/meta_rm/hf
    ... --config.policy.judge.source=truth                         # or longest

The world has the true quality of any answer, so the run shows where judge and truth diverge.
"""

import functools

from ml_collections import ConfigDict

from experiments import spct_tiny
from experiments.ablations import apply

stage = functools.partial(spct_tiny.stage, save_every=50)


def get_config(arg: str = "") -> ConfigDict:
    world = spct_tiny.get_config()
    config = ConfigDict()
    config.name = "policy_world"
    config.seed = 0
    config.stages = ("sft", "policy")
    config.tensorboard = True
    config.export = True

    # ---------------------------------------------------------------- model and data
    for name in ("init", "tokenizer", "model", "model_overrides", "mesh", "data"):
        config[name] = world[name]
    config.template = world.template  # for source="rule" only; the judge's is in its judge.json

    # ---------------------------------------------------------------- supervised start
    config.seq_len = 128
    config.batch_size = 8
    config.sft = stage(
        steps=800, lr=3e-3, warmup_steps=50, schedule="cosine", final_lr_share=0.1, save_every=400
    )
    config.sft.first_item = 100_000  # tasks that GRPO does not use
    config.sft.tasks = 8000
    config.sft.demonstrations = 2  # per task; 40% correct, 10% hedged, 40% wrong, 10% no answer

    # ---------------------------------------------------------------- GRPO with the judge
    config.policy = stage(steps=150, lr=5e-4)
    config.policy.first_item = 0
    config.policy.prompts = 16
    config.policy.group_size = 4
    config.policy.prompt_len = 24
    config.policy.max_new_tokens = 24
    config.policy.length_buckets = 1
    config.policy.prompt_slots = 0
    config.policy.temperature = 1.0
    config.policy.beta = 0.01
    config.policy.clip = 0.2
    config.policy.kl_estimator = "k3"
    config.policy.normalise_std = True
    config.policy.updates_per_rollout = 1
    config.policy.reference_dtype = "float32"
    config.policy.max_unscored = 0.5  # a larger share without a reward ends the run
    config.policy.judge = dict(
        source="colocated",
        path="runs/spct_tiny/rl/hf",
        meta_rm="",
        k=1,
        temperature=0.5,
        block_size=3,  # responses in a prompt: the judge was trained on up to three
    )
    return apply(config, arg)
