"""Inputs by hub name: commits pinned in the run's config."""

import json

import jax
import numpy as np
from ml_collections import ConfigDict

from grm_jax import hub as hub_module
from grm_jax.training import inputs

FILES = {"config.json": b"{}", "model.safetensors": b"1"}


def make_config(path="org/base"):
    sampling = {"path": "org/sampler@main", "max_new_tokens": 4}
    return ConfigDict(
        {
            "init": path,
            "tokenizer": path,
            "rft": {"sampling": sampling},
            "data": {"judging": "world"},
        }
    )


def test_a_run_records_the_commits_and_resumes_with_them(hub, tmp_path):
    first, sampler = hub.add("org/base", FILES), hub.add("org/sampler", FILES)
    config = make_config()
    inputs.pin(config, tmp_path, {"org/base", "org/sampler@main"})
    assert (config.init, config.tokenizer) == (f"org/base@{first}",) * 2
    assert config.rft.sampling.path == f"org/sampler@{sampler}"
    (tmp_path / "config.json").write_text(config.to_json_best_effort())

    second = hub.add("org/base", FILES | {"config.json": b'{"a": 1}'})
    resumed = make_config()
    inputs.pin(resumed, tmp_path, ())
    assert json.loads(resumed.to_json_best_effort()) == json.loads(config.to_json_best_effort())
    chosen = make_config(f"org/base@{second}")
    inputs.pin(chosen, tmp_path, {chosen.init})
    assert chosen.init == f"org/base@{second}"
    local = make_config(str(tmp_path))
    inputs.pin(local, tmp_path, {str(tmp_path)})
    assert local.init == str(tmp_path)
    unused = make_config("org/none")  # not looked up
    inputs.pin(unused, tmp_path / "new", ())
    assert unused.init == "org/none"


def test_all_hosts_use_the_commits_of_process_0(hub, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    # Process 0 sends; another process, after the branch has moved, gets what was sent.
    monkeypatch.setattr(inputs, "broadcast_one_to_all", lambda x: sent.append(x) or sent[0])
    first = hub.add("org/base", FILES)
    for _ in range(2):
        config = make_config()
        inputs.pin(config, tmp_path, {"org/base"})
        assert (config.init, config.tokenizer) == (f"org/base@{first}",) * 2
        assert config.rft.sampling.path == "org/sampler@main"
        hub.add("org/base", FILES | {"config.json": b'{"a": 1}'})
        hub_module._listing.cache_clear()
    assert len(sent) == 2 and sent[0].shape == sent[1].shape and not np.array_equal(*sent)
