"""The examples of docs/serving.md run, against a running server; adapters work without JAX."""

import asyncio
import functools
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from grm_jax import Judge
from grm_jax.judging.groups import Group
from grm_jax.judging.rewards import score

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "name a moon of Jupiter"
HISTORY = [{"role": "user", "content": PROMPT}]
ANSWERS = ["io is a moon", "luna"]
CHATML = "<|im_start|>user\nname a moon of Jupiter<|im_end|>\n<|im_start|>assistant\n"


def example(heading: str) -> str:
    """The first Python example below a heading of the page."""
    page = (ROOT / "docs/serving.md").read_text()
    part = page.split(f"\n{heading}\n")[1]
    return re.search(r"```python\n(.*?)```", part, re.DOTALL).group(1)


@pytest.fixture
def run_example(server, monkeypatch):
    """Runs an example with stand-ins for the trainer's modules; returns its variables."""

    def run(heading, modules=None, **names):
        for name, members in (modules or {}).items():
            parts = name.split(".")
            for i in range(1, len(parts) + 1):
                fields = members if i == len(parts) else {}
                module = types.ModuleType(".".join(parts[:i]))
                module.__dict__.update(fields)
                monkeypatch.setitem(sys.modules, module.__name__, module)
        code = example(heading).replace("http://localhost:8000", server.url)
        exec(compile(code, heading, "exec"), names)
        return names

    return run


@pytest.fixture(scope="module")
def judge(server):
    return server.service.judge


class Trainer:
    """Stands for GRPOTrainer and GRPOLearner: keeps its arguments."""

    def __init__(self, **arguments):
        self.arguments = arguments

    def train(self, *batches):
        self.trained = batches


def config(*args, **fields):
    return fields


def test_the_client(run_example, judge):
    names = run_example("## Trainers")
    group = Group("What is 2 + 2?", ["It is 4.", "It is 5."])
    assert names["rewards"].values == score([group], judge, k=8)[0].values


def test_trl(run_example, judge):
    modules = {"trl": {"GRPOTrainer": Trainer, "GRPOConfig": config}}
    trainer = run_example("### TRL", modules, dataset=None)["trainer"]
    size = trainer.arguments["args"]["num_generations"]
    assert trainer.arguments["args"]["per_device_train_batch_size"] % size == 0
    rewards = trainer.arguments["reward_funcs"](
        prompts=[PROMPT] * 2,
        completions=ANSWERS,
        completion_ids=[[5], [6]],
        solution=["io"] * 2,
        trainer_state=None,
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
    )
    assert rewards == score([Group(PROMPT, ANSWERS, "io")], judge)[0].values


def test_tunix(run_example, judge, monkeypatch):
    monkeypatch.setattr(Judge, "load", lambda path, mesh: judge)
    modules = {"tunix.rl.grpo.grpo_learner": {"GRPOLearner": Trainer, "GRPOConfig": config}}
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tp"))
    names = run_example("### Tunix", modules, mesh=mesh, cluster=None, batches=[])
    assert names["devices"].shape == {"data": 1, "fsdp": 8, "tensor": 1}
    reward_fn = names["learner"].arguments["reward_fns"]
    numbers = reward_fn(prompts=[PROMPT] * 2, completions=ANSWERS, num_generations=2)
    assert numbers == score([Group(PROMPT, ANSWERS)], judge, k=8)[0].values


def test_verl(run_example, judge):
    compute_score = run_example("### verl")["compute_score"]

    async def run():
        info = {"split": "train", "index": 0, "question": PROMPT}
        call = functools.partial(
            compute_score, data_source="moons", ground_truth="", extra_info=info
        )
        return await asyncio.gather(*(call(solution_str=answer) for answer in ANSWERS))

    scores = [result["score"] for result in asyncio.run(run())]
    assert sorted(scores) == sorted(score([Group(HISTORY, ANSWERS)], judge)[0].values)


def test_openrlhf(run_example):
    from grm_jax.serving.adapters.batches import Unscored

    reward_func = run_example("### OpenRLHF")["reward_func"]
    with pytest.raises(Unscored, match="1 of 1 responses are unparsed"):  # the toy scores two
        reward_func([CHATML + "luna<|im_end|>"], [CHATML], [None])


def test_nemo_gym(run_example, judge):
    rewards = run_example("### NeMo-Gym")["rewards"]
    assert rewards.values == score([Group(HISTORY, ANSWERS)], judge)[0].values


def test_the_adapters_and_the_client_import_no_jax(tmp_path):
    for name in ("jax", "flax", "torch", "trl", "tunix", "verl", "fastapi", "uvicorn"):
        error = f"raise ModuleNotFoundError('No module named {name}', name='{name}')"
        (tmp_path / f"{name}.py").write_text(error)
    modules = [f"adapters.{name}" for name in ("trl", "tunix", "verl", "openrlhf", "nemo_gym")]
    code = ";".join(f"import grm_jax.serving.{name}" for name in ["client", "cohorts", *modules])
    code += (
        ";from grm_jax.serving.client import Client; r = Client('http://127.0.0.1:9', retries=0)"
    )
    code += "([{'prompt': 'q', 'responses': ['a']}]); print(r[0].rewards[0].status)"
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("failed\n", 0), done.stderr[-1000:]
