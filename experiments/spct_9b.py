"""SPCT on Gemma-2-9B for a small slice, with the values of spct_27b.

    python launch/tpu.py --config experiments/spct_9b.py --workdir gs://BUCKET/spct_9b

The paper has no model of this size. Compiled for v5p-16 with remat=full: 82.1 of 95.74 GiB per
chip, at least 47 s per GRPO step (docs/tpu_memory.md).
"""

from ml_collections import ConfigDict

from experiments import spct_27b
from experiments.ablations import apply


def get_config(arg: str = "") -> ConfigDict:
    config = spct_27b.get_config()
    config.name = "spct_9b"
    config.slice = "v5p-16"
    config.model = "gemma2_9b"  # not in the paper
    config.init = config.tokenizer = "google/gemma-2-9b"
    config.mesh = dict(data=1, fsdp=-1, tensor=2)  # not in the paper
    return apply(config, arg)
