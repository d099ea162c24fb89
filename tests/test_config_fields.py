"""Fields of a ConfigDict set from text: types, implicit fields, errors."""

import pytest
from ml_collections import ConfigDict

from grm_jax.config_fields import field_names, set_field


@pytest.fixture
def config():
    return ConfigDict(
        {
            "stages": ("rft",),
            "model_overrides": {"remat": "full"},
            "batch_size": 8,
            "note": None,
            "init": "",
            "tensorboard": True,
            "rft": {"lr": 1e-3, "weight_decay": 0.0, "sampling": {}},
        }
    )


def test_values_keep_the_type_of_the_field(config):
    values = {
        "batch_size": ("32", 32),
        "rft.lr": ("3e-4", 3e-4),
        "rft.weight_decay": ("1", 1.0),
        "stages": ("rft,rl", ("rft", "rl")),
        "init": ("gs://b/x:1", "gs://b/x:1"),
        "note": ("7", 7),
        "tensorboard": ("no", False),
    }
    for field, (text, value) in values.items():
        set_field(config, field, text)
        section, _, name = field.rpartition(".")
        result = config[section][name] if section else config[name]
        assert result == value and type(result) is type(value), field


def test_fields_of_the_model_and_of_the_samplers_need_not_be_listed(config):
    set_field(config, "model_overrides.query_chunk", "128")
    set_field(config, "rft.sampling.url", "http://localhost:8000/v1")
    assert config.model_overrides.query_chunk == 128
    assert config.rft.sampling.url == "http://localhost:8000/v1"


def test_every_field_of_a_section_can_be_set():
    """Also those that no experiment lists."""
    from experiments import policy_world, spct_27b
    from grm_jax.training.config_rules import SECTIONS

    for config in (spct_27b.get_config(), policy_world.get_config()):
        sections = {"", *field_names(config)}
        for section, rules in SECTIONS.items():
            # `distractors` is a map, whose keys an experiment must list.
            for name in rules.keys() - {"distractors"} if section in sections else ():
                try:
                    set_field(config, f"{section}.{name}".lstrip("."), "")
                except ValueError as error:  # of a section, or a text where a number belongs
                    assert "does not exist" not in str(error)
    config = spct_27b.get_config("rl.rollout_quantize=int8,rl.epochs=2")
    assert (config.rl.rollout_quantize, config.rl.epochs) == ("int8", 2.0)


@pytest.mark.parametrize(
    "field, text, error",
    [
        ("rft.lrr", "1", "config.rft.lrr does not exist: did you mean config.rft.lr?"),
        ("batchsize", "8", "did you mean config.batch_size"),
        ("model_overrides.qury_chunk", "8", "did you mean config.model_overrides.query_chunk"),
        ("zzz", "8", "use one of config.batch_size, "),
        ("rft", "3", "config.rft is a section: set one of config.rft.lr, "),
        ("batch_size", "many", "config.batch_size='many' is not a whole number: it is 8"),
        ("tensorboard", "perhaps", "is not a boolean: use true or false"),
    ],
)
def test_unknown_fields_and_wrong_types_are_refused(config, field, text, error):
    with pytest.raises(ValueError) as refusal:
        set_field(config, field, text)
    assert error in str(refusal.value)


def test_field_names_are_dotted(config):
    assert {"batch_size", "rft", "rft.lr", "rft.sampling"} <= set(field_names(config))
