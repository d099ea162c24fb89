"""Ablations and controls for any experiment, each a change of one line.

    python launch/tpu.py --config experiments/spct_tiny.py:no_principles --workdir DIR
    python launch/tpu.py --config experiments/spct_tiny.py:no_general,rl.beta=0.01,seed=2 ...

"Table 4" below is the ablation table of the SPCT paper (arXiv 2504.02495).
"""

from ml_collections import ConfigDict

from grm_jax.config_fields import set_field


def _no_principles(config):
    """Table 4, "w/o principle generation": critiques without principles.

    The scripted teacher omits them under the same prompt; models get another prompt. A file of
    samples (`rft.sampler = "file"`) must contain critiques without principles.
    """
    config.principles = False
    if config.rft.sampler != "teacher":
        config.template = f"{config.template}/no_principles"


def _no_hinted(config):
    """Table 4, "w/o hinted sampling"."""
    config.rft.hinted = 0


def _no_non_hinted(config):
    """Table 4, "w/o non-hinted sampling"."""
    config.rft.samples = 0


def _no_judging_data(config):
    """Table 4: fine-tuning on general instructions alone; with RL, "w/o rejective sampling"."""
    config.rft.samples, config.rft.hinted = 0, 0


def _no_rejection(config):
    """Not in the paper: fine-tuning on all parsed critiques, wrong ones and easy ones included."""
    config.rft.reject = False


def _no_general(config):
    """Table 4, "w/o general instruction data"."""
    config.data.general_items = 0


def _no_cold_start(config):
    """Not in the paper: RL from the initial weights, without fine-tuning."""
    config.stages = tuple(stage for stage in config.stages if stage not in ("rft", "meta_rm"))


def _no_meta_rm(config):
    """Not in the paper: no meta reward model, so that all critiques vote."""
    config.stages = tuple(stage for stage in config.stages if stage != "meta_rm")


def _qlora(config):
    """Not in the paper: adapters of rank 16 beside frozen int8 weights of `init`.

    The learning rates are three times those of full fine-tuning; with ten times, as larger models
    use (`spct_27b.use_lora`), RFT in the judging world learns nothing.
    """
    config.lora.update(rank=16, base="int8")
    for section in (config.rft, config.rl, config.meta_rm):
        section.lr *= 3


def _shuffled_labels(config):
    """A control: accuracy must end at chance."""
    config.data.shuffle_labels = True


ABLATIONS = {
    "no_principles": _no_principles,
    "no_hinted": _no_hinted,
    "no_non_hinted": _no_non_hinted,
    "no_judging_data": _no_judging_data,
    "no_rejection": _no_rejection,
    "no_general": _no_general,
    "no_cold_start": _no_cold_start,
    "no_meta_rm": _no_meta_rm,
    "qlora": _qlora,
    "shuffled_labels": _shuffled_labels,
    # The grid of the KL coefficient (paper, appendix C.1).
    "beta_0": lambda config: config.rl.update(beta=0.0),
    "beta_0.01": lambda config: config.rl.update(beta=0.01),
    "beta_0.02": lambda config: config.rl.update(beta=0.02),
    "beta_0.08": lambda config: config.rl.update(beta=0.08),
}


def apply(config: ConfigDict, arg: str) -> ConfigDict:
    """Applies a comma-separated list of ablations and `field=value` overrides.

    Every change is appended to the experiment's name. Raises ValueError for an unknown ablation or
    field, or a value of the wrong type.
    """
    for change in filter(None, (arg or "").split(",")):
        if change in ABLATIONS:
            ABLATIONS[change](config)
        elif "=" in change:
            set_field(config, *change.split("=", 1))
        else:
            raise ValueError(
                f"{change!r} is neither an ablation ({', '.join(ABLATIONS)}) nor field=value"
            )
        config.name = f"{config.name}-{change}"
    return config
