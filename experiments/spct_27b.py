"""DeepSeek-GRM-27B: SPCT on Gemma-2-27B with the values of the paper (arXiv 2504.02495 v3).

Every value has its source beside it: "paper" with the place, or `# not in the paper`. Fill in the paths under "data", then

    python launch/tpu.py --config experiments/spct_27b.py --workdir gs://BUCKET/spct_27b
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "spct_27b"
    config.seed = 0  # not in the paper
    config.stages = ("rft", "rl", "meta_rm", "eval")
    config.tensorboard = True
    config.export = True

    # ---------------------------------------------------------------- model
    config.model = (
        "gemma2_27b"  # paper, appendix C.1: the pretrained model, not the instruction-tuned one
    )
    config.init = ""  # folder of the pretrained weights; empty starts from random ones
    config.tokenizer = ""  # folder of the tokenizer, usually the same
    config.model_overrides = dict(remat="full")  # not in the paper
    config.mesh = dict(data=1, fsdp=-1, tensor=4)  # not in the paper (it used 128 A100s)

    # ---------------------------------------------------------------- data
    config.template = "grm"  # our wording of the structure in paper, appendix G
    config.principles = True
    config.data = ConfigDict()
    config.data.judging = "spct"  # a seqio mixture; its tasks and rates: grm_jax/data/mixtures.py
    config.data.held_out = "rm_bench"
    config.data.general = "general"
    config.data.module = "grm_jax.data.mixtures"  # module that registers the tasks
    config.data.folder = "data"  # folder of the tasks' files; may be gs://
    config.data.general_items = 1_070_000  # paper, appendix C.1 (in-house data)
    config.data.seed = 0  # not in the paper
    config.data.shuffle_labels = False
    config.data.max_skipped = 0.01  # share of malformed records at which reading stops

    # ---------------------------------------------------------------- rejective fine-tuning
    config.seq_len = 4096  # not in the paper
    # Paper, appendix C.1: batch 1,024. Packing is not in the paper: 256 rows of 4,096 tokens hold about as many examples of 1,000 tokens.
    config.batch_size = 256
    config.rft = _stage(steps=900, lr=5e-6)  # paper, appendix C.1
    config.rft.comparisons = (
        237_000  # paper, appendix C.1, says so of RL, whose comparisons are from the same sets
    )
    config.rft.samples = 3  # N_RFT: paper, section 3.2
    config.rft.hinted = 1  # paper, section 3.2
    config.rft.reject = True
    config.rft.sampler = "endpoint"  # the paper sampled from DeepSeek-V2.5-0905
    config.rft.sampling = dict(
        url="http://localhost:8000/v1", model="sampler", max_new_tokens=1024, temperature=1.0
    )  # not in the paper

    # ---------------------------------------------------------------- reinforcement learning
    config.rl = _stage(steps=900, lr=4e-7)  # paper, appendix C.1
    config.rl.first_item = 0  # paper, appendix C.1: the same sets as RFT
    # Paper, appendix C.1: without what DeepSeek-V2-Lite-Chat gets right three times of three. Give the rft/data/trials.jsonl of a run with such a
    # model as `rft.sampler` and `rft.hinted=0` (--config.stages=rft); empty leaves nothing out.
    config.rl.easy_trials = ""
    config.rl.prompts = 128  # paper, appendix C.1: batch 512, read as rollouts: 128 prompts x 4
    config.rl.group_size = 4  # G: paper, appendix C.1
    config.rl.beta = 0.08  # paper, appendix C.1: the most stable of {0, 0.01, 0.02, 0.08} at 27B
    config.rl.kl_estimator = (
        "k3"  # paper, equation 15, only writes D_KL; k3 is what GRPO (arXiv 2402.03300) uses
    )
    config.rl.clip = 0.2  # not in the paper
    config.rl.normalise_std = True  # paper, equation 15
    config.rl.temperature = 1.0  # not in the paper
    config.rl.updates_per_rollout = 1  # not in the paper
    config.rl.prompt_len = 3072  # not in the paper
    config.rl.max_new_tokens = (
        1024  # not in the paper; its critiques are of 218 to 376 tokens on average (figure 7)
    )
    config.rl.length_buckets = 4  # not in the paper: padding is cut to quarters of these lengths
    config.rl.prompt_slots = 0  # not in the paper: as many prompts at once as there are
    config.rl.group_packed = True  # not in the paper
    config.rl.reference_dtype = "bfloat16"  # not in the paper

    # ---------------------------------------------------------------- meta reward model
    config.meta_rm = _stage(steps=900, lr=1e-5)  # lr: paper, appendix D.1; steps: not in the paper
    config.meta_rm.start = "base"  # paper, appendix D.1: Gemma-2-27B
    config.meta_rm.batch_size = 512  # paper, appendix D.1
    config.meta_rm.seq_len = 4096  # not in the paper
    config.meta_rm.token_loss = 0.0  # paper, section 4: the critique as a whole
    config.meta_rm.likelihood = (
        0.0  # paper: a scalar head; above 0 for a start that writes critiques
    )
    config.meta_rm.samples = 3  # paper, appendix D.1: N of the policy's own
    config.meta_rm.first_item = 0  # not in the paper
    config.meta_rm.comparisons = 50_000  # not in the paper
    config.meta_rm.rft_trials = 500_000  # not in the paper
    config.meta_rm.temperature = 0.5  # not in the paper for this; its evaluations sample so
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

    from experiments.ablations import apply

    return apply(config, arg)


def _stage(**fields) -> ConfigDict:
    """What a stage needs beside its rate and steps: optimizer, schedule, clipping and accumulation are not in the paper."""
    base = dict(
        warmup_steps=30, schedule="constant", final_lr_share=0.0,
        b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip_norm=1.0,
        # Rows at once on each data-parallel shard: the same config then fits any slice. micro_batches is for fixed counts instead.
        micro_batches=1, micro_rows=1,
        save_every=50, keep=2, log_every=1, profile_steps=(),
    )  # fmt: skip
    return ConfigDict(base | fields)
