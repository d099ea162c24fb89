"""Runs on queued resources, with a fake gcloud on PATH: each ends, and deletes its resource."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from launch import checks, config as configs, tpu
from launch.cluster import gcloud, queued

HERE = Path(__file__).parent
ACTIVE = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
PREEMPTED = ["PROVISIONING", "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED"]
DONE = ["running", "running", "0"]
JOB_ARGUMENTS = (
    "--config",
    "experiments/spct_27b.py",
    "--workdir",
    "gs://bucket/x",
    "--config.name=it's",
)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Puts the fake gcloud on PATH; returns run(scenario, **job) with .memory() and .reports."""
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {HERE / "fake_gcloud.py"} "$@"\n')
    program.chmod(0o755)
    state = tmp_path / "state.json"
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GCLOUD_STATE", str(state))
    reports = []

    def run(
        states, program=(), fails=None, exists=False, started=False, num_slices=1, by=None, **more
    ):
        resource = gcloud.Resource("grm-27b", "us-central2-b", "v4-64", num_slices, spot=True)
        settings = {"attempts": 4, "patience": 3, "tree": "one", **more}
        job = queued.Job(resource, JOB_ARGUMENTS, "tree.tar.gz", **settings)
        memory = {
            "states": [list(s) for s in states], "program": [list(p) for p in program],
            "fails": fails or {}, "exists": exists, "started": started,
            "status": ["running", "0"], "left": ["ACTIVE"], "now": "", "log": "", "calls": [],
            "violations": [],
            "job": (by or f"{job.command_id} {job.tree}") if started else "",
        }  # fmt: skip
        state.write_text(json.dumps(memory))
        return queued.run(job, report=reports.append, sleep=lambda _: None)

    run.memory = lambda: json.loads(state.read_text())
    run.reports = reports
    return run


def check_deleted(cloud):
    memory = cloud.memory()
    assert memory["violations"] == []
    assert not memory["exists"]
    return memory


def test_waits_runs_and_deletes(cloud):
    assert cloud([ACTIVE], [DONE]) == 0
    memory = check_deleted(cloud)
    assert [c for c in memory["calls"] if c != "describe"] == [
        "create",
        "ssh",
        "scp",
        "ssh",
        "ssh",
        "ssh",
        "ssh",
        "ssh",
        "delete",
    ]
    text = "\n".join(cloud.reports)
    assert (
        "WAITING_FOR_RESOURCES" in text
        and text.count("a line of the log") == 3
        and "Finished" in text
    )


def test_preempted_during_the_run_resumes_on_a_new_resource(cloud):
    assert cloud([PREEMPTED, ACTIVE], [["running"], DONE]) == 0
    assert check_deleted(cloud)["calls"].count("create") == 2
    assert any("preempted" in line and "attempt 1 of 4" in line for line in cloud.reports)


def test_preempted_during_the_installation(cloud):
    fails = {"scp": ["ERROR: ssh: connect to host: Connection refused"]}
    assert cloud([["ACTIVE", "SUSPENDED"], ACTIVE], [DONE], fails) == 0
    assert check_deleted(cloud)["calls"].count("create") == 2


def test_a_failed_create_reports_the_reason(cloud):
    fails = {
        "create": [
            "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota 'TPUV4sPodPerProjectPerZone' exceeded\nmore"
        ]
    }
    assert cloud([ACTIVE], [DONE], fails) == 1
    check_deleted(cloud)
    assert "could not be created" in cloud.reports[-1] and "Quota" in cloud.reports[-1]


def test_a_request_that_fails_is_repeated(cloud):
    assert cloud([["WAITING_FOR_RESOURCES", "FAILED"], ACTIVE], [DONE]) == 0
    assert check_deleted(cloud)["calls"].count("delete") == 2


def test_dropped_ssh_connections_are_repeated(cloud):
    drop = "ERROR: [/usr/bin/ssh] exited with return code [255]."
    assert (
        cloud([ACTIVE], [DONE], {"ssh": ["", drop, "", drop, "", drop, drop], "scp": [drop, drop]})
        == 0
    )
    assert check_deleted(cloud)["calls"].count("create") == 1


def test_a_failed_program_shows_the_errors_of_every_worker(cloud):
    assert cloud([ACTIVE], [["running", "1"]]) == 1
    check_deleted(cloud)
    text = "\n".join(cloud.reports)
    assert (
        "failed with exit status 1" in text
        and "host-3" in text
        and "ValueError: the reason" in text
    )


@pytest.mark.parametrize("status", ["75", "70", "lost"])
def test_a_program_that_stops_on_an_active_resource_restarts(cloud, status):
    assert cloud([ACTIVE], [["running", status], DONE]) == 0
    assert check_deleted(cloud)["calls"].count("create") == 1
    assert any(f"stopped ({status}): restarting" in line for line in cloud.reports)


def test_repeated_preemption_ends_with_the_reason(cloud):
    assert cloud([["ACTIVE", "SUSPENDED"]] * 4, [["running"]] * 4) == 1
    assert check_deleted(cloud)["calls"].count("create") == 4
    assert "was lost 4 times: try another zone" in cloud.reports[-1]


def test_gcloud_failures_are_retried(cloud):
    busy = "ERROR: (gcloud) UNAVAILABLE: try again"
    assert (
        cloud([ACTIVE], [DONE], {"describe": ["", busy, "", busy, busy], "delete": [busy, busy]})
        == 0
    )
    check_deleted(cloud)


def test_a_missing_permission_is_not_retried(cloud):
    denied = "ERROR: (gcloud) PERMISSION_DENIED: caller does not have permission"
    assert cloud([ACTIVE], [DONE], {"describe": [denied] * 9}) == 1
    assert "is unavailable: ERROR: (gcloud) PERMISSION_DENIED" in "\n".join(cloud.reports)
    assert cloud.memory()["calls"].count("describe") == 1


def test_a_failed_delete_reports_the_command(cloud):
    assert cloud([ACTIVE], [DONE], {"delete": ["ERROR: INTERNAL"] * 9}) == 0
    assert (
        "could not be deleted and may cost" in cloud.reports[-1]
        and "queued-resources delete grm-27b" in cloud.reports[-1]
    )


def test_the_same_command_follows_the_running_program(cloud):
    assert cloud([], [], exists=True, started=True) == 0
    memory = check_deleted(cloud)
    assert "scp" not in memory["calls"] and "create" not in memory["calls"]


def test_a_finished_run_of_another_command_or_commit_does_not_count(cloud):
    """With --keep: follows the same command and commit; installs and runs any other."""
    assert cloud([], [], exists=True, started="0") == 0
    assert "scp" not in cloud.memory()["calls"]
    ours = queued.Job(None, JOB_ARGUMENTS, "").command_id
    for by in ("0123456789ab one", f"{ours} another"):
        assert cloud([], [DONE], exists=True, started="0", by=by) == 0
        assert "scp" in cloud.memory()["calls"] and not cloud.memory()["program"]


def test_a_resource_that_runs_another_command_is_not_touched(cloud):
    assert cloud([], [], exists=True, started=True, by="0123456789ab one") == 2
    memory = cloud.memory()
    assert memory["exists"] and not {"scp", "delete"} & set(memory["calls"])
    assert "grm-27b runs another command: use another --name" in cloud.reports[-1]


def test_a_running_program_of_another_commit_is_followed_and_reported(cloud):
    assert cloud([], [], exists=True, started=True, tree="two", by=None) == 0
    assert not any("another commit" in line for line in cloud.reports)
    ours = queued.Job(None, JOB_ARGUMENTS, "").command_id
    assert cloud([], [], exists=True, started=True, tree="two", by=f"{ours} one") == 0
    assert (
        any("another commit" in line for line in cloud.reports)
        and "scp" not in cloud.memory()["calls"]
    )


def test_keep_does_not_delete_and_reports_it(cloud):
    assert cloud([ACTIVE], [DONE], keep=True) == 0
    assert (
        cloud.memory()["exists"]
        and "costs until it is deleted: gcloud compute tpus" in cloud.reports[-1]
    )


def test_several_slices_are_several_nodes(cloud):
    assert cloud([ACTIVE], [DONE, DONE], num_slices=2) == 0
    assert check_deleted(cloud)["calls"].count("scp") == 2


ARGUMENTS = ["--config", "experiments/spct_27b.py", "--on", "queued-resource"]
ARGUMENTS += ["--name", "grm-27b", "--zone", "us-central2-b"]
FROM_FILES = {"judging": "spct", "held_out": "rm_bench", "general": "general"}
ON_V4_64 = [*ARGUMENTS, "--accelerator", "v4-64", "--workdir", "gs://b/x"]


def test_files_that_workers_cannot_read_are_refused_before_anything_is_created(
    cloud, refused, capsys
):
    cloud([ACTIVE], [DONE])
    Path(os.environ["FAKE_GCLOUD_STATE"]).write_text(json.dumps(cloud.memory() | {"calls": []}))
    arguments = [*ON_V4_64, "--config.tokenizer=/home/me/tokenizer"]
    arguments += [f"--config.data.{field}={task}" for field, task in FROM_FILES.items()]
    error = refused([*arguments, "--config.init=gs://b/weights"])
    assert error.startswith(
        "launch: config.tokenizer names /home/me/tokenizer, config.data.judging"
    )
    assert "config.data.judging (skywork) names data/skywork" in error
    assert ", and 5 more: workers get committed files only; copy it to a bucket" in error
    assert cloud.memory()["calls"] == ["bucket"]
    assert tpu.main([*arguments, "--dry_run"]) == 0  # creates nothing
    assert "launch: warning: config.tokenizer names /home/me/tokenizer" in capsys.readouterr().err


def test_files_in_buckets_and_in_the_commit_are_accepted():
    from grm_jax.data import mixtures

    config = configs.load(
        "experiments/spct_27b.py", {"init": "gs://b/w", "tokenizer": "experiments", "stages": "rl"}
    )
    mixtures.add_comparisons("a", {"train": ["gs://b/a.jsonl", "README.md"]})
    config.data.update(judging="a", folder="")
    assert checks.missing_on_workers(config) == ""
    assert checks.missing_on_workers(configs.load("experiments/spct_tiny.py", {})) == ""


def test_dry_run_prints_commands_and_runs_none(cloud, capsys):
    assert tpu.main([*ON_V4_64, "--spot", "--config.rl.beta=0.02", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    create = "gcloud compute tpus queued-resources create grm-27b --zone=us-central2-b"
    assert lines[1].startswith(f"{create} --accelerator-type=v4-64")
    assert "--spot" in lines[1] and "--runtime-version=tpu-ubuntu2204-base" in lines[1]
    assert any("--config.rl.beta=0.02 --workdir gs://b/x" in line for line in lines)
    assert "delete grm-27b" in lines[-1]


@pytest.mark.parametrize(
    "arguments, error",
    [
        ([*ARGUMENTS, "--workdir", "gs://b/x"], "--accelerator missing"),
        ([*ARGUMENTS, "--accelerator", "v4-64"], "--workdir gs://BUCKET/FOLDER"),
        ([*ARGUMENTS, "--accelerator", "v4-63", "--workdir", "gs://b/x"], "'v4-63' does not exist"),
        (
            [*ARGUMENTS, "--accelerator", "v4-8", "--workdir", "gs://b/x", "--config.mesh.fsdp=3"],
            "does not make 4 chips of 1 x v4-8",
        ),
        (
            [*ARGUMENTS, "--accelerator", "v4-8", "--workdir", "gs://b/x", "--num_slices", "2"],
            "mesh data=1 is not a multiple of the 2 slices: fsdp and tensor stay inside one slice, "
            "set data=2",
        ),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_created(arguments, error, refused):
    assert error in refused(arguments)


def test_a_config_outside_the_tree_is_refused_before_anything_is_created(tmp_path, refused):
    file = tmp_path / "mine.py"
    file.write_text(Path("experiments/spct_27b.py").read_text())
    where = ["--accelerator", "v4-64", "--workdir", "gs://b/x", "--dry_run"]
    error = refused([*ARGUMENTS, *where, "--config", str(file)])
    assert "workers do not get config" in error


@pytest.mark.parametrize("option", [["--process_id", "0"], ["--emulate", "8"]])
def test_options_of_this_machine_are_refused(option, refused):
    where = ["--accelerator", "v4-64", "--workdir", "gs://b/x"]
    assert "is for a run on this machine" in refused([*ARGUMENTS, *where, *option])


def test_an_unreadable_bucket_is_refused(cloud, capsys, tmp_path):
    cloud([ACTIVE], [DONE])
    state = cloud.memory() | {
        "fails": {"bucket": ["ERROR: (gcloud) 404: gs://b not found"]},
        "calls": [],
    }
    Path(os.environ["FAKE_GCLOUD_STATE"]).write_text(json.dumps(state))
    assert tpu.main([*ARGUMENTS, "--accelerator", "v4-64", "--workdir", "gs://b/x"]) == 2
    assert "gs://b/x is not readable: ERROR: (gcloud) 404" in capsys.readouterr().err
    assert cloud.memory()["calls"] == ["bucket"]


def test_the_archive_has_the_commit_and_the_experiment():
    import tarfile

    root = HERE.parents[2]
    with tarfile.open(queued.archive(root, root / "experiments/spct_tiny.py")) as tree:
        names = tree.getnames()
    again = [
        queued.digest(queued.archive(root, root / "experiments/spct_tiny.py")) for _ in range(2)
    ]
    assert again[0] == again[1]
    assert {
        "setup.py",
        "requirements.lock",
        "Makefile",
        "launch/tpu.py",
        "experiments/spct_tiny.py",
    } <= set(names)
    assert not any(name.startswith((".venv", "runs")) for name in names)


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_shell_commands_work_in_bash(tmp_path):
    """Runs the commands that workers get, with a folder as the worker's home."""
    import subprocess

    home = tmp_path / queued.HOME
    python = home / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\nshift\nprintf "%s\\n" "$@"\ntouch begun\n'
        "while [ ! -e end ]; do sleep 0.05; done\nexit 75\n"
    )
    python.chmod(0o755)
    sent = []

    def worker(gcloud_arguments):
        prefix = "--command="
        commands = [a.removeprefix(prefix) for a in gcloud_arguments if a.startswith(prefix)]
        command = next(iter(commands), "true")
        sent.append(command)
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        return gcloud.Result(done.returncode, done.stdout, done.stderr)

    arguments = ("--config", "x.py:a=1", '--config.name=it\'s $HOME "here"')
    job = queued.Job(gcloud.Resource("grm", "z", "v4-8"), arguments, "tree.tar.gz")
    driver = queued._Driver(job, worker, print, lambda _: None)
    assert driver.inspect() == ("-", "-", "lost")
    driver.start()
    wait_until((home / "begun").exists)
    assert driver.inspect() == (job.command_id, "-", "running")
    status, text = driver.follow(0)
    assert (status, text.splitlines()[:3]) == ("running", list(arguments))
    (home / "end").touch()
    wait_until(lambda: driver.inspect()[2] != "running")
    assert driver.follow(len(text.encode())) == ("75", "")
    assert driver.inspect() == (job.command_id, "-", "75")
    errors = worker([f"--command={queued.ERRORS}"]).out
    assert errors.startswith("--- ") and arguments[0] in errors


# ---------------------------------------------------------------- models on the Hub

GATED = ["--config.stages=rl", "--config.data.judging=world_20k", *ON_V4_64]


@pytest.fixture
def gated_hub(hub, monkeypatch):
    """A hub with the gated model of spct_27b; its preference set is the judging world."""
    from grm_jax.data import mixtures

    mixtures.add_world("world_20k", {"train": 10})
    hub.add("google/gemma-2-27b", {"config.json": b"{}", "model.safetensors": b"1"}, gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    return hub


def test_gated_models_are_found_before_anything_is_created(cloud, gated_hub, refused, monkeypatch):
    cloud([ACTIVE], [DONE])
    calls = cloud.memory()["calls"]
    assert "google/gemma-2-27b is gated, and the workers have no token: add --send_hf_token" in (
        refused(GATED)
    )
    monkeypatch.delenv("HF_TOKEN")
    page = "https://huggingface.co/google/gemma-2-27b"
    assert f"accept its terms at {page}, then run `hf auth login`" in refused(GATED)
    assert cloud.memory()["calls"] == [*calls, "bucket", "bucket"]


def test_the_token_is_copied_as_a_file_and_is_in_no_command(cloud, gated_hub, tmp_path, capsys):
    file = Path(queued.token_file())
    assert file.read_text() == "hf_good" and file.stat().st_mode & 0o77 == 0
    assert cloud([ACTIVE], [DONE], token=str(file)) == 0
    assert check_deleted(cloud)["calls"].count("scp") == 2
    assert tpu.main([*ON_V4_64, "--send_hf_token", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "scp TOKEN grm-27b:grm_jax.token" in out and "hf_good" not in out
    assert 'HF_TOKEN_PATH="$HOME/grm_jax.token" .venv/bin/python' in out
