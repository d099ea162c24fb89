"""The baselines: their training data, the Bradley-Terry loss, a toy run of all into one table."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import spct_tiny
from grm_jax.baselines import (
    BASELINES,
    Bench,
    bench as bench_module,
    cloud,
    llm_judge,
    pairwise,
    report,
    results,
    scalar,
)
from grm_jax.baselines.bench import Baseline
from grm_jax.data import world
from grm_jax.data.world.families import TRAINED_NAMES
from grm_jax.evals.benchmark import Benchmark
from grm_jax.evals.benchmarks.world import WORLD
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.measure import measure
from grm_jax.judging.options import Options
from grm_jax.sharding import make_mesh
from grm_jax.text import parse, rendering
from grm_jax.training import rft_samplers, sources, state as states
from grm_jax.training.rft_data import CritiqueReply, CritiqueRequest
from grm_jax.types import Comparison
from studies import baselines as study

CRITIQUE = (
    "### Principles\n1. Accuracy (100%): right\n\n### Analysis\nThe second is right.\n\n"
    "### Scores\n\\boxed{3, 8, 5}"
)
RESULTS = Path(__file__).resolve().parents[2] / "experiments/results/baselines/judges"


def test_a_critique_becomes_a_choice_that_parses():
    text = llm_judge.as_choice(CRITIQUE)
    assert text.startswith("The second is right.") and "Principles" not in text
    assert parse(text, 3, output="choice").scores.index(1) == 1
    assert llm_judge.as_choice("\\boxed{4, 4}") is None and llm_judge.as_choice("none") is None
    assert llm_judge.as_choice("\\boxed{a, b}") is None


def test_a_choice_drops_the_principles():
    """The world's teacher writes them as plain lines; the choice equals one without principles."""
    items = [c for c in world.make_items("train", 0, 60) if c.n > 1]
    requests = [
        CritiqueRequest(c, tuple(range(c.n)), False, sample, [])
        for c in items
        for sample in range(2)
    ]
    with_them, without = (
        [
            llm_judge.as_choice(reply.text)
            for reply in rft_samplers.teacher(principles=principles)(requests)
        ]
        for principles in (True, False)
    )
    assert with_them == without and len([text for text in without if text]) > 60


def test_samplers_reply_with_the_position_in_the_prompt():
    comparison = Comparison("q", ("a", "b", "c"), label=2)
    requests = [CritiqueRequest(comparison, (1, 2, 0), False, 0, [])]
    assert pairwise.label(requests)[0].text == "\\boxed{2}"
    sampler = llm_judge.choosing(lambda requests: [CritiqueReply(CRITIQUE, "stop")])
    assert sampler(requests)[0].text.endswith("\\boxed{2}")


def test_pairs_of_a_group_name_the_best_first():
    pairs = pairwise.pairs_of(Comparison("q", ("a", "b", "c"), label=1, id="x"))
    assert [p.responses for p in pairs] == [("b", "a"), ("b", "c")]
    assert len({p.id for p in pairs}) == 2


def test_each_response_is_criticised_by_itself():
    def stream(singles, options):
        for i, single in reversed(list(enumerate(singles))):
            assert single.label is None
            yield i, SimpleNamespace(critiques=[SimpleNamespace(text=" ".join(single.responses))])

    comparisons = [Comparison("q", ("b", "a"), label=0, id="x"), Comparison("q", ("c",), id="y")]
    texts = cloud.critiques(SimpleNamespace(stream=stream), comparisons, Options(k=1))
    assert texts == [[["b"], ["a"]], [["c"]]]


def test_a_response_scores_its_shares_of_wins():
    comparison = Comparison("q", ("a", "b", "c"), id="x")
    assert [p.id for p in pairwise.all_pairs(comparison)] == ["x/0-1", "x/0-2", "x/1-2"]
    assert pairwise.wins(comparison, [(3.0, 1.0), None, (0.0, 2.0)]) == [1.25, 0.25, 1.5]


def test_bradley_terry_loss_in_float64():
    rewards = np.array([[1.0, -0.5], [0.0, 3.0], [40.0, -40.0]])
    expected = np.log1p(np.exp(rewards[:, 1] - rewards[:, 0]))
    np.testing.assert_allclose(
        scalar.bradley_terry_loss(jnp.asarray(rewards, jnp.float32)), expected, atol=1e-6
    )


def test_pairs_that_do_not_fit_are_skipped():
    pairs = scalar.pair_up([([1, 2], [3]), ([1] * 9, [2])], 4)
    assert pairs["tokens"].tolist() == [[[1, 2, 0, 0], [3, 0, 0, 0]]]
    assert pairs["segment_ids"].sum() == 3
    # No more padding than the texts need.
    assert scalar.pair_up([([1] * 20, [2])], 96)["tokens"].shape == (1, 2, 32)
    with pytest.raises(ValueError, match="raise meta_rm.seq_len"):
        scalar.pair_up([([1] * 9, [2])], 4)


TOY = """
from experiments.spct_tiny import get_config as tiny

def get_config(arg=""):
    config = tiny(arg)
    config.model_overrides.update(d_model=32, d_ff=64, num_layers=2)
    config.model_overrides.update(num_heads=2, num_kv_heads=1, head_dim=16)
    config.data.general_items = 0
    config.batch_size = 8
    config.tensorboard = config.export = False
    config.rft.update(steps=2, comparisons=24, save_every=2, warmup_steps=0)
    config.meta_rm.update(steps=30, batch_size=8, save_every=30, lr=3e-3, warmup_steps=0)
    config.eval.update(samples=2, max_new_tokens=8)
    return config
"""


def test_a_world_experiment_uses_its_own_held_out_comparisons(tmp_path, one_device):
    config_file = tmp_path / "toy.py"
    config_file.write_text(TOY)
    config = study.load_config(str(config_file), "seed=0,eval.comparisons=40")
    items = Bench(config).comparisons
    own = sources.judging(config, "test").take(0, 40)
    assert [c.id for c in items] == [c.id for c in own if c.n > 1] and 0 < len(items) < 40
    assert {c.meta["subset"] for c in items} <= set(config.data.families or TRAINED_NAMES)
    assert all("world" not in c.meta for c in items)


def test_no_judge_is_shown_a_reference(tmp_path, one_device, monkeypatch):
    config_file = tmp_path / "toy.py"
    config_file.write_text(TOY)
    config = study.load_config(str(config_file), "seed=0")
    known = Comparison("q", ("a", "b"), "the answer", 0, "x", {"group": "x"})
    monkeypatch.setattr(Benchmark, "load", lambda self, root: [known])
    bench = Bench(config, benchmark="gsm8k")
    assert [c.reference for c in bench.comparisons] == [None]
    assert rendering.choose("compact", bench.comparisons[0]) == "compact/judge"


def test_a_judge_is_named_by_its_weights(tmp_path, one_device):
    config_file = tmp_path / "toy.py"
    config_file.write_text(TOY)
    config = study.load_config(str(config_file), "seed=0,eval.comparisons=8")
    bench = Bench(config, limit=1)
    with jax.set_mesh(one_device):
        first, second = (states.init_params(bench.cfg, one_device, seed) for seed in (0, 1))
        names = [bench.judge(params, "compact").name for params in (first, first, second)]
    assert names[0] == names[1] != names[2] and names[0].startswith("compact@")


@pytest.fixture
def one_device(monkeypatch):
    """A mesh of one of the emulated devices: toy batches do not divide over eight."""
    mesh = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(bench_module, "make_mesh", lambda **_: mesh)
    return mesh


def measured(name, wins, seed=0, k=1):
    """A judge that is right on the comparisons of `wins`, of twelve with two responses each."""
    comparisons = [
        Comparison(f"q{i}", ("yes", "no"), None, 0, f"c{i}", {"group": f"c{i}", "subset": "s"})
        for i in range(12)
    ]
    judged = [
        JudgedComparison(c, (1.0, 0.0) if i in wins else (0.0, 1.0))
        for i, c in enumerate(comparisons)
    ]
    entry = measure(
        WORLD, judged, 12, {"kind": "baseline", "name": name, "k": k, "seed": seed}, draws=20
    )
    return results.Measured(entry, judged)


def test_the_table_has_means_over_seeds_and_paired_differences():
    right, half = set(range(12)), set(range(6))
    measured_judges = {
        "bt": {0: measured("bt", half), 1: measured("bt", half | {7, 8, 9})},
        "spct rl, k = 8": {
            0: measured("spct rl", right, k=8),
            1: measured("spct rl", right - {0, 1, 2}, k=8),
        },
        "cloud": {1: measured("cloud", set())},
    }
    table = report.summary(WORLD, measured_judges, draws=50)
    rows = {row["name"]: row for row in table["rows"]}
    assert rows["bt"]["value"] == pytest.approx(0.625) and rows["bt"]["seeds"] == pytest.approx(
        {0: 0.5, 1: 0.75}
    )
    assert rows["bt"]["low"] < 0.625 < rows["bt"]["high"]
    assert rows["bt"]["difference"]["value"] == pytest.approx(0.625 - 0.875)
    assert rows["cloud"]["difference"]["value"] == pytest.approx(
        -0.75
    )  # over seed 1, which both have
    assert rows["spct rl, k = 8"]["difference"] is None and table["reference"] == "spct rl, k = 8"
    lines = report.markdown(table).splitlines()
    assert [line.split(" | ")[0] for line in lines[4:]] == [
        "| spct rl, k = 8", "| bt", "| cloud", "| longest response", "| first response"
    ]  # fmt: skip
    html = report.page(table)
    assert "62.5" in html and html.count("<svg") == 1 and "against spct rl, k = 8" in html


def test_an_identity_has_the_fields_that_a_baseline_depends_on(one_device):
    def identity(name, arg="seed=0"):
        return Bench(spct_tiny.get_config(arg), limit=3).identity(name)

    other_rl, other_batch = "seed=0,meta_rm.start=rl,rl.steps=7", "seed=0,meta_rm.batch_size=4"
    assert identity("bt") == identity("bt", other_rl) != identity("bt", other_batch)
    assert identity("llm_judge") == identity("llm_judge", other_batch)
    assert identity("llm_judge") != identity("llm_judge", "seed=0,rft.steps=3")
    assert identity("spct") not in (identity("spct", arg) for arg in (other_rl, other_batch))


def test_stored_judges_are_loaded_for_the_same_identity_alone(tmp_path, caplog):
    judge, path = measured("bt", {1, 2}), tmp_path / "judges" / "bt-0.jsonl"
    comparisons = [j.comparison for j in judge.judged]
    assert results.load(path, {"steps": 1}, comparisons) is None
    results.save(path, {"steps": 1}, [judge])
    (loaded,) = results.load(path, {"steps": 1}, comparisons)
    assert loaded.judged == judge.judged and loaded.label == "bt"
    tables = [report.summary(WORLD, {"bt": {0: run}}, draws=20) for run in (judge, loaded)]
    assert tables[0] == tables[1]
    assert results.load(path, {"steps": 2}, comparisons) is None
    assert "was begun with steps = 1, now it is 2" in caplog.text


def test_stored_judges_keep_the_scores_of_each_order(tmp_path):
    judge = measured("bt", {1, 2})
    views = (((0, 1), (1.0, 0.0)), ((1, 0), None))
    judged = [dataclasses.replace(j, views=views, num_votes=2) for j in judge.judged]
    path, comparisons = tmp_path / "bt-0.jsonl", [j.comparison for j in judged]
    results.save(path, {}, [results.Measured(judge.entry, judged)])
    assert results.load(path, {}, comparisons)[0].judged == judged


def test_an_earlier_version_of_a_store_is_ignored_with_a_warning(tmp_path, caplog):
    (tmp_path / "bt-0.json").write_text("{}")
    assert results.load(tmp_path / "bt-0.jsonl", {}, []) is None
    assert "bt-0.json is of an earlier version" in caplog.text


def test_the_committed_judges_belong_to_the_committed_config():
    """experiments/results/baselines/judges has the judges of experiments/spct_tiny.py.

    If a field of the config is renamed, rename it in the first line of those files as well.
    """
    bench = Bench(spct_tiny.get_config("seed=0"))
    for name in BASELINES:
        path = RESULTS / f"{name}-0.jsonl"
        assert results.load(path, bench.identity(name), bench.comparisons), path


def test_judges_of_different_comparisons_raise():
    other = measured("cloud", set())
    measured_judges = {
        "bt": {0: measured("bt", set())},
        "cloud": {0: results.Measured(other.entry, other.judged[1:])},
    }
    with pytest.raises(
        ValueError, match="cloud of seed 0 judged other comparisons than the rest: keep data.seed"
    ):
        report.summary(WORLD, measured_judges)


@pytest.mark.slow
def test_all_baselines_run_into_one_table(tmp_path, one_device):
    from grm_jax.training import loop, rft, sources
    from grm_jax.training.programs import model_config

    config_file = tmp_path / "toy.py"
    config_file.write_text(TOY)
    config = study.load_config(str(config_file), "seed=0")
    mesh, cfg = one_device, model_config(config)
    with jax.set_mesh(mesh):
        rft.train(
            loop.Run(config, mesh, sources.load_tokenizer(config)),
            lambda: sources.first_params(config, cfg, mesh),
            tmp_path / "spct-0" / "rft",
        )
    args = [
        "--config",
        str(config_file),
        "--workdir",
        str(tmp_path / "out"),
        "--spct",
        str(tmp_path / "spct-{seed}"),
        "--limit",
        "6",
    ]
    assert study.main(args) == 0
    text = (tmp_path / "out" / "table.md").read_text()
    names = (
        "llm_judge, k = 2",
        "llm_judge, token probabilities",
        "pairwise",
        "bt",
        "cloud",
        "cloud, k = 2",
    )
    for name in (*names, "spct rft", "spct rft, k = 2", "spct rft, expected scores, k = 2"):
        assert f"| {name}" in text
    bt = json.loads((tmp_path / "out" / "bt-0" / "bt" / "results.json").read_text())[0]
    assert bt["comparisons"] == 6 and bt["judge"]["kind"] == "baseline"
    assert (
        study.main(args) == 0
    )  # everything is done: nothing is trained again, and the numbers are the same
    assert (tmp_path / "out" / "table.md").read_text() == text
    assert study.main([*args, "--baselines", "rm"]) == 2


@pytest.mark.slow
def test_the_scalar_learns_to_prefer_a_token(tmp_path, one_device):
    """Pairs that differ in one token: accuracy rises from chance to one."""
    from grm_jax.training import loop, sources
    from grm_jax.training.programs import model_config

    config_file = tmp_path / "toy.py"
    config_file.write_text(TOY)
    config = study.load_config(str(config_file), "seed=0")
    assert (
        scalar.section_of(config).steps == config.rft.steps
    )  # from random weights: as much training as RFT has
    rng = np.random.default_rng(0)
    texts = [
        ([2, *rng.integers(10, 90, 5).tolist(), 100], [2, *rng.integers(10, 90, 5).tolist(), 101])
        for _ in range(64)
    ]
    section = scalar.section_of(config)
    section.steps = section.save_every = 30
    mesh = one_device
    with jax.set_mesh(mesh):
        scalar.train(
            loop.Run(config, mesh, sources.load_tokenizer(config)),
            section,
            lambda: sources.first_params(config, model_config(config), mesh),
            scalar.pair_up(texts, section.seq_len),
            tmp_path / "bt",
        )
    assert loop.read_result(tmp_path / "bt")["last"]["accuracy"] == 1.0


def test_as_it_stands_runs_nothing(tmp_path, one_device, capsys, monkeypatch):
    config_file = tmp_path / "toy.py"
    config_file.write_text(TOY)
    args = [
        "--config",
        str(config_file),
        "--workdir",
        str(tmp_path / "w"),
        "--out",
        str(tmp_path / "out"),
        "--as_it_stands",
    ]
    args += ["--baselines", "bt", "--limit", "6"]
    fail = Baseline(lambda *_: pytest.fail("was run"))
    monkeypatch.setitem(BASELINES, "bt", fail)
    assert study.main(args) == 1 and "nothing was measured" in capsys.readouterr().err
    bench = Bench(study.load_config(str(config_file), "seed=0"), limit=6)
    judged = [JudgedComparison(c, tuple(range(c.n))) for c in bench.comparisons]
    path = tmp_path / "out" / "judges" / "bt-0.jsonl"
    results.save(path, bench.identity("bt"), [bench.measured(judged, "bt")])
    assert study.main(args) == 0
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"judges", "table.json", "table.md", "table.html"}
