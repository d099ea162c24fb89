"""SPCT with LoRA on Gemma-2-9B for one TPU VM: v5litepod-8, or v4-8 with tensor=4.

    python launch/tpu.py --config experiments/spct_9b_lora.py --workdir DIR
    ... --config.mesh.tensor=4                                          (v4-8, four chips)

The base stays frozen in bfloat16, and all stages train adapters. The programs of the RL stage are
compiled for both slices (docs/tpu_memory.md); nothing has run on a TPU.
"""

from ml_collections import ConfigDict

from experiments import spct_9b, spct_27b
from experiments.ablations import apply


def get_config(arg: str = "") -> ConfigDict:
    config = spct_9b.get_config()
    config.name = "spct_9b_lora"
    config.slice = "v5litepod-8"
    # On these slices fsdp is 1, so that the sampler uses the base's arrays without a copy.
    config.mesh = dict(data=1, fsdp=-1, tensor=8)
    spct_27b.use_lora(config)
    config.rft.sampling.path = "google/gemma-2-9b-it"
    return apply(config, arg)
