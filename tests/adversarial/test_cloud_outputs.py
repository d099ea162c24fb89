"""Damaged outputs of gcloud and of the metadata server: a run ends, waits between tries, and says
what may still cost."""

import random
import sys
from pathlib import Path

import fuzz
import pytest

from grm_jax.hosts import distributed
from launch.cluster import gcloud, queued
from launch.errors import LaunchError

sys.path.append(str(Path(__file__).parents[1] / "launch/cluster"))
import fake_gcloud  # noqa: E402

ACTIVE = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
PREEMPTED = ["PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED"]
OUTPUTS = (
    "",
    "\n",
    "ACTIVE\nACTIVE\n",
    "{}",
    '{"state": {"state": "ACTIVE"}}',
    "state: ACTIVE",
    "<html>502</html>",
    "active",
    "ACTIVE\x1b[31m",
    "\x00",
    "\udcff\udcfe",
    "[" * 5000,
    "UNKNOWN",
    "STATE_UNSPECIFIED",
    "x" * 100_000,
    "GRM_STATUS",
    "\nGRM_STATUS abc\n",
    "\nGRM_STATUS 99999999999\n",
    "\nGRM_STATUS ²\n",
    "\nGRM_STATUS running running\n",
    "- - running",
    "a b c d e f",
)
ERRORS = (
    "",
    "ERROR: (gcloud) UNAVAILABLE: try again",
    "ERROR: \x1b[31m\udcff " + "x" * 10_000,
    "Traceback (most recent call last):\n  File\nMemoryError",
    "ERROR: (gcloud) DEADLINE_EXCEEDED",
    "WARNING: \n\n\n",
)


class Cloud:
    """A cloud in this process, some of whose answers are damaged."""

    def __init__(self, rng, damaged, states, program):
        self.rng, self.damaged, self.calls, self.waited = rng, damaged, 0, 0.0
        self.last_state = ""  # that the cloud reported undamaged
        self.memory = {
            "states": states, "program": program, "fails": {}, "exists": False, "started": False,
            "status": ["running", "0"], "left": ["ACTIVE"], "now": "", "log": "", "calls": [],
            "violations": [], "job": "",
        }  # fmt: skip
        self.statuses = []

    def call(self, arguments):
        self.calls += 1
        assert self.calls < 5000, "no end"
        if self.rng.random() < self.damaged and "delete" not in arguments:
            if self.rng.random() < 0.5:
                return gcloud.Result(0, self.rng.choice(OUTPUTS), "")
            return gcloud.Result(self.rng.choice([1, 2, 255, -9]), "", self.rng.choice(ERRORS))
        if self.rng.random() < self.damaged:
            return gcloud.Result(1, "", self.rng.choice(ERRORS))
        result = gcloud.Result(*fake_gcloud.respond(self.memory, arguments))
        self.statuses += [word for word in result.out.split() if word == "0"]
        self.last_state = result.out.strip() if "describe" in arguments else self.last_state
        return result

    def sleep(self, seconds):
        assert 0 <= seconds <= queued.MOST_BACKOFF
        self.waited += seconds


def run(cloud, reports, **settings):
    resource = gcloud.Resource("grm-27b", "us-central2-b", "v4-64", 1, spot=True)
    settings = {"attempts": 3, "patience": 4, "tree": "one", "most_wait": 7200, **settings}
    job = queued.Job(resource, ("--config", "x.py"), "tree.tar.gz", **settings)
    return queued.run(job, cloud.call, reports.append, cloud.sleep)


def test_damaged_outputs_of_gcloud(record_property, cases):
    def draw(rng):
        states = [
            rng.choice([ACTIVE, ACTIVE, PREEMPTED, ["FAILED"], ["DELETING"] * 3, ["WAITING"] * 9])
            for _ in range(40)
        ]
        program = [
            [*rng.choices(["running", "0", "1", "75", "70", "134"], k=3), rng.choice(["0", "1"])]
            for _ in range(80)
        ]
        damaged = rng.choice([0.02, 0.1, 0.5, 1.0])
        label = f"{damaged} {states[:3]} {program[:3]}"
        return label, Cloud(rng, damaged, [list(s) for s in states], program)

    def check(cloud):
        reports = []
        status = run(cloud, reports)
        assert type(status) is int and 0 <= status < 256
        assert status or cloud.statuses, "success that nobody reported"
        text = "\n".join(reports)
        text.encode()  # printable on a UTF-8 terminal
        assert "\x1b" not in "".join(line for line in reports if line.startswith("launch:"))
        if cloud.memory["exists"] and cloud.last_state != "DELETING":
            assert any(t in text for t in ("may cost", "it costs until", "or end it: gcloud")), (
                text[-500:]
            )
        assert cloud.calls < 40 or cloud.waited > 20 * cloud.calls / 10, (
            f"{cloud.calls} calls in {cloud.waited:.0f} s"
        )

    draws = (draw(rng) for _, rng in cases(fast=100, full=1000))
    fuzz.run("outputs of gcloud", draws, check, record_property, refusals=())


@pytest.mark.parametrize("status", ["", "abc", "²", "99999999999", "running running", "-1"])
def test_a_damaged_status_of_the_program_is_read_again(status):
    cloud, damaged = Cloud(random.Random(0), 0.0, [ACTIVE], [["running", "0"]]), [status]
    respond = cloud.call

    def call(arguments):
        if damaged and any("log; echo; echo" in argument for argument in arguments):
            return gcloud.Result(0, f"\nGRM_STATUS {damaged.pop()}", "")
        return respond(arguments)

    cloud.call = call
    assert run(cloud, []) == 0 and not damaged


def test_a_resource_that_is_being_deleted_is_waited_for():
    """For ten minutes the name cannot be used; the one attempt succeeds."""
    cloud = Cloud(random.Random(0), 0.0, [ACTIVE], [["running", "0"]])
    cloud.memory.update(exists=True, left=["DELETING"] * 30 + ["GONE"])
    respond = cloud.call

    def call(arguments):
        result = respond(arguments)
        if "describe" in arguments and result.out.strip() == "GONE":
            cloud.memory["exists"] = False
            return gcloud.Result(1, "", "ERROR: NOT_FOUND: no such queued resource")
        return result

    cloud.call, reports = call, []
    assert run(cloud, reports) == 0
    assert cloud.waited >= 30 * 20 and sum("attempt" in line for line in reports) == 0
    assert sum("DELETING" in line for line in reports) == 1


def test_a_resource_whose_deletion_never_ends_is_reported():
    cloud = Cloud(random.Random(0), 0.0, [ACTIVE], [["0"]])
    cloud.memory.update(exists=True, left=["DELETING"])
    reports = []
    assert run(cloud, reports) == 1
    assert 7200 <= cloud.waited < 8000
    assert any("is still DELETING after 2.0 hours: use another --zone" in r for r in reports)


def test_attempts_wait_longer_each_time():
    cloud = Cloud(random.Random(0), 0.0, [["FAILED"]] * 20, [])
    waits, reports = [], []
    cloud.sleep = waits.append
    assert run(cloud, reports, attempts=8) == 1
    assert waits == [20, 40, 80, 160, 320, 640, 900]
    assert any("was lost 8 times" in line for line in reports)


def test_a_call_of_gcloud_that_hangs_has_failed(tmp_path, monkeypatch):
    program = tmp_path / "gcloud"
    program.write_text("#!/bin/sh\nexec sleep 30\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    result = gcloud.run(["compute", "x"], 0.2)
    assert result.code and "timed out after" in result.reason
    program.write_text("#!/bin/sh\nprintf 'half \\303'\n")
    assert gcloud.run(["compute", "x"]).out == "half \udcc3"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(LaunchError, match="gcloud"):
        gcloud.run(["compute", "x"])


ODD = ["", "-1", "1.0", "abc", "²", "1e9", "\x00", "9" * 400, "None", "0x1", " 1 ", *"012" * 4]


def test_damaged_environments_and_metadata_of_workers(record_property, cases):
    def draw(rng):
        environment = {
            "TPU_WORKER_ID": rng.choice(ODD),
            "TPU_WORKER_HOSTNAMES": rng.choice(["a,b", "", ",", "a:b:c,d", "[::1],b", "2,²"]),
            "MEGASCALE_NUM_SLICES": rng.choice(ODD),
            "MEGASCALE_SLICE_ID": rng.choice(ODD),
            "MEGASCALE_COORDINATOR_ADDRESS": rng.choice(["", "a:8080", ":", "::"]),
        }  # fmt: skip
        environment = {key: value for key, value in environment.items() if rng.random() < 0.8}
        tpu_env = "\n".join(f"{key}: '{value}'" for key, value in environment.items())
        attributes = {
            "agent-worker-number": rng.choice([None, *ODD]),
            "worker-network-endpoints": rng.choice([None, "", ",", "10.0.0.1,10.0.0.2"]),
            "tpu-env": rng.choice([None, "", ":", tpu_env, "x" * 10_000]),
        }  # fmt: skip
        if rng.random() < 0.5:
            environment = {}
        return f"{environment} {attributes}", (environment, attributes)

    def check(case):
        environment, attributes = case
        worker = distributed.find_worker(environment=environment, metadata=attributes.get)
        if worker is not None:
            assert 0 <= worker.process_id < worker.num_processes and worker.host

    draws = (draw(rng) for _, rng in cases(fast=300, full=3000))
    fuzz.run(
        "environments of workers", draws, check, record_property, (LaunchError, ValueError, OSError)
    )
