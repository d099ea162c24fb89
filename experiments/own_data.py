"""SPCT on your own comparisons: a file and a model, everything else fits itself to them.

    python launch/tpu.py --config experiments/own_data.py \\
        --config.data.file=pairs.jsonl --config.init=MODEL
    grm judge runs/own_data/data/held_out.jsonl judged.jsonl --model runs/own_data/rl/hf

FILE: rows of any layout in docs/data.md, such as prompt, chosen and rejected. MODEL: a Hugging Face
folder, a GGUF file or a name on the Hub; an instruction-tuned Gemma 2 or 3, Llama 3, Qwen 2.5 or 3,
which writes the first critiques itself. Another model can write them:

    --config.rft.sampler=model --config.rft.sampling.path=INSTRUCT_MODEL
    --config.rft.sampler=endpoint --config.rft.sampling.url=http://localhost:8000/v1

0 and "" stand for values that are set from the model, the data and the devices
(grm_jax/training/own_config.py). The log has them, and so has WORKDIR/config.json.
"""

import functools

from ml_collections import ConfigDict

from experiments import spct_27b
from experiments.ablations import apply

stage = functools.partial(
    spct_27b.stage, steps=0, lr=0.0, warmup_steps=0, schedule="cosine", final_lr_share=0.1,
    micro_rows=0, save_every=25,
)  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "own_data"
    config.seed = 0
    config.stages = ("rft", "rl", "eval")  # with "meta_rm" before "eval": guided voting
    config.tensorboard = True
    config.export = True

    # ---------------------------------------------------------------- model
    config.model = ""  # the model that `init` describes
    config.init = ""  # required
    config.tokenizer = ""  # the one in `init`
    config.model_overrides = dict(dtype="", remat="")  # bfloat16 on accelerators
    config.lora = spct_27b.lora()
    config.mesh = dict(data=0, fsdp=0, tensor=0)

    # ---------------------------------------------------------------- data
    config.template = ""  # a judge's own; "compact" for small models, else "grm"
    config.principles = True
    config.data = ConfigDict()
    config.data.file = ""  # required
    config.data.held_out_file = ""  # instead of a share of `file`
    config.data.held_out_share = 0.2
    config.data.held_out_most = 500
    config.data.judging = "file"
    config.data.held_out = "file"
    config.data.general = ""  # a seqio mixture of general instructions, with general_items
    config.data.general_items = 0
    config.data.module = "grm_jax.data.mixtures"
    config.data.folder = "data"
    config.data.seed = 0
    config.data.shuffle_labels = False
    config.data.max_skipped = 0.1  # largest share of malformed rows to skip

    # ---------------------------------------------------------------- rejective fine-tuning
    config.seq_len = 0
    config.batch_size = 0
    config.rft = stage(epochs=2.0)  # steps: from the number of critiques that are kept
    config.rft.comparisons = 0  # all
    config.rft.samples = 3
    config.rft.hinted = 1
    config.rft.reject = True
    config.rft.min_parsed = 0.05  # share of the first critiques that must be parsed to continue
    config.rft.sampler = "self"  # `init` writes the critiques
    config.rft.sampling = dict(path="", url="", model="", max_new_tokens=0, temperature=1.0)

    # ---------------------------------------------------------------- reinforcement learning
    config.rl = stage(epochs=2.0)
    config.rl.first_item = 0
    config.rl.easy_trials = ""
    config.rl.prompts = 0
    config.rl.group_size = 4
    config.rl.beta = 0.08
    config.rl.kl_estimator = "k3"
    config.rl.clip = 0.2
    config.rl.normalise_std = True
    config.rl.temperature = 1.0
    config.rl.updates_per_rollout = 1
    config.rl.prompt_len = 0
    config.rl.max_new_tokens = 0
    config.rl.length_buckets = 2
    config.rl.prompt_slots = 0
    config.rl.reference_dtype = ""

    # ---------------------------------------------------------------- meta reward model
    config.meta_rm = stage(epochs=3.0)
    config.meta_rm.start = "rft"
    config.meta_rm.batch_size = 0
    config.meta_rm.seq_len = 0
    config.meta_rm.token_loss = 0.0
    config.meta_rm.likelihood = 0.0
    config.meta_rm.samples = 3
    config.meta_rm.first_item = 0
    config.meta_rm.comparisons = 0
    config.meta_rm.rft_trials = 0
    config.meta_rm.temperature = 0.5
    config.meta_rm.held_out = 0.1

    # ---------------------------------------------------------------- evaluation
    config.eval = ConfigDict()
    config.eval.split = "test"
    config.eval.comparisons = 0  # all that are held out
    config.eval.samples = 8
    config.eval.base_samples = 8
    config.eval.ks = (1, 2, 4, 8)
    config.eval.temperature = 0.5
    config.eval.max_new_tokens = 0
    config.eval.prompt_slots = 0
    config.eval.expected = False
    config.eval.meta_batch = 64
    config.eval.seed = 0

    return apply(config, arg)
