"""Against the peers themselves, not their goldens: the goldens are still what they compute, and folders go both ways.

GRM_PEERS="PYTHON" pytest --run peers tests/models/test_parity_peers.py       (PYTHON: an interpreter with the `bench` extra;
GRM_PEERS may be several words, such as "env PYTHONPATH=... python" where `gemma` wants a newer protobuf than another peer)
"""

import os
import shlex
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity_cases import CASES, batch
from parity_ours import GOLDENS, LOGITS, distance, folder, golden, model_of, parity

from grm_jax.checkpoints import load, open_checkpoint, save

HERE = Path(__file__).parent
pytestmark = pytest.mark.peers


def peer(script: str, *args) -> None:
    if "GRM_PEERS" not in os.environ:
        pytest.skip(
            "GRM_PEERS is not set: give the interpreter of an environment with the `bench` extra"
        )
    subprocess.run(
        [*shlex.split(os.environ["GRM_PEERS"]), str(HERE / script), *map(str, args)], check=True
    )


def test_the_goldens_are_what_the_peers_compute(tmp_path):
    peer("make_goldens.py", tmp_path)
    for file in GOLDENS.glob("*.npz"):
        again, kept = np.load(tmp_path / file.name), golden(file.stem)
        assert set(again) == set(kept)
        for key, value in kept.items():
            # bfloat16 products are summed in an order that depends on the machine.
            np.testing.assert_allclose(
                again[key],
                value,
                rtol=0,
                atol=(0.1 if "bf16" in key else 1e-4) * np.abs(value).max(),
            )


@pytest.mark.parametrize("case", ["gemma2", "gemma3"])
def test_transformers_serves_what_we_write(tmp_path, case):
    save(model_of(case), tmp_path / "out", max_file_bytes=40_000)
    tokens, mask = batch(CASES[case])
    np.savez(tmp_path / "in.npz", tokens=tokens, mask=mask)
    peer("peer_folders.py", "serve", tmp_path / "out", tmp_path / "in.npz", tmp_path / "logits.npz")
    assert (
        distance(
            np.load(tmp_path / "logits.npz")["logits"], golden("transformers")[f"{case}/logits"]
        )
        <= LOGITS
    )


@pytest.mark.parametrize("case", ["gemma2_right", "gemma3_right"])
def test_transformers_scores_with_our_reward_head(tmp_path, case):
    model = model_of(case, scalar_head=True)
    model.score_D = nnx.Param(jnp.linspace(-1, 1, model.cfg.d_model), axes=("norm",))
    save(model, tmp_path / "out")
    tokens, mask = batch(CASES[case])
    np.savez(tmp_path / "in.npz", tokens=tokens, mask=mask)
    peer("peer_folders.py", "serve", tmp_path / "out", tmp_path / "in.npz", tmp_path / "scores.npz")
    theirs = np.load(tmp_path / "scores.npz")["logits"][:, 0]
    np.testing.assert_allclose(
        load(tmp_path / "out", dtype="float32").rewards(tokens, mask), theirs, rtol=1e-4
    )


@pytest.mark.parametrize("layout", ["nested", "flat", "stacked"])
@pytest.mark.parametrize("case", ["gemma2", "gemma3"])
def test_we_read_what_deepmind_writes(tmp_path, case, layout):
    peer("peer_folders.py", "write", case, layout, tmp_path / "dm")
    cfg = open_checkpoint(folder(CASES[case])).model_config()
    assert parity(case, load(tmp_path / "dm", dtype="float32", cfg=cfg), "deepmind") <= LOGITS
