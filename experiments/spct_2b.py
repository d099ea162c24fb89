"""SPCT on Gemma-2-2B for one TPU VM, with the values of spct_27b.

    python launch/tpu.py --config experiments/spct_2b.py --workdir DIR

The paper has no model of this size. Compiled for v5litepod-8 with remat=full: 13.7 of 15.75 GiB per
chip, at least 59 s per GRPO step (docs/tpu_memory.md).
"""

from ml_collections import ConfigDict

from experiments import spct_27b
from experiments.ablations import apply


def get_config(arg: str = "") -> ConfigDict:
    config = spct_27b.get_config()
    config.name = "spct_2b"
    config.slice = "v5litepod-8"
    config.model = "gemma2_2b"  # not in the paper
    config.init = config.tokenizer = "google/gemma-2-2b"
    # Decoding splits weights over `tensor` alone, so a chip of the slice holds all of the sampler.
    # With a larger tensor axis: --config.rft.sampling.path=google/gemma-2-9b-it
    config.rft.sampling.path = "google/gemma-2-2b-it"
    config.mesh = dict(data=1, fsdp=-1, tensor=1)  # not in the paper
    # Small models take larger steps; neither rate is in the paper.
    config.rft.lr = 1e-5
    config.rl.lr = 1e-6
    return apply(config, arg)
