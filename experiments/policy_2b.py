"""GRPO of Gemma-2-2B with the rewards of a 9B judge in int8, both on one slice.

    python launch/tpu.py --config experiments/policy_2b.py --workdir gs://BUCKET/policy_2b \
        --config.policy.judge.path=gs://BUCKET/spct_9b/rl/hf
    ... --config.policy.judge.source=served --config.policy.judge.url=http://HOST:8000

The judge is the result of spct_9b, or any judge of the architecture `policy.judge.model`. The
policy starts from the instruction-tuned model, so it needs no supervised start.

It has not run on a TPU. Compiled for v5litepod-16 and v4-16 (docs/policy.md).
"""

from ml_collections import ConfigDict

from experiments import spct_2b, spct_27b
from experiments.ablations import apply


def get_config(arg: str = "") -> ConfigDict:
    spct = spct_2b.get_config()
    config = ConfigDict()
    config.name = "policy_2b"
    config.seed = 0
    config.stages = ("policy",)
    config.tensorboard = True
    config.export = True
    config.slice = "v5litepod-16"

    # ---------------------------------------------------------------- model and data
    config.model = "gemma2_2b"
    config.init = config.tokenizer = "google/gemma-2-2b-it"
    config.model_overrides = dict(remat="full")
    # Decoding splits weights over `tensor` alone: each group of four chips holds both models.
    config.mesh = dict(data=1, fsdp=-1, tensor=4)
    config.template = spct.template
    config.data = spct.data  # the queries of its comparisons are the prompts
    config.seq_len, config.batch_size = 2048, 64  # of the stage sft, if you add it

    # ---------------------------------------------------------------- GRPO with the judge
    config.policy = spct_27b.stage(steps=500, lr=1e-6)
    config.policy.first_item = 0
    config.policy.prompts = 64
    config.policy.group_size = 4
    config.policy.prompt_len = 1024
    config.policy.max_new_tokens = 512
    config.policy.length_buckets = 4
    config.policy.prompt_slots = 0
    config.policy.temperature = 1.0
    config.policy.beta = 0.02
    config.policy.clip = 0.2
    config.policy.kl_estimator = "k3"
    config.policy.normalise_std = True
    config.policy.updates_per_rollout = 1
    config.policy.reference_dtype = "bfloat16"
    config.policy.max_unscored = 0.5
    config.policy.judge = dict(
        source="colocated", path="", model="gemma2_9b", meta_rm="", quantize="int8",
        prompt_slots=32, k=1, temperature=0.5, max_new_tokens=1024,
        principles="first",  # written before the answers are seen, one call per prompt
    )  # fmt: skip
    return apply(config, arg)
