"""SPCT with LoRA on Gemma-2-27B for 16 chips: v5litepod-16 or v4-32.

    python launch/tpu.py --config experiments/spct_27b_lora.py --workdir gs://BUCKET/spct_27b_lora

The base stays frozen in bfloat16, and all stages train adapters. The programs of the RL stage are
compiled for both slices (docs/tpu_memory.md); nothing has run on a TPU.
"""

from ml_collections import ConfigDict

from experiments import spct_27b
from experiments.ablations import apply


def get_config(arg: str = "") -> ConfigDict:
    config = spct_27b.get_config()
    config.name = "spct_27b_lora"
    config.slice = "v5litepod-16"
    # On these slices fsdp is 1, so that the sampler uses the base's arrays without a copy.
    config.mesh = dict(data=1, fsdp=-1, tensor=16)
    spct_27b.use_lora(config)
    return apply(config, arg)
