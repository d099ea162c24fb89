"""Tests which values a resumed run of own_data takes from its config.json."""

import logging
import shutil

import pytest
from test_own_data import CPU, make_config, model_folder, pairs  # noqa: F401

from grm_jax.training import main, own_config
from grm_jax.training.programs import model_config

NEW = {"rft.epochs": 6.0, "rl.epochs": 6.0, "rl.prompts": 8, "meta_rm.epochs": 9.0}
DERIVED = ("rl.steps", "rl.warmup_steps", "meta_rm.steps", "meta_rm.warmup_steps", "rft.steps")


@pytest.fixture
def start(pairs, model_folder, tmp_path):  # noqa: F811
    """Returns a function that starts a run, and returns values of its config."""

    def start(names, **fields):
        config = own_config.complete(make_config(pairs, model_folder, **fields), tmp_path, CPU)
        if not config.rft.steps:
            own_config.set_rft_steps(config, 80, None)
        main.save_config(config, model_config(config), tmp_path)
        return {name: config[name.split(".")[0]][name.split(".")[1]] for name in names}

    return start


def test_steps_follow_the_fields_that_they_are_derived_from(start, tmp_path):
    before = start(DERIVED)
    assert start(DERIVED) == before
    (tmp_path / "rl/checkpoints").mkdir(parents=True)  # without a checkpoint
    after = start(DERIVED, **NEW)
    fresh = tmp_path / "config.json"
    fresh.unlink()
    assert after == start(DERIVED, **NEW) and not set(after.items()) & set(before.items())
    assert start(DERIVED, **{**NEW, "rl.steps": 3})["rl.steps"] == 3  # of the command line


def test_a_stage_that_has_begun_keeps_its_steps_until_its_folder_is_removed(
    start, tmp_path, caplog
):
    names = (*DERIVED, *NEW)
    before = start(names)
    for stage in ("rft", "rl", "meta_rm"):
        (tmp_path / stage / "checkpoints" / "4").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert start(names, **NEW) == before
    assert len(caplog.records) == 4
    assert (
        f"config.rl.epochs=6.0: the stage rl has begun with 2.0, and keeps it with "
        f"rl.steps={before['rl.steps']}; remove {tmp_path}/rl and the folders of later stages"
    ) in caplog.text
    shutil.rmtree(tmp_path / "rl")
    after = start(names, **NEW)
    assert after["rl.steps"] != before["rl.steps"] and after["rl.epochs"] == 6.0
    assert after["rft.steps"] == before["rft.steps"]
