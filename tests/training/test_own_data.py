"""Tests experiments/own_data.py: a file and a model to a judge, with the open fields set."""

import http.server
import json
import logging
import shutil
import sys
import threading

import jax
import numpy as np
import pytest
from flax import nnx

import grm_jax.data
from experiments import own_data
from grm_jax import checkpoints
from grm_jax.config_fields import set_field
from grm_jax.data import splits, world
from grm_jax.data.comparisons import read_rows
from grm_jax.data.world.vocabulary import vocabulary_path
from grm_jax.models import build_model, get_config
from grm_jax.models.config import CONFIGS
from grm_jax.training import (
    endpoint_sampler,
    inputs,
    loop,
    machines,
    main,
    own_config,
    own_file,
    own_report,
    rft,
    rft_samplers,
    sources,
    stop,
)

GIB = 2**30
CPU = machines.Machine(1, 8 * GIB, "cpu")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A random model of no registered size, with the vocabulary of the judging world."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    cfg = get_config(
        "tiny_gemma2", vocab_size=800, d_model=32, d_ff=32, num_layers=2, max_length=192
    )
    checkpoints.save(build_model(cfg, nnx.Rngs(0)), folder, like=vocabulary_path())
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """40 comparisons of the judging world in our own layout, one of them twice."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [splits.as_row(c) for c in world.make_items("train", 0, 60) if c.n > 1][:40]
    rows.append(rows[0])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_config(pairs, model_folder, **fields):
    config = own_data.get_config()
    given = {"data.file": pairs, "init": model_folder, "rft.sampler": "teacher"}
    for field, value in {**given, "tensorboard": "false", **fields}.items():
        set_field(config, field.replace("__", "."), str(value))
    return config


def test_the_open_fields_come_from_model_data_and_devices(pairs, model_folder, tmp_path):
    config = own_config.complete(make_config(pairs, model_folder), tmp_path, CPU)
    train, held_out = config.rft.comparisons, config.eval.comparisons
    assert train + held_out == 40 and 8 <= held_out <= 10
    assert config.model == "checkpoint:toy" and get_config(config.model).num_layers == 2
    assert config.tokenizer == str(model_folder) and config.template == "compact"
    lengths = own_config.prompt_lengths(
        [row.comparison for row in read_rows(pairs)], "compact", sources.load_tokenizer(config)
    )
    assert lengths[-1] <= config.rl.prompt_len <= lengths[-1] + 10
    assert config.rl.prompt_len + config.rl.max_new_tokens <= 192
    assert config.seq_len > config.rl.prompt_len + config.rl.max_new_tokens
    assert config.rl.steps == -(-2 * train // config.rl.prompts)
    assert config.model_overrides.dtype == config.rl.reference_dtype == "float32"
    assert not own_config.is_open(config) and not own_config.is_open(own_data_like_tiny())
    rft = config.rft  # every trial of the RFT stage, of which hinted ones are left out later
    assert config.meta_rm.rft_trials == rft.comparisons * (rft.samples + rft.hinted)


@pytest.fixture
def released_models():
    """Registers only the released models during a test."""
    before = dict(CONFIGS)
    CONFIGS.pop("checkpoint:toy", None)
    yield
    CONFIGS.clear()
    CONFIGS.update(before)


@pytest.mark.usefixtures("released_models")
def test_the_model_of_a_run_is_named_after_its_stage(pairs, model_folder, tmp_path):
    exported = tmp_path / "spct" / "rft" / "hf"
    shutil.copytree(model_folder, exported)
    config = own_config.complete(make_config(pairs, exported), tmp_path / "a", CPU)
    assert config.model == "rft of spct" and get_config(config.model).num_layers == 2
    (tmp_path / "b").mkdir()
    saved = {"init": str(exported), "model": "checkpoint:hf"}
    (tmp_path / "b/config.json").write_text(json.dumps(saved))
    config = own_config.complete(make_config(pairs, exported), tmp_path / "b", CPU)
    assert config.model == "checkpoint:hf" and get_config(config.model).num_layers == 2


def own_data_like_tiny():
    from experiments import spct_tiny

    return spct_tiny.get_config()


def test_more_data_gives_more_steps_and_larger_batches(model_folder, tmp_path):
    sizes = []
    for count in (40, 400, 4000):
        rows = [{"prompt": f"rank {i}", "chosen": "a b", "rejected": "b"} for i in range(count)]
        file = tmp_path / f"{count}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = own_config.complete(make_config(file, model_folder), tmp_path / str(count), CPU)
        sizes.append((config.rl.prompts, config.rl.steps))
    assert sizes == [(4, 16), (16, 40), (16, 438)]  # the largest held-out part is 500


def test_a_setting_of_the_command_line_is_kept(pairs, model_folder, tmp_path):
    fields = {"rl.steps": 3, "rl.lr": 0.5, "template": "compact", "rl.max_new_tokens": 24}
    config = own_config.complete(make_config(pairs, model_folder, **fields), tmp_path, CPU)
    assert (config.rl.steps, config.rl.lr, config.rl.max_new_tokens) == (3, 0.5, 24)


def test_devices_decide_the_mesh_and_the_micro_rows(pairs, model_folder, tmp_path):
    def sizes(machine):
        config = own_config.complete(make_config(pairs, model_folder), tmp_path, machine)
        assert config.batch_size % (config.mesh.data * config.mesh.fsdp) == 0
        return dict(config.mesh), config.rl.micro_rows, config.rl.prompts

    mesh, rows, prompts = sizes(CPU)
    assert mesh == {"data": 1, "fsdp": 1, "tensor": 1} and rows == prompts
    assert sizes(machines.Machine(8, GIB, "tpu"))[0] == {"data": 1, "fsdp": 8, "tensor": 1}
    # 64 devices do not divide a width of 32.
    assert sizes(machines.Machine(64, GIB, "tpu"))[0] == {"data": 2, "fsdp": 32, "tensor": 1}
    assert sizes(machines.Machine(1, 40 << 20, "tpu"))[1] < rows
    with pytest.raises(ValueError, match="toy: training 0.0M parameters takes .* more devices"):
        sizes(machines.Machine(1, 1 << 19, "tpu"))


@pytest.mark.parametrize(
    "fields, error",
    [
        ({"data.file": ""}, "config.data.file is empty: name your comparisons"),
        ({"init": ""}, "config.init is empty: "),
        ({"data.file": "no.jsonl"}, "no.jsonl"),
        ({"init": "no_model"}, "no_model"),
        ({"rl.max_new_tokens": 180}, "has a context of 192 tokens, and the prompts of"),
        ({"rft.sampler": "endpoint"}, "config.rft.sampling.url is empty"),
    ],
)
def test_a_wrong_file_or_model_is_an_error_at_once(fields, error, pairs, model_folder, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        own_config.complete(make_config(pairs, model_folder, **fields), tmp_path, CPU)


def test_queries_of_a_held_out_file_are_not_trained_on(pairs, model_folder, tmp_path, caplog):
    lines = pairs.read_text().splitlines()
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("\n".join(lines[:5]))
    config = make_config(pairs, model_folder, **{"data.held_out_file": held_out})
    index = own_file.index(config, tmp_path)
    assert {name: len(part) for name, part in index.sections.items()} == {
        "train": 35, "held_out": 5
    }  # fmt: skip
    assert "5 of 40 comparisons of" in caplog.text
    config = make_config(held_out, model_folder, **{"data.held_out_file": pairs})
    with pytest.raises(ValueError, match="nothing is left to train on"):
        own_file.index(config, tmp_path / "none")


def test_a_changed_file_is_refused_and_a_removed_one_is_not_needed(pairs, model_folder, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(pairs.read_bytes())
    config = make_config(copy, model_folder)
    before = own_file.index(config, tmp_path)[0]
    (tmp_path / "config.json").touch()
    copy.write_text("".join(copy.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(
        ValueError, match=f"config.data.file has changed .* or remove {tmp_path} to"
    ):
        own_file.index(config, tmp_path)
    copy.unlink()
    assert own_file.index(config, tmp_path)[0] == before


def test_a_run_without_stages_starts_over_with_another_file(pairs, model_folder, tmp_path):
    with pytest.raises(ValueError, match="steps"):
        main.run(make_config(pairs, model_folder, **{"rl.warmup_steps": 9999}), tmp_path)
    assert (tmp_path / "data/file_settings.json").exists()
    other = tmp_path / "other.jsonl"
    other.write_text("".join(pairs.read_text().splitlines(keepends=True)[:20]))
    for fields in ({}, {"data.held_out_share": 0.5}):
        index = own_file.index(make_config(other, model_folder, **fields), tmp_path)
        assert len(index) == 20
    assert len(list(read_rows(tmp_path / "data/held_out.jsonl"))) == len(index.sections["held_out"])


def test_single_responses_alone_are_refused_by_the_evaluation(model_folder, tmp_path):
    rows = [{"query": f"q{i}", "responses": ["a"], "label": [i % 2]} for i in range(8)]
    file = tmp_path / "singles.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="have one response, and the evaluation compares several"):
        own_file.index(make_config(file, model_folder), tmp_path)
    config = make_config(file, model_folder, stages="rft,rl")
    assert len(own_file.index(config, tmp_path)) == 8


def test_references_are_not_in_the_held_out_file(model_folder, tmp_path):
    rows = [{"query": f"q{i}", "responses": ["a", "b"], "label": 0, "reference": "a"}
            for i in range(8)]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own_file.index(make_config(file, model_folder), tmp_path)
    held_out = list(read_rows(tmp_path / "data" / "held_out.jsonl"))
    assert held_out and all(row.comparison.reference is None for row in held_out)


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def finished(pairs, model_folder, tmp_path_factory):
    """A whole run. A file needs no mixtures, so TensorFlow, seqio and TFDS fail to import."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tensorflow", "seqio", "tensorflow_datasets", "grm_jax.data.mixtures"):
            patch.setitem(sys.modules, name, None)
        patch.delattr(grm_jax.data, "mixtures", raising=False)
        return workdir, main.run(small(pairs, model_folder), workdir)


def small(pairs, model_folder):
    fields = {"rl.steps": 3, "rft.samples": 1, "eval.samples": 2, "eval.base_samples": 2}
    return make_config(pairs, model_folder, **{**fields, "rft.save_every": 2, "rl.save_every": 2})


def test_a_run_ends_with_a_judge_a_held_out_file_and_the_next_command(finished, capfd):
    workdir, result = finished
    config = json.loads((workdir / "config.json").read_text())
    assert config["rft"]["steps"] == result["rft"]["steps"] > 1
    held_out = list(read_rows(workdir / "data" / "held_out.jsonl"))
    assert len(held_out) == result["eval"]["items"] == config["eval"]["comparisons"]
    assert {cell["model"] for cell in result["eval"]["cells"]} >= {"base", "rft", "rl"}
    assert checkpoints.open_checkpoint(workdir / "rl" / "hf").model_config().num_layers == 2


def test_a_stopped_run_resumes_exactly_with_the_same_numbers(
    finished, pairs, model_folder, tmp_path, monkeypatch, caplog, capsys
):
    calls = []

    def requested(self):
        calls.append(1)
        return len(calls) == 3

    config = small(pairs, model_folder)
    with monkeypatch.context() as patch:
        patch.setattr(stop.StopSignal, "requested", requested)
        with pytest.raises(loop.Stopped):
            main.run(config, tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        main.run(small(pairs, model_folder), tmp_path)
    assert "changed" not in caplog.text
    workdir, _ = finished
    assert (tmp_path / "config.json").read_text() == (workdir / "config.json").read_text()
    for name in ("model.safetensors", "judge.json"):
        assert (tmp_path / "rl/hf" / name).read_bytes() == (workdir / "rl/hf" / name).read_bytes()
    accuracy, judge, empty, title, command, *more = capsys.readouterr().out.splitlines()[-8:]
    assert (empty, title) == ("", "Try next:") and [" report " in line for line in more][-2]
    assert len(more) == 3 and more[-1].endswith("/eval/example.py")
    assert accuracy.startswith("accuracy on ") and "before (base; 95% CI" in accuracy
    assert judge == f"judge: {tmp_path}/rl/hf"
    assert command == (
        f"  grm judge {tmp_path}/data/held_out.jsonl {tmp_path}/judged.jsonl "
        f"--model {tmp_path}/rl/hf"
    )


def test_the_closing_line_of_few_comparisons_says_that_they_are_too_few():
    def line(n):
        values = {"method": "Voting", "k": 1, "accuracy": 1.0, "high": 1.0}
        values["low"] = None if n == 1 else 1.0
        cells = [{"model": model, **values} for model in ("base", "rl")]
        return own_report._accuracies({"items": n, "cells": cells})

    assert line(30).endswith("100.0% after (rl; 95% CI 100.0–100.0)")
    assert line(1) == (
        "accuracy on 1 held-out comparison, 1 vote: 100.0% before (base), 100.0% after (rl); "
        "1 held-out comparison is too few to tell: hold out at least 30"
    )


def test_the_closing_line_compares_one_method():
    values = {"k": 1, "low": None, "high": None}
    cells = [
        {"model": model, "method": method, "accuracy": accuracy, **values}
        for model, method, accuracy in [
            *(("base", "Greedy", 0.5), ("rl", "Greedy", 0.6), ("rl", "Voting", 0.7))
        ]
    ]
    text = own_report._accuracies({"items": 30, "cells": cells})
    assert text.endswith("comparisons, greedy: 50.0% before (base), 60.0% after (rl)")
    cells.append(cells[0] | {"method": "Voting", "accuracy": 0.4})
    text = own_report._accuracies({"items": 30, "cells": cells})
    assert text.endswith("comparisons, 1 vote: 40.0% before (base), 70.0% after (rl)")


def test_a_model_whose_critiques_cannot_be_parsed_is_refused_early(pairs, model_folder, tmp_path):
    config = make_config(pairs, model_folder, **{"rft.sampler": "self", "rl.max_new_tokens": 8})
    with pytest.raises(ValueError) as error:
        main.run(config, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{model_folder}: 0 of 32 critiques can be parsed (")
    assert "--config.rft.sampler=endpoint" in message and "instruction-tuned" in message


def test_a_run_does_not_resume_with_another_model(finished, pairs, model_folder, tmp_path):
    config = small(pairs, model_folder)
    config.init = str(model_folder) + "/"
    with pytest.raises(ValueError, match="use another --workdir"):
        own_config.complete(config, finished[0], CPU)


def test_the_model_that_samples_is_freed_before_training(pairs, model_folder, tmp_path):
    config = make_config(pairs, model_folder, **{"rft.sampler": "self", "rl.max_new_tokens": 8})
    config = own_config.complete(config, tmp_path, machines.Machine.here())
    config.rft.min_parsed = 0.0
    before = len(jax.live_arrays())
    with pytest.raises(ValueError, match="the RFT set is empty"):
        tokenizer = sources.load_tokenizer(config)
        rft.prepare(config, tokenizer, None, tmp_path / "data", tmp_path)
    assert len(jax.live_arrays()) <= before + 2


# ---------------------------------------------------------------- endpoint


class Server(http.server.BaseHTTPRequestHandler):
    """Serves the models of `names`; a completion of an unknown model answers 404."""

    names: list = ["only"]

    def _answer(self, status, value):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def do_GET(self):
        self._answer(200, {"data": [{"id": name} for name in self.names]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] not in self.names:
            return self._answer(404, {"error": "no such model"})
        self._answer(200, {"choices": [{"message": {"content": "Hi"}, "finish_reason": "length"}]})

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    endpoint_sampler._answered.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/v1"
        httpd.shutdown()
    endpoint_sampler._answered.clear()


def test_an_endpoint_that_does_not_answer_is_an_error_at_once(pairs, model_folder, tmp_path):
    fields = {"rft.sampler": "endpoint", "rft.sampling.url": "http://127.0.0.1:9/v1"}
    for name in ("", "m"):
        config = make_config(pairs, model_folder, **fields, **{"rft.sampling.model": name})
        with pytest.raises(ValueError, match="127.0.0.1:9/v1 does not answer.*refused.*=self"):
            main.run(config, tmp_path)


def test_the_endpoint_names_its_model_or_lists_them(server, monkeypatch):
    assert endpoint_sampler.probe(server) == "only"
    with pytest.raises(ValueError, match="answered 404: .*no such model"):
        endpoint_sampler.probe(server, "another")
    endpoint_sampler._answered.clear()
    monkeypatch.setattr(Server, "names", ["a", "b"])
    with pytest.raises(ValueError, match="serves 2 models: set it to one of a, b"):
        endpoint_sampler.probe(server)


def test_other_hosts_take_the_model_of_the_endpoint_from_process_0(
    pairs, model_folder, tmp_path, monkeypatch
):
    sent = json.dumps({"model": "only"}).encode().ljust(4096)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(inputs, "broadcast_one_to_all", lambda _: np.frombuffer(sent, np.uint8))
    fields = {"rft.sampler": "endpoint", "rft.sampling.url": "http://127.0.0.1:9/v1"}
    config = make_config(pairs, model_folder, **fields)
    endpoint_sampler.probe_endpoint(config, tmp_path)
    assert config.rft.sampling.model == "only"


def test_the_first_failure_of_an_endpoint_is_logged_at_once(caplog):
    settings = rft_samplers.Endpoint("http://127.0.0.1:9", "m", 5, retries=2, pause=0.0)
    with pytest.raises(rft_samplers.TooManyFailed), caplog.at_level(logging.WARNING):
        endpoint_sampler.sampler(settings)([_request()] * 3)
    repeated = [r for r in caplog.records if "Repeating it up to 2 times" in r.message]
    assert len(repeated) == 1 and "refused" in repeated[0].message


def _request():
    from grm_jax.training.rft_data import RftOptions, requests_for
    from grm_jax.types import Comparison

    pair = Comparison("q", ("x", "y"), label=1, id="pair")
    return requests_for(pair, RftOptions(template="compact"))[0]
