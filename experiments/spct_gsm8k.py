"""SPCT on Gemma 3 270M and pairs of GSM8K solutions, for a CPU or one accelerator.

    python studies/gsm8k_critiques.py .../example_model_solutions.jsonl data/gsm8k
    python launch/tpu.py --config experiments/spct_gsm8k.py --workdir runs/spct_gsm8k \\
        --config.init=WEIGHTS --config.tokenizer=TOKENIZER
    python launch/tpu.py --config experiments/spct_gsm8k.py:cpu ...

WEIGHTS: a Hugging Face folder or a GGUF file of Gemma 3 270M. TOKENIZER: its tokenizer.model, or a
folder with it.

`:cpu` takes over an hour on one core. It shows that the stages run on real weights and data; it is
too short to measure RL (experiments/results/spct_gsm8k). The values are not the paper's, whose
smallest model has 16B parameters.
"""

from ml_collections import ConfigDict

from experiments import spct_27b
from experiments.ablations import apply


def get_config(arg: str = "") -> ConfigDict:
    cpu, arg = arg.split(",")[0] == "cpu", arg.removeprefix("cpu").removeprefix(",")
    config = spct_27b.get_config()
    config.name = "spct_gsm8k"
    config.slice = config.init = config.tokenizer = ""
    config.model = "gemma3_270m"
    config.model_overrides = dict(remat="full", dtype="float32")
    config.model_overrides["cpu_products"] = False  # the rounding of the recorded results
    config.mesh = dict(data=1, fsdp=-1, tensor=1)

    # Median prompt: 290 tokens (99%: 500) instead of the 1,150 of "grm".
    config.template = "compact"
    config.data.judging = config.data.held_out = "gsm8k"
    config.data.general = "gsm8k_general"
    config.data.general_items = 500

    config.seq_len = 1024  # a prompt and its critique (165 tokens; 95%: 240) have about 450 tokens
    config.batch_size = 8
    config.rft.update(steps=200, lr=2e-5, warmup_steps=10, save_every=20)
    config.rft.comparisons = 700
    config.rft.sampler = "file"
    config.rft.sampling = ConfigDict(dict(path="data/gsm8k/critiques.jsonl"))

    config.rl.update(steps=200, lr=2e-6, warmup_steps=5, save_every=5)
    config.rl.prompts = 8
    config.rl.prompt_len = 512
    config.rl.max_new_tokens = 256
    config.rl.reference_dtype = "float32"

    config.meta_rm.update(steps=100, lr=1e-5, warmup_steps=5, save_every=20)
    config.meta_rm.start = "rft"
    config.meta_rm.batch_size = 8
    config.meta_rm.seq_len = 768
    config.meta_rm.comparisons = 300
    config.meta_rm.rft_trials = 2000
    config.meta_rm.held_out = 0.1

    config.eval.comparisons = 200
    config.eval.samples = 8
    config.eval.base_samples = 0
    config.eval.max_new_tokens = 256
    if cpu:
        _for_a_cpu(config)
    return apply(config, arg)


def _for_a_cpu(config) -> None:
    """Sizes at which RFT, RL and the evaluation run on two cores, too small to measure quality."""
    config.name += "-cpu"
    config.stages = ("rft", "rl", "eval")
    config.export = False
    config.data.general_items = 40
    config.batch_size = 2
    config.model_overrides.update(remat="none")  # 10 GiB in total
    config.rft.update(steps=25, lr=1e-4, warmup_steps=3, save_every=5)
    config.rft.comparisons = 150
    config.rl.update(steps=20, lr=5e-6, save_every=2)
    config.rl.prompts = 2
    config.rl.first_item = 150  # problems that RFT has not used
    config.eval.comparisons = 24
    config.eval.samples = 4
