"""`grm judge` and `grm eval` on two hosts that share no disk: equal output, resume, failures.

The hosts have a fake judge, except in the last test, where a model judges. All but the first take
minutes: pytest --run slow tests/judging/test_several_hosts.py
"""

import json
import os
import shutil
import subprocess
import sys

import ports
import pytest
from test_run import HERE, ROWS, write_rows

from grm_jax.hosts.errors import PEER_LOST


def run(folders, command, faults=("", ""), program=(HERE / "one_host.py",), devices=1):
    """Runs a command in each folder, as the hosts of one job; returns (statuses, stderrs)."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu"}
    environment |= {"XLA_FLAGS": flag}
    port = ports.free_pair()
    processes = []
    for i, folder in enumerate(folders):
        argv = [*program, faults[i]] if program else ["-m", "grm_jax.cli"]
        argv += [*command, "--quiet"]
        if len(folders) > 1:
            argv += ["--coordinator", f"127.0.0.1:{port}", "--num_processes", len(folders)]
            argv += ["--process_id", i]
        folder.mkdir(exist_ok=True)
        processes.append(
            subprocess.Popen(
                [sys.executable, *map(str, argv)],
                cwd=folder,
                env=environment,
                text=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
    errors = [process.communicate(timeout=480)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.fixture
def judge_command(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:6], {2: b"{\n"})
    model = tmp_path / "model"
    model.mkdir()
    command = ["judge", source, "out.jsonl", "--model", model, "--template", "compact"]
    return [*command, "--k", "2", "--max_new_tokens", "64"]


def test_two_hosts_fail_together_resume_and_write_what_one_writes(tmp_path, judge_command):
    one, *two = (tmp_path / name for name in ("one", "first", "second"))
    assert run([one], judge_command)[0] == [1]  # one error row
    statuses, errors = run(two, judge_command, ("", "crash"))
    assert statuses[0] == PEER_LOST and statuses[1] < 0
    lines = [line for line in errors[0].splitlines() if line.startswith("grm judge: ")]
    assert len(lines) == 1 and "process 1 on" in lines[0] and "Run the same command" in lines[0]
    part = (two[0] / "out.jsonl.part").read_bytes()
    assert part.count(b"\n") >= 2 and not list(two[1].iterdir())
    statuses, errors = run(two, [*judge_command, "--resume"])
    assert statuses == [1, 1], errors
    assert (two[0] / "out.jsonl").read_bytes() == (one / "out.jsonl").read_bytes()
    assert "7 rows, 1 of them errors, " in errors[0] and "from an earlier run" in errors[0]
    assert not list(two[1].iterdir()) and not errors[1]
    assert sorted(path.name for path in two[0].iterdir()) == ["out.jsonl"]


@pytest.mark.slow
def test_an_error_on_one_host_is_its_line_and_ends_the_other(tmp_path, judge_command):
    statuses, errors = run([tmp_path / "a", tmp_path / "b"], judge_command, ("", "error"))
    assert statuses == [PEER_LOST, 2]
    assert "grm judge: the model's file was removed" in errors[1]
    assert "grm judge: process 1 on" in errors[0]


@pytest.mark.slow
def test_an_output_that_exists_on_the_first_host_ends_both(tmp_path, judge_command):
    folders = [tmp_path / "a", tmp_path / "b"]
    folders[0].mkdir()
    (folders[0] / "out.jsonl").write_text("")
    statuses, errors = run(folders, judge_command)
    assert statuses == [2, PEER_LOST]
    assert "grm judge: out.jsonl exists: pass --resume" in errors[0]
    assert "grm judge: process 0 on" in errors[1]


@pytest.mark.slow
def test_two_hosts_evaluate_like_one(tmp_path):
    rows = [
        {"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}", "subset": "math-prm"}
        | {"id": i}
        for i in range(4)
    ]
    data = tmp_path / "data" / "rewardbench"
    data.mkdir(parents=True)
    (data / "filtered.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["eval", "--benchmark", "rewardbench", "--data", data.parent, "--model", data]
    command += ["--out", "eval", "--template", "compact", "--k", "2", "--draws", "20"]
    one, *two = (tmp_path / name for name in ("one", "first", "second"))
    assert run([one], command)[0] == [0]
    for limit in (["--limit", "2"], []):  # the second run extends the first
        statuses, errors = run(two, [*command, *limit])
        assert statuses == [0, 0], errors
    assert not list(two[1].iterdir())
    names = sorted(path.name for path in (one / "eval").iterdir())
    assert names == sorted(path.name for path in (two[0] / "eval").iterdir())
    for name in ("rewardbench.jsonl", "rewardbench.greedy.jsonl"):
        assert (two[0] / "eval" / name).read_bytes() == (one / "eval" / name).read_bytes()


@pytest.mark.slow
def test_a_model_judges_on_two_hosts_of_four_devices_as_on_one_of_eight(tmp_path):
    sys.path.append(str(HERE.parent / "checkpoints"))
    import numpy as np
    from toys import BF16, GEMMA2, tensors, write_folder

    from grm_jax.data.world.vocabulary import vocabulary_path

    source = write_rows(tmp_path / "in.jsonl", ROWS[:6])
    config = GEMMA2 | {"vocab_size": 800, "max_position_embeddings": 4096}
    weights = tensors(GEMMA2)
    embedding = np.random.default_rng(0).normal(size=(800, config["hidden_size"]))
    weights["model.embed_tokens.weight"] = embedding.astype(BF16)
    model = write_folder(tmp_path / "model", config, weights)
    shutil.copy(vocabulary_path(), model / "tokenizer.model")
    command = ["judge", source, "out.jsonl", "--model", model, "--template", "compact", "--k", "4"]
    command += ["--max_new_tokens", "16", "--mesh", "fsdp=-1"]
    one, *two = (tmp_path / name for name in ("one", "first", "second"))
    statuses, errors = run([one], command, program=(), devices=8)
    assert statuses == [0], errors
    statuses, errors = run(two, command, program=(), devices=4)
    assert statuses == [0, 0], errors
    assert (two[0] / "out.jsonl").read_bytes() == (one / "out.jsonl").read_bytes()
