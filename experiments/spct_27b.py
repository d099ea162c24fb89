"""DeepSeek-GRM-27B: SPCT on Gemma-2-27B with the values of the paper (arXiv 2504.02495 v3).

    python launch/tpu.py --config experiments/spct_27b.py --workdir gs://BUCKET/spct_27b

On every worker of a slice. Weights, tokenizer, sampler and preference sets come from the Hugging
Face Hub. Gemma is gated: accept its terms at huggingface.co/google/gemma-2-27b and
huggingface.co/google/gemma-2-27b-it, then run `hf auth login` or set HF_TOKEN on each worker.

It never ran on a TPU. Compiled for v5p-64: 41 of 96 GiB per chip, at least 23 s per GRPO step
(docs/tpu_memory.md).

The comment beside each value gives its source: a section of the paper, or "not in the paper".
"""

from ml_collections import ConfigDict

from experiments.ablations import apply


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "spct_27b"
    config.seed = 0  # not in the paper
    config.stages = ("rft", "rl", "meta_rm", "eval")
    config.tensorboard = True
    config.export = True
    config.slice = "v5p-64"  # a slice that holds it (docs/tpu_memory.md); named where one does not

    # ---------------------------------------------------------------- model
    config.model = "gemma2_27b"  # paper, appendix C.1: pretrained, not instruction-tuned
    config.init = "google/gemma-2-27b"  # a hub name or a folder; empty: random weights
    config.tokenizer = "google/gemma-2-27b"
    # Not in the paper: the least recomputation that fits the devices (docs/training.md).
    config.model_overrides = dict(remat="auto")
    config.lora = lora()  # not in the paper, which trains all weights
    config.mesh = dict(data=1, fsdp=-1, tensor=4)  # not in the paper (it used 128 A100s)

    # ---------------------------------------------------------------- data
    config.template = "grm"  # our wording of the structure in paper, appendix G
    config.principles = True
    config.data = ConfigDict()
    # seqio mixtures of sets on the Hugging Face Hub (grm_jax/data/mixtures.py); "spct", "rm_bench"
    # and "general" are the same from files in data.folder. Deviations: Math-Step-DPO-10K instead of
    # sampled solutions of MATH; the paper's internal data are not public.
    config.data.judging = "spct_hub"
    config.data.held_out = "rm_bench_hub"
    # Deviation: Tulu 3's 939,344 public instructions; the paper's are in-house. Optional: 0
    # general_items, or an empty name, trains without.
    config.data.general = "general_hub"
    config.data.module = "grm_jax.data.mixtures"  # module that registers the tasks
    config.data.folder = "data"  # folder of the tasks' files; may be gs://
    config.data.general_items = 1_070_000  # paper, appendix C.1 (in-house data)
    config.data.seed = 0  # not in the paper
    config.data.shuffle_labels = False
    config.data.max_skipped = 0.01  # largest share of malformed records to skip

    # ---------------------------------------------------------------- rejective fine-tuning
    config.seq_len = 4096  # not in the paper
    # Paper, appendix C.1: batch 1,024. Packing is not in the paper: 256 sequences of 4,096 tokens
    # contain about as many examples of 1,000 tokens.
    config.batch_size = 256
    config.rft = stage(steps=900, lr=5e-6)  # paper, appendix C.1
    # Paper, appendix C.1: the number for RL, which uses the same sets.
    config.rft.comparisons = 237_000
    config.rft.samples = 3  # N_RFT: paper, section 3.2
    config.rft.hinted = 1  # paper, section 3.2
    config.rft.reject = True
    # Deviation: the paper sampled from DeepSeek-V2.5-0905 (236B parameters). This model fits the
    # slice. For another one behind a server: --config.rft.sampler=endpoint
    # --config.rft.sampling.url=http://HOST:8000/v1 --config.rft.sampling.model=NAME
    config.rft.sampler = "model"
    config.rft.sampling = dict(
        path="google/gemma-2-27b-it", url="", model="", max_new_tokens=1024, temperature=1.0
    )  # not in the paper

    # ---------------------------------------------------------------- reinforcement learning
    config.rl = stage(steps=900, lr=4e-7)  # paper, appendix C.1
    config.rl.first_item = 0  # paper, appendix C.1: the same sets as RFT
    # Paper, appendix C.1: RL skips comparisons that DeepSeek-V2-Lite-Chat gets right three times of
    # three. To do so, run `--config.stages=rft --config.rft.hinted=0` with such a model as
    # `rft.sampler`, and set this field to its rft/data/trials.jsonl. Empty skips nothing.
    config.rl.easy_trials = ""
    config.rl.prompts = 128  # paper, appendix C.1: batch 512, taken as 128 prompts x 4 rollouts
    config.rl.group_size = 4  # G: paper, appendix C.1
    # Paper, appendix C.1: the most stable of {0, 0.01, 0.02, 0.08} at 27B. At 16B the paper uses
    # 0.002 (DeepSeek-V2-Lite, which is less sensitive).
    config.rl.beta = 0.08
    config.rl.kl_estimator = "k3"  # GRPO's (arXiv 2402.03300); the paper (equation 15) has D_KL
    config.rl.clip = 0.2  # not in the paper
    config.rl.normalise_std = True  # paper, equation 15
    config.rl.temperature = 1.0  # not in the paper
    config.rl.updates_per_rollout = 1  # not in the paper
    config.rl.prompt_len = 3072  # not in the paper
    config.rl.max_new_tokens = 1024  # not in the paper; figure 7: 218 to 376 tokens on average
    config.rl.length_buckets = 4  # not in the paper: lengths are padded to quarters of the maximum
    config.rl.prompt_slots = 0  # not in the paper; 0: all prompts at once
    # Not in the paper. Sampling splits the weights over up to so many chips; 0: over mesh.tensor.
    config.rl.rollout_tensor = 8
    config.rl.reference_dtype = "bfloat16"  # not in the paper

    # ---------------------------------------------------------------- meta reward model
    config.meta_rm = stage(steps=900, lr=1e-5)  # lr: paper, appendix D.1; steps: not in the paper
    config.meta_rm.start = "base"  # paper, appendix D.1: Gemma-2-27B
    config.meta_rm.batch_size = 512  # paper, appendix D.1
    config.meta_rm.seq_len = 4096  # not in the paper
    config.meta_rm.token_loss = 0.0  # paper, section 4: the critique as a whole
    config.meta_rm.likelihood = 0.0  # paper: a scalar head; > 0 requires start="rft" or "rl"
    config.meta_rm.samples = 3  # paper, appendix D.1: N critiques of the policy
    config.meta_rm.first_item = 0  # not in the paper
    config.meta_rm.comparisons = 50_000  # not in the paper
    # Not in the paper. The number includes hinted trials, which are then dropped.
    config.meta_rm.rft_trials = 500_000
    config.meta_rm.temperature = 0.5  # not in the paper; the value of its evaluations
    config.meta_rm.held_out = 0.02  # not in the paper

    # ---------------------------------------------------------------- evaluation
    config.eval = ConfigDict()
    config.eval.split = "test"
    config.eval.comparisons = 1000  # not in the paper
    config.eval.samples = 32  # paper, figure 4
    config.eval.base_samples = 8  # not in the paper
    config.eval.ks = (1, 2, 4, 8, 16, 32)  # paper, figure 4
    config.eval.temperature = 0.5  # paper, appendix D.1
    config.eval.max_new_tokens = 1024  # not in the paper
    config.eval.prompt_slots = 0
    config.eval.expected = False
    config.eval.meta_batch = 64
    config.eval.seed = 0

    return apply(config, arg)


def lora(**fields) -> ConfigDict:
    """Adapters beside frozen weights in all stages; rank 0 trains all weights."""
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return ConfigDict(dict(rank=0, alpha=16.0, targets=targets, base="bfloat16") | fields)


def use_lora(config: ConfigDict, rank: int = 32) -> None:
    """Sets adapters on all weights, and the learning rates of full fine-tuning times ten."""
    config.lora = lora(rank=rank, alpha=32.0)
    for section in (config.rft, config.rl, config.meta_rm):
        section.lr *= 10


def stage(**fields) -> ConfigDict:
    """Optimizer, schedule, clipping and accumulation of a stage. None of them is in the paper."""
    defaults = dict(
        warmup_steps=30, schedule="constant", final_lr_share=0.0,
        b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip_norm=1.0,
        # Sequences at once per data-parallel shard, so that the config fits any slice.
        # -1 takes as many as fit; micro_batches sets a fixed count instead.
        micro_batches=1, micro_rows=1,
        save_every=50, keep=2, log_every=1, profile_steps=(),
    )  # fmt: skip
    return ConfigDict(defaults | fields)
