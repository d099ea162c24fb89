"""The JobSet of N shards and their merge: fields of TPU pods, commands that run, refused ones."""

import json
import os
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from grm_jax.evals import cli as evaluation, merge
from grm_jax.judging import cli as judging, shards
from launch import tpu
from launch.compile.slices import all_slices, get_slice

SCHEMA = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())
FLAGS = ["--on", "gke", "--print", "--name", "judges", "--image", "example/grm:1"]
SLICE = ["--accelerator", "v5litepod-8"]
JUDGE = ["judge", "gs://b/my in.jsonl", "gs://b/out.jsonl", "--model", "gs://b/model", "--k", "8"]
EVAL = ["eval", "--benchmark", "pandalm", "--data", "gs://b/data", "--model", "org/model"]
EVAL += ["--out", "gs://b/eval"]


def printed(capsys, command, *flags, count=8):
    argv = [*FLAGS, *(flags or SLICE), "--shards", str(count), "--", *command]
    assert tpu.main(argv) == 0
    text = capsys.readouterr().out
    jobset = yaml.safe_load(text)
    jsonschema.validate(jobset, SCHEMA)
    jobs = {job["name"]: job["template"]["spec"] for job in jobset["spec"]["replicatedJobs"]}
    return jobset, jobs["shard"], jobs["merge"]


def arguments_of(job, index, tmp_path):
    """Runs the script of a pod with a program that prints its arguments; returns them."""
    (container,) = job["template"]["spec"]["containers"]
    shell, flag, script = container["command"]
    program = tmp_path / "python"
    program.write_text('#!/bin/bash\nprintf "%s\\n" "${@:3}"\n')
    program.chmod(0o755)
    script = script.replace("/grm_jax/.venv/bin/python", str(program)).replace("cd /grm_jax &&", "")
    environment = {**os.environ, "JOB_COMPLETION_INDEX": str(index)}
    done = subprocess.run([shell, flag, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_pod_judges_its_shard_on_one_tpu_host(capsys, tmp_path):
    jobset, shard, _ = printed(capsys, JUDGE)
    assert shard["completionMode"] == "Indexed"
    assert shard["completions"] == shard["parallelism"] == 8
    pod = shard["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x4",
    }
    assert jobset["spec"]["network"] == {"enableDNSHostnames": False}
    environment = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert (environment["TPU_WORKER_ID"], environment["TPU_WORKER_HOSTNAMES"]) == ("0", "localhost")
    resources = pod["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"] == {"google.com/tpu": 8}
    for index in (0, 7):
        command, *arguments = arguments_of(shard, index, tmp_path)
        args = judging.parser().parse_args(arguments)
        assert command == "judge" and args.resume and args.mesh == "fsdp=-1"
        assert args.input == "gs://b/my in.jsonl" and args.output == "gs://b/out.jsonl"
        assert str(shards.Shard.parse(args.shard)) == f"{index + 1}/8"
    assert jobset["metadata"]["name"] == "judges"


def test_the_merge_waits_for_all_shards_and_needs_no_tpu(capsys, tmp_path):
    jobset, _, job = printed(capsys, JUDGE)
    assert jobset["spec"]["replicatedJobs"][1]["dependsOn"] == [
        {"name": "shard", "status": "Complete"}
    ]
    pod = job["template"]["spec"]
    assert "nodeSelector" not in pod and job["completions"] == 1
    assert "google.com/tpu" not in pod["containers"][0]["resources"]["limits"]
    command, *arguments = arguments_of(job, 0, tmp_path)
    args = merge.parser().parse_args(arguments)
    assert command == "merge" and args.out == "gs://b/out.jsonl" and args.overwrite
    assert args.shards == ["gs://b/out-*-of-00008.jsonl"]


def test_an_evaluation_in_shards(capsys, tmp_path):
    _, shard, job = printed(capsys, EVAL, "--accelerator", "v6e-1", "--spot", "--queue", "q")
    command, *arguments = arguments_of(shard, 2, tmp_path)
    args = evaluation.parser().parse_args(arguments)
    assert command == "eval" and args.shard == "3/8" and args.mesh is None
    assert shard["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert arguments_of(job, 0, tmp_path)[1:] == [
        *("gs://b/eval", "--out", "gs://b/eval", "--overwrite")
    ]


def test_a_lost_node_costs_no_try_and_a_wrong_command_ends_the_jobset(capsys):
    jobset, shard, _ = printed(capsys, JUDGE)
    lost, wrong = shard["podFailurePolicy"]["rules"]
    assert lost["action"] == "Ignore" and lost["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert wrong["action"] == "FailJob" and wrong["onExitCodes"]["values"] == [2]
    assert shard["backoffLimitPerIndex"] >= 10
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and "PodFailurePolicy" in rule["onJobFailureReasons"]


@pytest.mark.parametrize("status, expected", [(0, 0), (1, 0), (2, 2), (137, 137)])
def test_error_rows_are_finished_work(capsys, tmp_path, status, expected):
    _, shard, _ = printed(capsys, JUDGE)
    script = shard["template"]["spec"]["containers"][0]["command"][2]
    program = tmp_path / "python"
    program.write_text(f"#!/bin/bash\nexit {status}\n")
    program.chmod(0o755)
    script = script.replace("/grm_jax/.venv/bin/python", str(program)).replace("cd /grm_jax &&", "")
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "0"}
    assert subprocess.run(["bash", "-c", script], env=environment).returncode == expected


@pytest.mark.parametrize("name", sorted(n for n in all_slices() if get_slice(n).hosts == 1))
def test_every_slice_of_one_host_has_a_valid_manifest(capsys, name):
    _, shard, _ = printed(capsys, JUDGE, "--accelerator", name, count=2)
    (container,) = shard["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == get_slice(name).chips


@pytest.mark.parametrize(
    "argv, error",
    [
        ([*FLAGS, *SLICE, "--shards", "8"], "--shards N needs a command after --"),
        ([*FLAGS, *SLICE, "--", *JUDGE], "--config"),
        ([*FLAGS, *SLICE, "--shards", "0", "--", *JUDGE], "--shards 0"),
        ([*FLAGS, "--shards", "8", "--", *JUDGE], "--shards needs --on gke, --name and --acc"),
        ([*FLAGS[:2], *FLAGS[3:], *SLICE, "--shards", "8", "--", *JUDGE], "add --print"),
        ([*FLAGS, *SLICE, "--shards", "8", "--", "serve", "x"], "--shards runs grm judge or grm"),
        ([*FLAGS, *SLICE, "--shards", "8", "--config", "x", "--", *JUDGE], "remove --config"),
        (
            [*FLAGS, "--accelerator", "v5litepod-16", "--shards", "8", "--", *JUDGE],
            "--accelerator=v5litepod-16 has 4 hosts: a shard runs on one host",
        ),
        (
            [*FLAGS, *SLICE, "--shards", "8", "--", *JUDGE, "--shard", "1/8"],
            "remove --shard: the manifest sets it",
        ),
        (
            [*FLAGS, *SLICE, "--shards", "8", "--", "judge", "in.jsonl", *JUDGE[2:]],
            "IN in.jsonl is not in a bucket",
        ),
        ([*FLAGS, *SLICE, "--shards", "8", "--", *EVAL[:-2]], "--out eval is not in a bucket"),
        (
            [*FLAGS, *SLICE, "--shards", "8", "--", *JUDGE[:3], "--model", "./model"],
            "--model ./model is not in a bucket",
        ),
        *(
            (
                [*FLAGS, *SLICE, "--shards", "8", "--", *JUDGE, option, "./mine"],
                f"{option} ./mine is not {where}",
            )
            for option, where in (
                ("--lora", "in a bucket"),
                ("--tokenizer", "in a bucket"),
                ("--template", "committed"),
                ("--principles", "committed"),
            )
        ),
        (
            [*FLAGS, *SLICE, "--shards", "8", "--", *JUDGE, "--template", "gs://b/t.jinja"],
            "--template gs://b/t.jinja is read from the pod's disk: commit it",
        ),
        (
            ["--on", "gke", "--print", "--name", "J", *SLICE, "--image", "i", "--shards", "8"]
            + ["--", *JUDGE],
            "'J' is not a valid JobSet name",
        ),
    ],
)
def test_a_wrong_command_prints_one_line(argv, error, refused):
    assert error in refused(argv)


def test_a_committed_template_is_accepted(capsys):
    template = ["--template", "benchmarks/judge_small_model.jinja"]
    printed(capsys, [*JUDGE, *template])
    printed(capsys, [*JUDGE, "--template", "grm"])
    printed(capsys, [*JUDGE, "--template", "/in/the/image.jinja"])  # FLAGS name an image
