"""Ablations and controls, each a change of one line, for any experiment: `get_config("no_principles")`. Those of SPCT's Table 4 say so.

Several, and plain fields, go together: `get_config("no_general,rl.beta=0.01,seed=2")`.
"""

from ml_collections import ConfigDict

from grm_jax.config_fields import set_field


def _no_principles(config):
    """Table 4. The scripted teacher leaves them out under the same prompt; a model writes what its prompt asks for. A file of samples
    has to be one without principles."""
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
    """Table 4: both of the last two, i.e. fine-tuning on general instructions alone; with RL after it, "w/o rejective sampling"."""
    config.rft.samples, config.rft.hinted = 0, 0


def _no_rejection(config):
    """Not in the paper: fine-tuning on all critiques that can be read, the wrong ones too, and on easy comparisons."""
    config.rft.reject = False


def _no_general(config):
    """Table 4, "w/o general instruction data"."""
    config.data.general_items = 0


def _no_cold_start(config):
    """Not in the paper: RL from the first weights, no fine-tuning at all."""
    config.stages = tuple(stage for stage in config.stages if stage not in ("rft", "meta_rm"))


def _shuffled_labels(config):
    """A control: it must end at chance."""
    config.data.shuffle_labels = True


ABLATIONS = {
    "no_principles": _no_principles,
    "no_hinted": _no_hinted,
    "no_non_hinted": _no_non_hinted,
    "no_judging_data": _no_judging_data,
    "no_rejection": _no_rejection,
    "no_general": _no_general,
    "no_cold_start": _no_cold_start,
    "shuffled_labels": _shuffled_labels,
    # The grid of the KL coefficient (paper, appendix C.1).
    "beta_0": lambda config: config.rl.update(beta=0.0),
    "beta_0.01": lambda config: config.rl.update(beta=0.01),
    "beta_0.02": lambda config: config.rl.update(beta=0.02),
    "beta_0.08": lambda config: config.rl.update(beta=0.08),
}


def apply(config: ConfigDict, arg: str) -> ConfigDict:
    """Applies a comma-separated list of ablations and `field=value`s (as `--config.field=value`); the experiment's name gets them added.

    Raises ValueError for what is neither, and a field or value that cannot be.
    """
    for part in filter(None, (arg or "").split(",")):
        if part in ABLATIONS:
            ABLATIONS[part](config)
        elif "=" in part:
            set_field(config, *part.split("=", 1))
        else:
            raise ValueError(
                f"{part!r} is neither an ablation ({', '.join(ABLATIONS)}) nor field=value"
            )
        config.name = f"{config.name}-{part}"
    return config
