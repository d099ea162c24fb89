"""The JobSet manifest: valid under the API's schema, slice shape, command, refused runs."""

import copy
import json
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from grm_jax.hosts import distributed
from launch import config as configs, options as launch_options, tpu
from launch.cluster import gke, queued
from launch.compile.slices import all_slices, get_slice
from launch.errors import FAILED, PEER_LOST, START_AGAIN, WRONG_COMMAND, LaunchError

SCHEMA = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())
ARGUMENTS = [
    "--config",
    "experiments/spct_27b.py",
    "--on",
    "gke",
    "--name",
    "grm-27b",
    "--workdir",
    "gs://bucket/x",
]
SLICE, IMAGE = ["--accelerator", "v5p-128"], ["--image", "example/grm:1"]


def print_jobset(capsys, *more):
    """Prints a valid manifest; returns the JobSet, its replicated job, job, pod and container."""
    assert tpu.main([*ARGUMENTS, "--print", *more]) == 0
    jobset = yaml.safe_load(capsys.readouterr().out)
    jsonschema.validate(jobset, SCHEMA)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    return jobset, replicated, job, pod, pod["containers"][0]


def test_a_slice_is_a_job_and_a_host_is_a_pod(capsys):
    jobset, replicated, job, pod, worker = print_jobset(
        capsys, *SLICE, *IMAGE, "--config.rl.beta=0.02"
    )
    assert jobset["metadata"] == {
        "name": "grm-27b",
        "annotations": jobset["metadata"]["annotations"],
    }
    assert replicated["replicas"] == 1
    # 128 TensorCores: 64 chips as 4 x 4 x 4, four to a host.
    assert job["parallelism"] == job["completions"] == 16 and job["completionMode"] == "Indexed"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    assert worker["resources"] == {
        "requests": {"google.com/tpu": 4},
        "limits": {"google.com/tpu": 4},
    }
    assert worker["image"] == "example/grm:1" and worker["workingDir"] == "/grm_jax"
    options, overrides = launch_options.parse(worker["command"][2:])
    assert worker["command"][:2] == ["/grm_jax/.venv/bin/python", "launch/tpu.py"]
    assert (options.config, options.workdir, options.on) == (
        "experiments/spct_27b.py",
        "gs://bucket/x",
        None,
    )
    assert overrides == {"rl.beta": "0.02"}
    token, secret = worker["env"]  # a secret that need not exist, and that of the job
    assert secret["name"] == "GRM_JOB_SECRET" and len(secret["value"]) == 32
    assert token["name"] == "HF_TOKEN"
    assert token["valueFrom"]["secretKeyRef"]["optional"] is True
    assert {port["containerPort"] for port in worker["ports"]} >= {
        distributed.PORT,
        distributed.PORT + 1,
    }


def test_files_that_the_pods_may_not_have_cause_a_warning(capsys):
    print_jobset(capsys, *SLICE, *IMAGE)
    from_files = "--config.data.judging=spct"
    assert tpu.main([*ARGUMENTS, from_files, "--print", *SLICE, *IMAGE]) == 0
    warning = capsys.readouterr().err
    assert (
        warning.startswith("launch: warning: config.data.judging (skywork) names data/skywork")
        and warning.count("\n") == 1
    )
    assert "use its gs:// address, or include it in the image example/grm:1" in warning


def test_pods_run_the_same_command_as_queued_resources():
    options, overrides = launch_options.parse([*ARGUMENTS, *SLICE, "--config.rl.beta=0.02"])
    _, arguments = tpu.worker_arguments(options, overrides)
    job = queued.Job(queued.Resource("n", "z", "v5p-128"), arguments, "tree")
    pod = _pod(gke.manifest(gke.Run("n", get_slice("v5p-128"), 1, arguments, "image")))
    command = shlex.join(pod["containers"][0]["command"]).removeprefix("/grm_jax/")
    assert any(command in line for line in queued.commands(job))


def test_two_slices_a_queue_and_spot_machines(capsys):
    two = ["--num_slices", "2", "--queue", "research", "--spot", "--config.mesh.data=2"]
    jobset, replicated, job, pod, _ = print_jobset(capsys, *SLICE, *IMAGE, *two)
    assert replicated["replicas"] == 2 and job["parallelism"] == 16
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "research"}
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["terminationGracePeriodSeconds"] == 25


def test_only_permanent_failures_end_the_jobset(capsys):
    """A wrong command or a NaN loss fails; a stop, a lost peer or a killed host restarts."""
    jobset, _, job, pod, _ = print_jobset(capsys, *SLICE, *IMAGE)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and set(rule["onExitCodes"]["values"]) == {
        FAILED,
        WRONG_COMMAND,
    }
    assert not {START_AGAIN, PEER_LOST, 137, 143} & set(rule["onExitCodes"]["values"])
    policy = jobset["spec"]["failurePolicy"]
    assert (
        policy["maxRestarts"] >= 10 and job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    )
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    assert pod["terminationGracePeriodSeconds"] >= 300


@pytest.mark.parametrize("name", sorted(all_slices()))
def test_every_slice_has_a_valid_manifest(name):
    tpu_slice = get_slice(name)
    jobset = gke.manifest(gke.Run("a", tpu_slice, 1, ("--config", "c.py"), "image"))
    jsonschema.validate(jobset, SCHEMA)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    chips = job["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] * chips == tpu_slice.chips


FAULTS = {
    "a misspelt field": lambda j: j["spec"].update(failurePolcy={}),
    "a job without template": lambda j: j["spec"]["replicatedJobs"][0].pop("template"),
    "hosts as text": lambda j: j["spec"]["replicatedJobs"][0]["template"]["spec"].update(
        parallelism="16"
    ),
    "no such action": lambda j: j["spec"]["failurePolicy"]["rules"][0].update(action="Retry"),
    "a rule without name": lambda j: j["spec"]["failurePolicy"]["rules"][0].pop("name"),
    "pods that restart": lambda j: _pod(j).update(restartPolicy="OnFailure"),
    "a boolean as label": lambda j: _pod(j)["nodeSelector"].update(
        {"cloud.google.com/gke-spot": True}
    ),
    "another version": lambda j: j.update(apiVersion="jobset.x-k8s.io/v1"),
}


def _pod(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_schema_detects_faults(fault):
    jobset = copy.deepcopy(gke.manifest(gke.Run("a", get_slice("v5p-128"), 1, (), "image")))
    FAULTS[fault](jobset)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(jobset, SCHEMA)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ([*SLICE], "--on gke creates nothing: add --print"),
        ([*IMAGE, "--print"], "--accelerator missing: --on gke needs --name and --accelerator"),
        ([*SLICE, *IMAGE, "--print", "--zone", "z"], "--zone cannot be used with --on gke"),
        (["--accelerator", "v5p-100", *IMAGE, "--print"], "slice 'v5p-100' does not exist"),
        (
            [*SLICE, *IMAGE, "--print", "--config.rft.sampling.url=http://me:pass@host/v1"],
            "url contains a password or key",
        ),
        ([*SLICE, *IMAGE, "--print", "--num_slices", "0"], "--num_slices=0: use 1 or more"),
        (
            [*SLICE, *IMAGE, "--print", "--config.mesh.tensor=3"],
            "does not make 64 chips of 1 x v5p-128",
        ),
        (
            [*SLICE, *IMAGE, "--print", "--config.rl.prompts=8"],
            "config.rl.prompts=8 does not divide over mesh data x fsdp = 16",
        ),
        (
            [*SLICE, *IMAGE, "--print", "--config.mesh.tensor=64"],
            "mesh tensor=64 does not divide the 16 KV heads",
        ),
        (
            [
                "--accelerator",
                "v5p-8",
                *IMAGE,
                "--print",
                "--num_slices",
                "2",
                "--config.mesh.data=2",
            ],
            "GKE connects only slices of several hosts",
        ),
        ([*SLICE, *IMAGE, "--print", "--num_slices", "2"], "inside one slice, set data=2"),
        ([*SLICE, *IMAGE, "--print", "--name", "GRM_27B"], "'GRM_27B' is not a valid JobSet name"),
        (
            [*SLICE, *IMAGE, "--print", "--name", "a" * 60],
            "at most 46 lower-case letters, digits and dashes",
        ),
        (
            [*SLICE, *IMAGE, "--print", "--workdir", "runs/x"],
            "--on gke needs --workdir gs://BUCKET/FOLDER",
        ),
    ],
)
def test_a_wrong_command_prints_one_line(arguments, error, refused):
    assert error in refused([*ARGUMENTS, *arguments])


def test_a_name_of_maximum_length_is_accepted():
    gke.manifest(gke.Run("a" * 46, get_slice("v5p-128"), 1, (), "image"))


def test_a_config_outside_the_tree_is_refused(tmp_path, refused):
    file = tmp_path / "mine.py"
    file.write_text(configs.find("experiments/spct_27b.py").read_text())
    error = refused([*ARGUMENTS, *SLICE, *IMAGE, "--print", "--config", str(file)])
    assert "workers do not get config" in error


@pytest.fixture
def clone(tmp_path):
    """A clone whose commit is on its remote: (root, git)."""

    def git(*arguments, cwd=tmp_path):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=cwd,
            check=True,
            capture_output=True,
        )

    git("init", "-q", "--bare", "remote")
    git("clone", "-q", "remote", "root")
    root = tmp_path / "root"
    git("commit", "-q", "--allow-empty", "-m", "one", cwd=root)
    git("push", "-q", "origin", "HEAD", cwd=root)
    return root, lambda *arguments: git(*arguments, cwd=root)


def test_without_an_image_the_pods_fetch_the_commit_and_no_password_is_print_jobset(clone):
    root, git = clone
    git("remote", "set-url", "origin", "https://me:secret@host.example/team/grm.git")
    url, commit = gke.public_tree(root)
    assert url == "https://host.example/team/grm.git"
    jobset = gke.manifest(
        gke.Run("a", get_slice("v5p-8"), 1, ("--config", "it's.py"), tree=(url, commit))
    )
    jsonschema.validate(jobset, SCHEMA)
    (worker,) = _pod(jobset)["containers"]
    shell, flag, script = worker["command"]
    assert (shell, flag, worker["image"]) == ("bash", "-c", "python:3.11")
    # A failed download restarts the pod. `exec` makes the program process 1: it gets the SIGTERM.
    assert commit in script and f"|| exit {START_AGAIN};" in script and "secret" not in script
    assert script.endswith("exec .venv/bin/python launch/tpu.py --config 'it'\"'\"'s.py'")
    assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0


def test_a_tree_that_pods_cannot_fetch_is_refused(clone):
    root, git = clone
    with pytest.raises(LaunchError, match="its git remote has no https:// address; give --image"):
        gke.public_tree(root)
    git("remote", "set-url", "origin", "https://host.example/team/grm.git")
    git("commit", "-q", "--allow-empty", "-m", "two")
    with pytest.raises(LaunchError, match="it is not on the remote; push it, or give --image"):
        gke.public_tree(root)


def test_the_time_to_join_is_that_of_the_command(capsys):
    *_, worker = print_jobset(capsys, *SLICE, *IMAGE, "--timeout", "3600")
    assert "--timeout=3600" in str(worker["command"])
    *_, worker = print_jobset(capsys, *SLICE, *IMAGE)
    assert "--timeout" not in str(worker["command"])
