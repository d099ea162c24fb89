"""The JobSet manifest: valid by the API's schema, the slice's shape in it, the worker's command, and what GKE would refuse."""

import copy
import json
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from launch import config as configs
from launch import options as launch_options
from launch import tpu
from launch.cluster import distributed, gke, queued
from launch.compile.slices import all_slices, get_slice
from launch.errors import FAILED, PEER_LOST, START_AGAIN, WRONG_COMMAND, LaunchError

SCHEMA = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())
WORDS = [
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


def printed(capsys, *more):
    assert tpu.main([*WORDS, "--print", *more]) == 0
    jobset = yaml.safe_load(capsys.readouterr().out)
    jsonschema.validate(jobset, SCHEMA)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    return jobset, replicated, job, pod, pod["containers"][0]


def test_a_slice_is_a_job_and_a_host_is_a_pod(capsys):
    jobset, replicated, job, pod, worker = printed(capsys, *SLICE, *IMAGE, "--config.rl.beta=0.02")
    assert jobset["metadata"] == {
        "name": "grm-27b",
        "annotations": jobset["metadata"]["annotations"],
    }  # no queue
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
    assert {port["containerPort"] for port in worker["ports"]} >= {
        distributed.PORT,
        distributed.PORT + 1,
    }


def test_data_that_the_pods_may_not_have_is_told(capsys):
    printed(capsys, *SLICE, *IMAGE)
    assert tpu.main([*WORDS, "--print", *SLICE, *IMAGE]) == 0
    said = capsys.readouterr().err
    assert (
        said.startswith("launch: warning: config.data.judging (skywork) names data/skywork")
        and said.count("\n") == 1
    )
    assert "use its gs:// address, or include it in the image example/grm:1" in said


def test_the_command_is_that_of_the_workers_of_a_queued_resource():
    options, overrides = launch_options.parse([*WORDS, *SLICE, "--config.rl.beta=0.02"])
    _, words = tpu.worker_arguments(options, overrides)
    job = queued.Job(queued.Resource("n", "z", "v5p-128"), words, "tree")
    pod = _pod(gke.manifest(gke.Run("n", get_slice("v5p-128"), 1, words, "image")))
    command = shlex.join(pod["containers"][0]["command"]).removeprefix("/grm_jax/")
    assert any(command in line for line in queued.commands(job))


def test_two_slices_a_queue_and_spot_machines(capsys):
    two = ["--num_slices", "2", "--queue", "research", "--spot", "--config.mesh.data=2"]
    jobset, replicated, job, pod, _ = printed(capsys, *SLICE, *IMAGE, *two)
    assert replicated["replicas"] == 2 and job["parallelism"] == 16
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "research"}
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["terminationGracePeriodSeconds"] == 25


def test_only_what_cannot_be_mended_ends_the_jobset(capsys):
    """A wrong command and a loss that is NaN fail at once; a stop, a lost peer and a killed host start the run again."""
    jobset, _, job, pod, _ = printed(capsys, *SLICE, *IMAGE)
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
    "pods that restart by themselves": lambda j: _pod(j).update(restartPolicy="OnFailure"),
    "a number as label": lambda j: _pod(j)["nodeSelector"].update(
        {"cloud.google.com/gke-spot": True}
    ),
    "another version": lambda j: j.update(apiVersion="jobset.x-k8s.io/v1"),
}


def _pod(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_schema_sees_faults(fault):
    jobset = copy.deepcopy(gke.manifest(gke.Run("a", get_slice("v5p-128"), 1, (), "image")))
    FAULTS[fault](jobset)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(jobset, SCHEMA)


@pytest.mark.parametrize(
    "words, said",
    [
        ([*SLICE], "--on gke creates nothing: add --print"),
        ([*IMAGE, "--print"], "--accelerator missing: --on gke needs --name and --accelerator"),
        ([*SLICE, *IMAGE, "--print", "--zone", "z"], "--zone cannot be used with --on gke"),
        (["--accelerator", "v5p-100", *IMAGE, "--print"], "slice 'v5p-100' does not exist"),
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
def test_a_wrong_command_is_one_line(words, said, capsys):
    assert tpu.main([*WORDS, *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_name_of_the_greatest_length_is_taken():
    gke.manifest(gke.Run("a" * 46, get_slice("v5p-128"), 1, (), "image"))


def test_a_config_that_the_pods_would_not_have(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(configs.find("experiments/spct_27b.py").read_text())
    assert tpu.main([*WORDS, *SLICE, *IMAGE, "--print", "--config", str(file)]) == 2
    assert "pods do not get config" in capsys.readouterr().err


@pytest.fixture
def clone(tmp_path):
    """A clone whose commit is on its remote; gives (root, git)."""

    def git(*words, cwd=tmp_path):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            cwd=cwd,
            check=True,
            capture_output=True,
        )

    git("init", "-q", "--bare", "remote")
    git("clone", "-q", "remote", "root")
    root = tmp_path / "root"
    git("commit", "-q", "--allow-empty", "-m", "one", cwd=root)
    git("push", "-q", "origin", "HEAD", cwd=root)
    return root, lambda *words: git(*words, cwd=root)


def test_without_an_image_the_pods_fetch_the_commit_and_no_password_is_printed(clone):
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
    # A registry that does not answer is tried again; the program itself is process 1 and gets the SIGTERM.
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
