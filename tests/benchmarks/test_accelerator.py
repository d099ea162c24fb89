"""The accelerator kit at toy size: its parts run, budgets end them, results are kept."""

import json

import pytest

from benchmarks import accelerator, common
from grm_jax.models import get_config


@pytest.mark.parametrize("size", [accelerator.FULL, accelerator.TOY], ids=lambda size: size.model)
def test_peers_get_the_shape_of_our_model(size):
    cfg = get_config(size.model)
    fields = (
        "vocab_size",
        "d_model",
        "d_ff",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_dim",
    )
    assert size.layers == tuple(getattr(cfg, field) for field in fields)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("sampler", ("copy_bandwidth", "share_of_copy", "tokens_per_second", "warm_up_seconds")),
        ("grpo", ("rollout", "reference", "update")),
    ],
)
def test_a_part_measures_at_toy_size(part, fields, capsys):
    accelerator.run_part(part, accelerator.TOY)
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(measured[field] > 0 for field in fields)


def test_a_step_is_the_difference_between_many_tokens_and_one(monkeypatch):
    seconds = iter([100.0, 3.0, 2.0, 4.0, 18.0, 17.0, 17.0])  # warm-up, three of 1 token, of 16
    monkeypatch.setattr(accelerator, "seconds_of", lambda run: next(seconds))
    *_, last = accelerator.timed(lambda new: None, accelerator.TOY, lambda: 5)
    assert last["step_ms"] == pytest.approx(1e3) and last["peak_memory"] == 5
    assert last["tokens_per_second"] == pytest.approx(4 * 16 / 17)


def test_parts_share_the_budget_and_what_one_saves_goes_to_the_next(tmp_path, monkeypatch):
    now, given = [0.0], {}
    costs = {"sampler": 10.0, "grpo": 200.0, "tunix": 1.0}

    def stream(script, flag, name, *options, python, timeout):
        given[name] = timeout
        yield {"first": 1}
        now[0] += min(costs[name], timeout)
        if costs[name] > timeout:
            raise TimeoutError
        if name == "tunix":
            raise RuntimeError("line\nout of memory\n")

    monkeypatch.setattr(common, "stream_apart", stream)
    monkeypatch.setattr(accelerator.time, "perf_counter", lambda: now[0])
    out = tmp_path / "kit.json"
    results = accelerator.measure(["sampler", "grpo", "tunix"], 200, [], "", out)
    # 100, 70 and 30 seconds; the sampler needs 10 of its 100.
    assert given == {"sampler": 100, "grpo": 160, "tunix": 30}
    assert results["grpo"] == {"first": 1, "stopped": "after its 160 s"}
    assert results["tunix"] == {"first": 1, "error": "out of memory"}
    assert json.loads(out.read_text())["parts"] == results


def test_a_peer_that_does_not_import_is_skipped(monkeypatch, capsys):
    def part(size):
        import no_such_peer  # noqa: F401

        yield {}

    monkeypatch.setitem(accelerator.PARTS, "tunix", part)
    accelerator.run_part("tunix", accelerator.TOY)
    assert json.loads(capsys.readouterr().out)["skipped"].startswith("does not import: No module")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "sampler,vllm"], "unknown part 'vllm': use one of sampler, grpo"),
        (["--toy"], "--toy measures nothing: give another file with --out"),
    ],
)
def test_wrong_arguments_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit):
        accelerator.main(arguments)
    assert message in capsys.readouterr().err
