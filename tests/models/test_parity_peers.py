"""Compares with the peers themselves: the goldens are up to date, and folders load on both sides.

    GRM_PEERS=PYTHON pytest --run peers tests/models/test_parity_peers.py

PYTHON is an interpreter with the `bench` extra. It may be a command such as
"env PYTHONPATH=... python", if `gemma` requires a newer protobuf than another peer.
"""

import json
import os
import shlex
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity_cases import CASES, CONFIGS, batch
from parity_ours import GOLDENS, LOGITS, distance, folder, golden, model_of, parity
from toys import raw

from grm_jax.checkpoints import load, open_checkpoint, save

HERE = Path(__file__).parent
pytestmark = pytest.mark.peers


def peer(script: str, *args) -> None:
    if "GRM_PEERS" not in os.environ:
        pytest.skip("GRM_PEERS is not set: set it to an interpreter with the `bench` extra")
    python = shlex.split(os.environ["GRM_PEERS"])
    subprocess.run([*python, str(HERE / script), *map(str, args)], check=True)


def test_the_goldens_equal_the_peers_results(tmp_path):
    peer("make_goldens.py", tmp_path)
    for file in GOLDENS.glob("*.npz"):
        new, stored = np.load(tmp_path / file.name), golden(file.stem)
        assert set(new) == set(stored)
        for key, value in stored.items():
            # The order in which bfloat16 products are summed depends on the machine.
            bound = (0.1 if "bf16" in key else 1e-4) * np.abs(value).max()
            np.testing.assert_allclose(new[key], value, rtol=0, atol=bound)


@pytest.mark.parametrize("case", CONFIGS)
def test_transformers_loads_our_folders(tmp_path, case):
    save(model_of(case), tmp_path / "out", max_file_bytes=40_000)
    tokens, mask = batch(CASES[case])
    np.savez(tmp_path / "in.npz", tokens=tokens, mask=mask)
    peer("peer_folders.py", "serve", tmp_path / "out", tmp_path / "in.npz", tmp_path / "logits.npz")
    theirs = np.load(tmp_path / "logits.npz")["logits"]
    assert distance(theirs, golden("transformers")[f"{case}/logits"]) <= LOGITS


@pytest.mark.parametrize("case", [f"{family}_right" for family in CONFIGS])
def test_transformers_scores_with_our_reward_head(tmp_path, case):
    model = model_of(case, scalar_head=True)
    model.score_D = nnx.Param(jnp.linspace(-1, 1, model.cfg.d_model), axes=("norm",))
    save(model, tmp_path / "out", like=folder(CASES[case]))  # which has the pad id
    tokens, mask = batch(CASES[case])
    np.savez(tmp_path / "in.npz", tokens=tokens, mask=mask)
    peer("peer_folders.py", "serve", tmp_path / "out", tmp_path / "in.npz", tmp_path / "scores.npz")
    theirs = np.load(tmp_path / "scores.npz")["logits"][:, 0]
    ours = load(tmp_path / "out", dtype="float32").rewards(tokens, mask)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("max_bytes", [1 << 30, 40_000], ids=["one file", "shards"])
def test_folders_of_transformers_survive_a_round_trip(tmp_path, max_bytes):
    """Of every family and its sequence classifier: bytes of the tensors, fields, stop ids."""
    peer("peer_folders.py", "export", max_bytes, tmp_path / "theirs")
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert len(names) == 2 * len(CONFIGS)
    for name in names:
        source, out = tmp_path / "theirs" / name, tmp_path / "ours" / name
        assert (len(list(source.glob("*.safetensors"))) > 1) == (max_bytes < 1 << 30)
        save(load(source, dtype=None), out, like=source, max_file_bytes=max_bytes)
        assert raw(out) == raw(source)
        stops = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
        assert stops == [1, 27, 53]
    peer("peer_folders.py", "fields", tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize("layout", ["nested", "flat", "stacked"])
@pytest.mark.parametrize("case", ["gemma2", "gemma3"])
def test_we_load_deepminds_checkpoints(tmp_path, case, layout):
    peer("peer_folders.py", "write", case, layout, tmp_path / "dm")
    cfg = open_checkpoint(folder(CASES[case])).model_config()
    assert parity(case, load(tmp_path / "dm", dtype="float32", cfg=cfg), "deepmind") <= LOGITS
