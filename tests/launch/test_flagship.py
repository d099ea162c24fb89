"""The flagship command rehearsed: spct_27b, from an empty cache to the evaluated judge.

A stand-in hub on loopback serves toys of its models and data sets (toy_hub.py). The command is the
experiment's own on eight emulated devices; only sizes are overridden.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_hub
from hub_server import HubServer

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("google/gemma-2-27b", "google/gemma-2-27b-it")
TOY = {
    **{f"model_overrides.{name}": size for name, size in toy_hub.SIZES.items()},
    "seq_len": 640, "batch_size": 8, "data.general_items": 8,
    "rft.steps": 2, "rft.warmup_steps": 0, "rft.comparisons": 24, "rft.sampling.max_new_tokens": 8,
    "rl.steps": 1, "rl.warmup_steps": 0, "rl.prompts": 8, "rl.prompt_len": 512,
    "rl.max_new_tokens": 8, "rl.length_buckets": 1,
    "meta_rm.steps": 1, "meta_rm.warmup_steps": 0, "meta_rm.batch_size": 8, "meta_rm.seq_len": 512,
    "meta_rm.comparisons": 8, "meta_rm.rft_trials": 60,
    "eval.comparisons": 8, "eval.samples": 2, "eval.base_samples": 2, "eval.ks": "1,2",
    "eval.max_new_tokens": 8,
}  # fmt: skip


@pytest.fixture
def hub(tmp_path):
    tokenizer = toy_hub.tokenizer_model()
    with HubServer() as server:
        for seed, name in enumerate(MODELS):
            folder = toy_hub.gemma(tmp_path / name.split("/")[1], tokenizer, seed)
            (folder / "pytorch_model.bin").write_bytes(b"a pickle")
            server.add(name, folder, gated=True)
        for name, files in toy_hub.data_sets(count=12).items():
            server.add(name, files, kind="dataset")
        yield server


def run(hub, tmp_path, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, "launch/tpu.py", "--config", "experiments/spct_27b.py"]
    command += ["--emulate", "8", "--workdir", str(tmp_path / "run")]
    command += [f"--config.{field}={size}" for field, size in TOY.items()]
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    settings["HF_HUB_DISABLE_XET"] = "1"
    unset = ("JAX_PLATFORMS", "XLA_FLAGS", "HF_TOKEN")
    inherited = {name: text for name, text in os.environ.items() if name not in unset}
    return subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, env=inherited | settings | environment
    )


@pytest.mark.slow
def test_the_flagship_command_trains_and_evaluates_a_judge_without_flags(hub, tmp_path):
    refused = run(hub, tmp_path)
    pages = [f"https://huggingface.co/{name}" for name in MODELS]
    assert refused.returncode == 2, refused.stderr[-3000:]
    assert "2 inputs are missing:" in refused.stderr and "hf auth login" in refused.stderr
    assert all(page in refused.stderr for page in pages) and not (tmp_path / "run").exists()

    done = run(hub, tmp_path, HF_TOKEN="hf_good")
    assert done.returncode == 0, done.stderr[-3000:]
    results = {
        stage: json.loads((tmp_path / "run" / stage / "result.json").read_text())
        for stage in ("rft", "rl", "meta_rm", "eval")
    }
    kept = results["rft"]["set"]
    assert kept["non_hinted/kept"] > 0 and kept["non_hinted/wrong"] > 0
    assert {cell["model"] for cell in results["eval"]["cells"]} >= {"base", "rft", "rl"}
    assert {cell["method"] for cell in results["eval"]["cells"]} >= {"Greedy", "Voting", "MetaRM"}
    assert (tmp_path / "run/eval/report.html").exists()
    assert (tmp_path / "run/rl/hf/judge.json").exists()
    config = json.loads((tmp_path / "run/config.json").read_text())
    commits = [hub.repos["model", name].revisions["main"] for name in MODELS]
    base, sampler = (f"{name}@{commit}" for name, commit in zip(MODELS, commits))
    assert (config["init"], config["tokenizer"]) == (base, base)
    assert config["rft"]["sampling"]["path"] == sampler
    assert "pytorch_model.bin" not in hub.downloads()
    assert len(hub.paths()) == len(set(hub.paths())), "a file was downloaded twice"
