"""Fixtures of the launcher's tests: a toy experiment, and a wrong command."""

import pytest

from launch import tpu

EXPERIMENT = """
from ml_collections import ConfigDict

def get_config(arg: str = ""):
    return ConfigDict({
        "name": "toy", "stages": ("rft",), "model": arg or "tiny_gemma2",
        "model_overrides": {"remat": "full", "num_layers": 2},
        "mesh": {"data": 1, "fsdp": 4, "tensor": 1}, "seq_len": 64, "batch_size": 8, "note": None,
        "init": "", "tensorboard": True,
        "rft": {"lr": 1e-3, "steps": 10, "warmup_steps": 0, "schedule": "constant",
                "final_lr_share": 0.0, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.0,
                "clip_norm": 1.0, "micro_batches": 1},
    })
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.fixture
def refused(capsys):
    """Runs a wrong command; returns the one line that it prints."""

    def run(arguments) -> str:
        assert tpu.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and captured.err.startswith("launch: "), captured.err
        assert not captured.out
        return captured.err

    return run
