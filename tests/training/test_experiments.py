"""Tests the experiment configs: the paper's values, ablations, command-line fields, data."""

import dataclasses
import json
import re

import numpy as np
import pytest

from experiments import (
    ablations,
    spct_2b,
    spct_2b_lora,
    spct_9b,
    spct_9b_lora,
    spct_27b,
    spct_27b_lora,
    spct_gsm8k,
    spct_tiny,
)
from grm_jax.data import mixtures, world
from grm_jax.data.world import vocabulary
from grm_jax.text import rendering
from grm_jax.training import (
    eval_stage,
    optim,
    rft,
    rft_data,
    rft_samplers,
    rollouts,
    sources,
    state as states,
)
from grm_jax.training.errors import TrainingError
from grm_jax.training.programs import model_config
from grm_jax.types import Comparison


def test_spct_27b_has_the_papers_values():
    config = spct_27b.get_config()
    assert (config.rft.lr, config.rft.steps, config.rft.samples, config.rft.hinted) == (
        5e-6,
        900,
        3,
        1,
    )
    assert (config.rl.lr, config.rl.steps, config.rl.beta, config.rl.group_size) == (
        4e-7,
        900,
        0.08,
        4,
    )
    assert config.rl.prompts * config.rl.group_size == 512
    assert (config.meta_rm.lr, config.meta_rm.batch_size, config.meta_rm.samples) == (1e-5, 512, 3)
    assert config.eval.temperature == 0.5 and tuple(config.eval.ks) == (1, 2, 4, 8, 16, 32)
    assert config.data.general_items == 1_070_000


def test_the_tiny_model_has_the_vocabulary_of_the_world_and_alternating_windows():
    cfg = model_config(spct_tiny.get_config())
    assert cfg.vocab_size == vocabulary.SIZE
    assert [layer.window for layer in cfg.pattern] == [64, None]


LORA = [spct_2b_lora, spct_9b_lora, spct_27b_lora]


@pytest.mark.parametrize("experiment", [spct_tiny, spct_gsm8k, spct_2b, spct_9b, spct_27b, *LORA])
def test_every_experiment_has_a_model_and_an_optimizer_for_each_stage(experiment):
    config = experiment.get_config()
    assert model_config(config).name == config.model
    for section in (config.rft, config.rl, config.meta_rm):
        optim.make_optimizer(section)
    assert config.rl.prompt_len + config.rl.max_new_tokens <= model_config(config).max_length


def test_spct_gsm8k_has_smaller_sizes_for_a_cpu():
    plain, small = spct_gsm8k.get_config("seed=3"), spct_gsm8k.get_config("cpu,beta_0,seed=3")
    assert plain.name == "spct_gsm8k-seed=3" and small.name == "spct_gsm8k-cpu-beta_0-seed=3"
    assert (
        small.rl.steps == 20
        and small.rl.prompts < plain.rl.prompts
        and small.rl.group_size == plain.rl.group_size
    )
    assert (small.rl.beta, small.seed, plain.seed) == (0.0, 3, 3)


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_an_ablation_changes_the_config_and_its_name(name):
    plain, changed = spct_tiny.get_config(), spct_tiny.get_config(name)
    assert changed.name == f"spct_tiny-{name}"
    changed.name = plain.name
    if name == "beta_0.08":  # the experiment's own value
        assert changed == plain
    else:
        assert changed != plain


def test_arguments_set_fields_with_their_types():
    config = spct_tiny.get_config("beta_0.01,seed=3,rl.steps=7,rft.reject=false")
    assert (config.rl.beta, config.seed, config.rl.steps, config.rft.reject) == (0.01, 3, 7, False)
    with pytest.raises(ValueError, match="'no_such' is neither an ablation"):
        spct_tiny.get_config("no_such")
    config = spct_tiny.get_config("stages=rft,data.families=order,rl.beta=1,rft.sampler=file")
    assert (config.stages, config.data.families, config.rl.beta, config.rft.sampler) == (
        ("rft",),
        ("order",),
        1.0,
        "file",
    )
    assert isinstance(config.rl.beta, float) and config.name.startswith("spct_tiny-stages=rft-data")
    for arg, message in (
        ("rl.stepz=3", "config.rl.stepz does not exist: did you mean config.rl.steps"),
        ("rlx.beta=1", "config.rlx.beta does not exist: did you mean config.rl.beta"),
        ("seed=abc", "config.seed='abc' is not a whole number: it is 0 in the experiment"),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            spct_tiny.get_config(arg)


def test_a_template_without_the_turns_of_a_conversation_stops_rl_with_its_comparison(tmp_path):
    source = "[Query]\n{{ query }}\n[/Query]\n{% for r in responses %}[Answer {{ loop.index }}]\n"
    source += "{{ r }}\n[/Answer {{ loop.index }}]\n{% endfor %}"
    (tmp_path / "own.jinja").write_text(source)
    turns = [{"role": role, "content": "hi"} for role in ("user", "assistant", "user")]
    chat, tokenizer = Comparison(turns, ("a", "b"), label=0, id="c7"), sources.load_tokenizer
    args = str(tmp_path / "own.jinja"), tokenizer(spct_tiny.get_config())
    with pytest.raises(
        TrainingError, match="comparison 'c7': template 'own.jinja' does not show 2"
    ):
        rollouts.make_prompts([chat], *args, seed=1, max_len=999)
    single = dataclasses.replace(chat, query="hi")
    assert len(rollouts.make_prompts([single], *args, seed=1, max_len=999)[0]) == 1


def test_prompts_shuffle_responses_and_replace_long_prompts():
    config = spct_tiny.get_config()
    tokenizer = sources.load_tokenizer(config)
    items = sources.judging(config).take(0, 40)
    prompts, too_long = rollouts.make_prompts(
        items, "compact", tokenizer, seed=1, max_len=config.rl.prompt_len
    )
    assert too_long == 0
    pairs = [p.order for p in prompts if p.comparison.n == 2]
    assert {(0, 1), (1, 0)} == set(pairs)
    singles = [p.template for p in prompts if p.comparison.n == 1]
    assert set(singles) <= {"compact/single_binary"}
    repeated, _ = rollouts.make_prompts(items, "compact", tokenizer, seed=1, max_len=999)
    assert [p.tokens for p in prompts] == [p.tokens for p in repeated]
    some, too_long = rollouts.make_prompts(items, "compact", tokenizer, seed=1, max_len=30)
    assert 0 < too_long < len(some) == len(items) and max(len(p.tokens) for p in some) <= 30
    with pytest.raises(ValueError, match="all 40 prompts are too long.*raise config.rl.prompt_len"):
        rollouts.make_prompts(items, "compact", tokenizer, seed=1, max_len=5)
    arrays = rollouts.prompt_arrays(prompts[:3], 64, 0)
    for row, length, prompt in zip(arrays["prompts"], arrays["prompt_lengths"], prompts):
        assert row[64 - length :].tolist() == prompt.tokens and not row[: 64 - length].any()


def test_trim_removes_only_padding():
    rng = np.random.default_rng(0)
    lengths, ends = np.array([3, 5]), np.array([[2, 4], [1, 3]])
    tokens = rng.integers(1, 9, (2, 8)) * (np.arange(8) >= 8 - lengths[:, None])
    mask = (np.arange(12) < ends[..., None]).astype(np.float32)
    batch = {
        "prompts": tokens,
        "prompt_lengths": lengths,
        "mask": mask,
        "completions": rng.integers(1, 9, (2, 2, 12)),
    }
    cut = rollouts.trim(batch, 4)
    assert cut["prompts"].shape == (2, 6) and cut["mask"].shape == cut["completions"].shape == (
        2,
        2,
        6,
    )
    assert cut["mask"].sum() == mask.sum() and (cut["prompts"] > 0).sum() == (tokens > 0).sum()
    np.testing.assert_array_equal(cut["completions"], batch["completions"][:, :, :6])
    assert rollouts.trim(batch, 1)["prompts"].shape == (2, 8)


def test_shuffled_labels_are_reproducible_and_independent_of_the_labels():
    config = spct_tiny.get_config("shuffled_labels")
    originals = sources.judging(spct_tiny.get_config()).take(0, 400)
    shuffled = sources.judging(config).take(0, 400)
    assert [c.label for c in shuffled] == [c.label for c in sources.judging(config).take(0, 400)]
    pairs = [(a.label, b.label) for a, b in zip(originals, shuffled) if a.n == 2]
    assert 0.4 < sum(a == b for a, b in pairs) / len(pairs) < 0.6
    assert sources.judging(config, "test").take(0, 5) == sources.judging(
        spct_tiny.get_config(), "test"
    ).take(0, 5)


def test_rejection_by_shuffled_labels_is_independent_of_the_labels():
    """Kept samples agree with the shuffled labels and are at chance for the original ones."""
    originals = {c.id: c for c in sources.judging(spct_tiny.get_config()).take(0, 400)}
    shuffled = sources.judging(spct_tiny.get_config("shuffled_labels")).take(0, 400)
    rft_set = rft_data.build(
        shuffled, rft_samplers.teacher(0.75, shortcut=0.6), rft_data.RftOptions(template="compact")
    )
    for hinted in (False, True):
        kept = [
            t
            for t in rft_set.trials
            if t.outcome == "kept" and t.hinted == hinted and t.comparison.n == 2
        ]
        scores = [
            rft_data.parse_reply(
                t.comparison, t.order, rft_data.CritiqueReply(t.text), "compact"
            ).scores
            for t in kept
        ]
        accuracy = np.mean(
            [rft_data.is_correct(originals[t.comparison.id], s) for t, s in zip(kept, scores)]
        )
        assert len(kept) > 100 and 0.4 < accuracy < 0.6, (hinted, accuracy)


def test_held_out_comparisons_occur_once_and_without_reference(tmp_path):
    rows = [
        {"query": f"q{i}", "responses": ["a", "b"], "label": i % 2, "id": str(i), "reference": "a"}
        for i in range(5)
    ]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = spct_27b.get_config()
    mixtures.add_comparisons("x", {"test": str(tmp_path / "held.jsonl")})
    config.data.held_out = "x"
    config.eval.comparisons = 12
    items = eval_stage.held_out(config)
    assert sorted(c.id for c in items) == list("01234") and not any(c.reference for c in items)


def test_held_out_sources_are_read_once_at_any_rate(tmp_path):
    for name, count in (("a", 100), ("b", 50)):
        rows = [
            {"query": f"{name}{i}", "responses": ["x", "y"], "label": 0, "id": f"{name}{i}"}
            for i in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        mixtures.add_comparisons(name, {"test": str(tmp_path / f"{name}.jsonl")})
    mixtures.add_mixture("both", {"a": 100.0, "b": 1.0})
    config = spct_27b.get_config()
    config.data.held_out = "both"
    items = eval_stage.held_out(config)
    assert len({c.id for c in items}) == len(items) == 150


def test_comparisons_without_a_best_response_are_dropped_and_an_empty_held_out_set_is_an_error(
    tmp_path, caplog
):
    rows = [
        {"query": f"q{i}", "responses": ["x", "y"], "label": [1, i % 2], "id": f"{i}"}
        for i in range(4)
    ]
    path = tmp_path / "a.jsonl"
    config = spct_27b.get_config()
    mixtures.add_comparisons("a", {"test": str(path)})
    config.data.held_out = "a"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level("INFO"):
        assert sorted(c.id for c in eval_stage.held_out(config)) == ["0", "2"]
    assert "'seen': 4, 'malformed': 0, 'unusable': {'no single best response': 2}" in caplog.text
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[1::2]))
    with pytest.raises(
        ValueError, match="source 'a' has no items but .'no single best response': 2"
    ):
        eval_stage.held_out(config)
    single = {"query": "q", "responses": ["x"], "label": 1}
    path.write_text("".join(json.dumps(single | {"id": f"{i}"}) + "\n" for i in range(2)))
    with pytest.raises(
        TrainingError,
        match="none of the 2 comparisons of the evaluation has one best response.*held_out",
    ):
        eval_stage.held_out(config)


def test_the_identity_of_a_source_covers_labels_texts_and_rates(tmp_path):
    def identity(label, text, rate):
        for name in ("a", "b"):
            row = {"query": "q", "responses": ["x", text], "label": label, "id": name}
            (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
            mixtures.add_comparisons(name, {"train": str(tmp_path / f"{name}.jsonl")})
        mixtures.add_mixture("both", {"a": 1.0, "b": rate})
        config = spct_27b.get_config()
        config.data.update(judging="both", held_out="")
        return sources.judging(config).identity

    assert identity(0, "y", 1.0) == identity(0, "y", 1.0)
    assert (
        len(
            {
                identity(*args)
                for args in ((0, "y", 1.0), (1, "y", 1.0), (0, "z", 1.0), (0, "y", 2.0))
            }
        )
        == 4
    )
    worlds = {sources.judging(spct_tiny.get_config(arg)).identity for arg in ("", "data.seed=1")}
    other = spct_tiny.get_config()
    other.data.world.sizes = {"2": 1.0}
    assert len({*worlds, sources.judging(other).identity}) == 3


def test_every_field_of_the_world_reaches_it():
    config = spct_tiny.get_config()
    config.data.world = {
        "levels": {"1": 1.0},
        "sizes": {"2": 1.0},
        "distractors": {"0": 1.0},
        "best_hedged": 0.5,
        "reference": True,
    }
    built = sources.world_config(config.data)
    assert built == world.WorldConfig({1: 1.0}, {2: 1.0}, 0.5, {0: 1.0}, True)
    assert (
        sources.judging(config).at(0).reference
        and not sources.judging(spct_tiny.get_config()).at(0).reference
    )


def test_no_principles_selects_a_template_without_principles():
    pair = sources.judging(spct_tiny.get_config()).at(0)
    for experiment, family in ((spct_27b, "grm"), (spct_gsm8k, "compact")):
        config = experiment.get_config("no_principles")
        assert config.template == f"{family}/no_principles"
        for n in (1, 2):
            comparison = dataclasses.replace(
                pair, responses=("a", "b")[:n], label=(1.0,) if n == 1 else 0
            )
            template = rft_data.training_template(config.template, comparison)
            assert rendering.load(template).high == (1 if n == 1 else 10)
            (message,) = rendering.render(template, comparison)
            assert "rinciple" not in message["content"]


def test_the_command_line_can_select_another_sampler(tmp_path):
    config = spct_27b.get_config(
        "rft.sampler=model,rft.sampling.path=weights,rft.sampling.max_new_tokens=64"
    )
    settings = rft_samplers.chosen_settings(config.rft.sampler, config.rft.sampling)
    assert settings == rft_samplers.Model("weights", 64, 1.0)  # url is another sampler's
    config = spct_27b.get_config("rft.sampler=file,rft.sampling.path=1.jsonl")
    assert rft_samplers.chosen_settings("file", config.rft.sampling) == rft_samplers.File("1.jsonl")
    with pytest.raises(ValueError, match="config.rft.sampling.pth does not exist"):
        spct_27b.get_config("rft.sampling.pth=x")
    with pytest.raises(
        ValueError, match="config.rft.sampling.pth does not exist: the sampler 'file' takes path"
    ):
        rft_samplers.chosen_settings("file", {"path": "x", "pth": "y"})
    with pytest.raises(
        ValueError, match="config.rft.sampling.model is empty: the sampler 'endpoint' needs it"
    ):
        rft_samplers.chosen_settings("endpoint", {"url": "http://x", "max_new_tokens": 5})


def test_fewer_comparisons_than_configured_are_sampled_once_each(tmp_path, caplog):
    rows = [{"query": f"q{i}", "responses": ["x", "y"], "label": 0, "id": f"{i}"} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [{"id": f"{i}", "text": "\\boxed{9, 1}"} for i in range(3)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    config = spct_tiny.get_config(
        f"rft.sampler=file,rft.sampling.path={tmp_path / 'samples.jsonl'}"
    )
    mixtures.add_comparisons("a", {"train": str(tmp_path / "a.jsonl")})
    config.data.judging = "a"
    config.rft.update(comparisons=10, samples=1, hinted=0, reject=False)
    rft.prepare(config, sources.load_tokenizer(config), None, tmp_path / "data")
    assert "the sources hold 3 comparisons, fewer than rft.comparisons=10" in caplog.text
    assert json.loads((tmp_path / "data" / "outcomes.json").read_text())["non_hinted/kept"] == 3


def test_missing_files_are_an_error_before_a_run_starts(tmp_path, caplog):
    config = spct_gsm8k.get_config()
    files = {}
    for name in ("pairs", "held_out", "general", "samples", "weights"):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("{}")
    config.tokenizer = config.init = str(files["weights"])
    mixtures.add_comparisons(
        "mine", {"train": files["pairs"].name, "test": [str(files["held_out"])]}
    )
    mixtures.add_examples("chats", {"train": files["general"].name})
    config.data.update(judging="mine", held_out="mine", general="chats", folder=str(tmp_path))
    config.rft.sampling.path = str(files["samples"])
    sources.check(config)
    fields = {
        "pairs": "config.data.judging (mine)", "held_out": "config.data.held_out (mine)",
        "general": "config.data.general (chats)",
        "samples": "config.rft.sampling.path", "weights": "config.init",
    }  # fmt: skip
    for name, field in fields.items():
        files[name].rename(tmp_path / "away")
        with pytest.raises(
            FileNotFoundError, match=re.escape(f"{field} names {files[name]}, which does not exist")
        ):
            sources.check(config)
        if name == "held_out":
            sources.check(config, ("rft", "rl"))
        if name in ("general", "samples"):
            sources.check(config, ("rl", "eval"))
        (tmp_path / "away").rename(files[name])
    config.data.held_out = "min"
    with pytest.raises(
        ValueError, match="config.data.held_out: unknown .*'min': did you mean 'mine'"
    ):
        sources.check(config)
    config.data.held_out = "chats"
    with pytest.raises(ValueError, match="config.data.held_out: task 'chats' has no split 'test'"):
        sources.check(config)
    config.data.held_out = ""
    with pytest.raises(ValueError, match="data.held_out is empty"):
        sources.check(config)
    config.data.update(held_out="mine", module="no_such_module")
    with pytest.raises(ValueError, match="config.data.module=no_such_module is not importable"):
        sources.check(config)
    config.rft.sampling = {}
    with pytest.raises(ValueError, match="config.rft.sampling.path is empty"):
        sources.check(config, ("rft",))
    config.tokenizer = ""
    for function in (sources.check, sources.load_tokenizer):
        with pytest.raises(ValueError, match="config.tokenizer is empty"):
            function(config)
    sources.check(spct_tiny.get_config())


def test_random_weights_of_a_full_size_model_are_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(states, "init_params", lambda *_: "params")
    sources.first_params(spct_tiny.get_config(), None, None)
    assert not caplog.text
    sources.first_params(spct_27b.get_config("init="), None, None)
    assert "config.init is empty: gemma2_27b starts from random weights" in caplog.text


def test_too_many_malformed_records_are_an_error_that_names_the_source(tmp_path):
    config = spct_27b.get_config()
    (tmp_path / "a.jsonl").write_text("{}\n")
    mixtures.add_comparisons("mine", {"train": str(tmp_path / "a.jsonl")})
    config.data.judging = "mine"
    with pytest.raises(ValueError, match="^mine: 1 of 1 records are malformed"):
        sources.judging(config)


def test_an_empty_held_out_field_is_an_error():
    config = spct_27b.get_config()
    config.data.held_out = ""
    with pytest.raises(ValueError, match="data.held_out is empty"):
        sources.judging(config, "test")
