"""SPCT with LoRA on Gemma-2-2B for one TPU chip, such as Colab's.

    python launch/tpu.py --config experiments/spct_2b_lora.py --workdir DIR

The base stays frozen in bfloat16, and all stages train adapters. The programs of the RL stage are
compiled for the slice (docs/tpu_memory.md); nothing has run on a TPU.
"""

from ml_collections import ConfigDict

from experiments import spct_2b, spct_27b
from experiments.ablations import apply


def get_config(arg: str = "") -> ConfigDict:
    config = spct_2b.get_config()
    config.name = "spct_2b_lora"
    config.slice = "v5litepod-1"
    spct_27b.use_lora(config)
    # Batches a quarter as large, and a smaller evaluation: one chip takes minutes per step.
    config.batch_size = 64
    config.rl.prompts = 32
    config.meta_rm.batch_size = 128
    config.eval.comparisons = 200
    config.eval.samples = 8
    config.eval.ks = (1, 2, 4, 8)
    return apply(config, arg)
