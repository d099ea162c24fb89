"""Runs on queued resources against a stand-in gcloud on PATH: each scenario ends finished or with the reason, and leaves nothing behind."""

import json
import os
import sys
from pathlib import Path

import pytest

from launch import checks, tpu
from launch import config as configs
from launch.cluster import gcloud, queued

HERE = Path(__file__).parent
ACTIVE = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
PREEMPTED = ["PROVISIONING", "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED"]
DONE = ["running", "running", "0"]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Puts the stand-in on PATH; gives (run(scenario, **job), memory())."""
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} -I -S {HERE / "stand_in_gcloud.py"} "$@"\n'
    )
    program.chmod(0o755)
    state = tmp_path / "state.json"
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_STATE", str(state))
    said = []

    def run(
        states, program=(), fails=None, exists=False, started=False, num_slices=1, by=None, **job
    ):
        resource = gcloud.Resource("grm-27b", "us-central2-b", "v4-64", num_slices, spot=True)
        words = (
            "--config",
            "experiments/spct_27b.py",
            "--workdir",
            "gs://bucket/x",
            "--config.name=it's",
        )
        settings = {"attempts": 4, "patience": 3, "tree": "one", **job}
        asked = queued.Job(resource, words, "tree.tar.gz", **settings)
        memory = {
            "states": [list(s) for s in states], "program": [list(p) for p in program], "fails": fails or {}, "exists": exists,
            "started": started, "status": ["running", "0"], "left": ["ACTIVE"], "now": "", "log": "", "calls": [], "violations": [],
            "job": (by or f"{asked.command_id} {asked.tree}") if started else "",
        }  # fmt: skip
        state.write_text(json.dumps(memory))
        return queued.run(asked, report=said.append, sleep=lambda _: None)

    run.memory = lambda: json.loads(state.read_text())
    run.said = said
    return run


def check_nothing_is_left(cloud):
    memory = cloud.memory()
    assert memory["violations"] == []
    assert not memory["exists"]
    return memory


def test_waits_runs_and_deletes(cloud):
    assert cloud([ACTIVE], [DONE]) == 0
    memory = check_nothing_is_left(cloud)
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
    text = "\n".join(cloud.said)
    assert (
        "WAITING_FOR_RESOURCES" in text
        and text.count("a line of the log") == 3
        and "Finished" in text
    )


def test_preempted_in_mid_run_goes_on_with_a_new_resource(cloud):
    assert cloud([PREEMPTED, ACTIVE], [["running"], DONE]) == 0
    assert check_nothing_is_left(cloud)["calls"].count("create") == 2
    assert any("preempted" in line and "attempt 1 of 4" in line for line in cloud.said)


def test_preempted_while_installing(cloud):
    fails = {"scp": ["ERROR: ssh: connect to host: Connection refused"]}
    assert cloud([["ACTIVE", "SUSPENDED"], ACTIVE], [DONE], fails) == 0
    assert check_nothing_is_left(cloud)["calls"].count("create") == 2


def test_a_failed_create_says_why(cloud):
    fails = {
        "create": [
            "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota 'TPUV4sPodPerProjectPerZone' exceeded\nmore"
        ]
    }
    assert cloud([ACTIVE], [DONE], fails) == 1
    check_nothing_is_left(cloud)
    assert "could not be created" in cloud.said[-1] and "Quota" in cloud.said[-1]


def test_a_request_that_ends_as_failed_is_made_again(cloud):
    assert cloud([["WAITING_FOR_RESOURCES", "FAILED"], ACTIVE], [DONE]) == 0
    assert check_nothing_is_left(cloud)["calls"].count("delete") == 2


def test_ssh_that_drops_is_called_again(cloud):
    drop = "ERROR: [/usr/bin/ssh] exited with return code [255]."
    assert (
        cloud([ACTIVE], [DONE], {"ssh": ["", drop, "", drop, "", drop, drop], "scp": [drop, drop]})
        == 0
    )
    assert check_nothing_is_left(cloud)["calls"].count("create") == 1


def test_a_program_that_fails_shows_every_workers_errors(cloud):
    assert cloud([ACTIVE], [["running", "1"]]) == 1
    check_nothing_is_left(cloud)
    text = "\n".join(cloud.said)
    assert (
        "failed with exit status 1" in text
        and "host-3" in text
        and "ValueError: the reason" in text
    )


@pytest.mark.parametrize("status", ["75", "70", "lost"])
def test_a_program_that_stopped_on_a_live_resource_is_started_again(cloud, status):
    assert cloud([ACTIVE], [["running", status], DONE]) == 0
    assert check_nothing_is_left(cloud)["calls"].count("create") == 1
    assert any(f"stopped ({status}): restarting" in line for line in cloud.said)


def test_a_zone_that_always_takes_it_back_ends_with_the_reason(cloud):
    assert cloud([["ACTIVE", "SUSPENDED"]] * 4, [["running"]] * 4) == 1
    assert check_nothing_is_left(cloud)["calls"].count("create") == 4
    assert "was lost 4 times: try another zone" in cloud.said[-1]


def test_a_gcloud_that_fails_now_and_then(cloud):
    busy = "ERROR: (gcloud) UNAVAILABLE: try again"
    assert (
        cloud([ACTIVE], [DONE], {"describe": ["", busy, "", busy, busy], "delete": [busy, busy]})
        == 0
    )
    check_nothing_is_left(cloud)


def test_no_permission_ends_at_once(cloud):
    denied = "ERROR: (gcloud) PERMISSION_DENIED: caller does not have permission"
    assert cloud([ACTIVE], [DONE], {"describe": [denied] * 9}) == 1
    assert "is unavailable: ERROR: (gcloud) PERMISSION_DENIED" in "\n".join(cloud.said)
    assert cloud.memory()["calls"].count("describe") == 1


def test_a_resource_that_cannot_be_deleted_is_named_with_the_command(cloud):
    assert cloud([ACTIVE], [DONE], {"delete": ["ERROR: INTERNAL"] * 9}) == 0
    assert (
        "could not be deleted and may cost" in cloud.said[-1]
        and "queued-resources delete grm-27b" in cloud.said[-1]
    )


def test_the_same_command_again_follows_what_runs(cloud):
    assert cloud([], [], exists=True, started=True) == 0
    memory = check_nothing_is_left(cloud)
    assert "scp" not in memory["calls"] and "create" not in memory["calls"]


def test_a_finished_run_of_another_command_or_commit_is_not_taken_for_this_one(cloud):
    """What --keep leaves behind: the same command and commit is followed, anything else is copied, installed and run."""
    assert cloud([], [], exists=True, started="0") == 0
    assert "scp" not in cloud.memory()["calls"]
    ours = queued.Job(
        None,
        ("--config", "experiments/spct_27b.py", "--workdir", "gs://bucket/x", "--config.name=it's"),
        "",
    ).command_id
    for by in ("0123456789ab one", f"{ours} another"):
        assert cloud([], [DONE], exists=True, started="0", by=by) == 0
        assert "scp" in cloud.memory()["calls"] and not cloud.memory()["program"]


def test_a_resource_that_runs_another_command_is_left_alone(cloud):
    assert cloud([], [], exists=True, started=True, by="0123456789ab one") == 2
    memory = cloud.memory()
    assert memory["exists"] and not {"scp", "delete"} & set(memory["calls"])
    assert "grm-27b runs another command: use another --name" in cloud.said[-1]


def test_a_running_program_of_another_commit_is_followed_and_said(cloud):
    assert cloud([], [], exists=True, started=True, tree="two", by=None) == 0
    assert not any("another commit" in line for line in cloud.said)
    ours = queued.Job(
        None,
        ("--config", "experiments/spct_27b.py", "--workdir", "gs://bucket/x", "--config.name=it's"),
        "",
    ).command_id
    assert cloud([], [], exists=True, started=True, tree="two", by=f"{ours} one") == 0
    assert (
        any("another commit" in line for line in cloud.said)
        and "scp" not in cloud.memory()["calls"]
    )


def test_keep_leaves_it_and_says_so(cloud):
    assert cloud([ACTIVE], [DONE], keep=True) == 0
    assert (
        cloud.memory()["exists"]
        and "costs until it is deleted: gcloud compute tpus" in cloud.said[-1]
    )


def test_several_slices_are_several_nodes(cloud):
    assert cloud([ACTIVE], [DONE, DONE], num_slices=2) == 0
    assert check_nothing_is_left(cloud)["calls"].count("scp") == 2


WORDS = [
    "--config",
    "experiments/spct_27b.py",
    "--on",
    "queued-resource",
    "--name",
    "grm-27b",
    "--zone",
    "us-central2-b",
]


def test_data_that_the_workers_would_not_get_is_refused_before_anything_is_created(cloud, capsys):
    cloud([ACTIVE], [DONE])
    Path(os.environ["STAND_IN_STATE"]).write_text(json.dumps(cloud.memory() | {"calls": []}))
    words = [
        *WORDS,
        "--accelerator",
        "v4-64",
        "--workdir",
        "gs://b/x",
        "--config.tokenizer=/home/me/tokenizer",
    ]
    assert tpu.main([*words, "--config.init=gs://b/weights"]) == 2
    said = capsys.readouterr().err
    assert (
        "launch: config.tokenizer names /home/me/tokenizer, config.data.judging (skywork) names data/skywork"
        in said
    )
    assert (
        ", and 5 more: workers get committed files only; copy it to a bucket" in said
        and said.count("\n") == 1
    )
    assert cloud.memory()["calls"] == ["bucket"]
    assert tpu.main([*words, "--dry_run"]) == 0  # creates nothing
    assert "launch: warning: config.tokenizer names /home/me/tokenizer" in capsys.readouterr().err


def test_data_in_buckets_and_in_the_commit_is_taken():
    from grm_jax.data import mixtures

    config = configs.load(
        "experiments/spct_27b.py", {"init": "gs://b/w", "tokenizer": "experiments", "stages": "rl"}
    )
    mixtures.add_comparisons("a", {"train": ["gs://b/a.jsonl", "README.md"]})
    config.data.update(judging="a", folder="")
    assert checks.missing_on_workers(config) == ""
    assert checks.missing_on_workers(configs.load("experiments/spct_tiny.py", {})) == ""


def test_dry_run_prints_commands_and_calls_nothing(cloud, capsys):
    words = [
        *WORDS,
        "--accelerator",
        "v4-64",
        "--spot",
        "--workdir",
        "gs://b/x",
        "--config.rl.beta=0.02",
        "--dry_run",
    ]
    assert tpu.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(
        "gcloud compute tpus queued-resources create grm-27b --zone=us-central2-b --accelerator-type=v4-64"
    )
    assert "--spot" in lines[1] and "--runtime-version=tpu-ubuntu2204-base" in lines[1]
    assert any("--config.rl.beta=0.02 --workdir gs://b/x" in line for line in lines)
    assert "delete grm-27b" in lines[-1]


@pytest.mark.parametrize(
    "words, said",
    [
        ([*WORDS, "--workdir", "gs://b/x"], "--accelerator missing"),
        ([*WORDS, "--accelerator", "v4-64"], "--workdir gs://BUCKET/FOLDER"),
        ([*WORDS, "--accelerator", "v4-63", "--workdir", "gs://b/x"], "'v4-63' does not exist"),
        (
            [*WORDS, "--accelerator", "v4-8", "--workdir", "gs://b/x", "--config.mesh.fsdp=3"],
            "does not make 4 chips of 1 x v4-8",
        ),
        (
            [*WORDS, "--accelerator", "v4-8", "--workdir", "gs://b/x", "--num_slices", "2"],
            "mesh data=1 is not a multiple of the 2 slices: fsdp and tensor stay inside one slice, set data=2",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_created(words, said, capsys):
    assert tpu.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_bucket_that_cannot_be_reached(cloud, capsys, tmp_path):
    cloud([ACTIVE], [DONE])
    state = cloud.memory() | {
        "fails": {"bucket": ["ERROR: (gcloud) 404: gs://b not found"]},
        "calls": [],
    }
    Path(os.environ["STAND_IN_STATE"]).write_text(json.dumps(state))
    assert tpu.main([*WORDS, "--accelerator", "v4-64", "--workdir", "gs://b/x"]) == 2
    assert "gs://b/x is not readable: ERROR: (gcloud) 404" in capsys.readouterr().err
    assert cloud.memory()["calls"] == ["bucket"]


def test_the_archive_holds_the_commit_and_the_experiment():
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


def test_what_is_sent_to_the_workers_is_shell_that_does_it(tmp_path):
    """The commands themselves, run by bash in a folder that stands for a worker's home."""
    import subprocess
    import time

    home = tmp_path / queued.HOME
    python = home / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nshift\nprintf "%s\\n" "$@"\nsleep 1\nexit 75\n')
    python.chmod(0o755)
    sent = []

    def worker(arguments):
        command = next(
            (w.removeprefix("--command=") for w in arguments if w.startswith("--command=")), "true"
        )
        sent.append(command)
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        return gcloud.Result(done.returncode, done.stdout, done.stderr)

    words = ("--config", "x.py:a=1", '--config.name=it\'s $HOME "here"')
    job = queued.Job(gcloud.Resource("grm", "z", "v4-8"), words, "tree.tar.gz")
    driver = queued._Driver(job, worker, print, lambda _: None)
    assert driver.inspect() == ("-", "-", "lost")
    driver.start()
    time.sleep(0.3)
    assert driver.inspect() == (job.command_id, "-", "running")
    status, text = driver.follow(0)
    assert (status, text.splitlines()[:3]) == ("running", list(words))
    time.sleep(1.2)
    assert driver.follow(len(text.encode())) == ("75", "")
    assert driver.inspect() == (job.command_id, "-", "75")
    errors = worker([f"--command={queued.ERRORS}"]).out
    assert errors.startswith("--- ") and words[0] in errors
