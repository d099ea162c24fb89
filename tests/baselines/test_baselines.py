"""The baselines: what their training data say, the Bradley-Terry loss, and a toy run of all of them into one table."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import spct_tiny
from grm_jax.baselines import cloud, generative, kept, report, run, scalar
from grm_jax.data import world
from grm_jax.data.world.families import TRAINED_NAMES
from grm_jax.evals.benchmark import Benchmark
from grm_jax.evals.benchmarks.world import WORLD
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.measure import measure
from grm_jax.sharding import make_mesh
from grm_jax.text import parse, rendering
from grm_jax.training import rft_samplers, sources
from grm_jax.training import state as states
from grm_jax.training.rft_data import CritiqueReply, CritiqueRequest
from grm_jax.types import Comparison

CRITIQUE = "### Principles\n1. Accuracy (100%): right\n\n### Analysis\nThe second is right.\n\n### Scores\n\\boxed{3, 8, 5}"


def test_a_critique_becomes_a_choice_that_the_parser_reads():
    text = generative.as_choice(CRITIQUE)
    assert text.startswith("The second is right.") and "Principles" not in text
    assert parse(text, 3, output="choice").scores.index(1) == 1
    assert generative.as_choice("\\boxed{4, 4}") is None and generative.as_choice("none") is None
    assert generative.as_choice("\\boxed{a, b}") is None


def test_a_choice_holds_no_principles_however_they_are_written():
    """The world's teacher writes them as plain lines; the choice is the same as if it had written none."""
    items = [c for c in world.make_items("train", 0, 60) if c.n > 1]
    wanted = [
        CritiqueRequest(c, tuple(range(c.n)), False, sample, [])
        for c in items
        for sample in range(2)
    ]
    with_them, without = (
        [
            generative.as_choice(reply.text)
            for reply in rft_samplers.teacher(principles=principles)(wanted)
        ]
        for principles in (True, False)
    )
    assert with_them == without and len([text for text in without if text]) > 60


def test_samplers_say_the_place_that_the_prompt_shows():
    comparison = Comparison("q", ("a", "b", "c"), label=2)
    wanted = [CritiqueRequest(comparison, (1, 2, 0), False, 0, [])]
    assert generative.labelled(wanted)[0].text == "\\boxed{2}"
    assert generative.choosing(lambda w: [CritiqueReply(CRITIQUE, "stop")])(wanted)[
        0
    ].text.endswith("\\boxed{2}")


def test_pairs_of_a_group_name_the_best_first():
    pairs = generative.pairs_of(Comparison("q", ("a", "b", "c"), label=1, id="x"))
    assert [p.responses for p in pairs] == [("b", "a"), ("b", "c")] and len(
        {p.id for p in pairs}
    ) == 2
    assert [s.responses for s in cloud.singles(pairs[0])] == [("b",), ("a",)]


def test_bradley_terry_loss_in_float64():
    rewards = np.array([[1.0, -0.5], [0.0, 3.0], [40.0, -40.0]])
    expected = np.log1p(np.exp(rewards[:, 1] - rewards[:, 0]))
    np.testing.assert_allclose(
        scalar.bradley_terry_loss(jnp.asarray(rewards, jnp.float32)), expected, atol=1e-6
    )


def test_pairs_that_do_not_fit_are_left_out():
    pairs = scalar.pair_up([([1, 2], [3]), ([1] * 9, [2])], 4)
    assert pairs.tokens.tolist() == [[[1, 2, 0, 0], [3, 0, 0, 0]]] and pairs.segment_ids.sum() == 3
    assert scalar.pair_up([([1] * 20, [2])], 96).tokens.shape == (
        1,
        2,
        32,
    )  # no more padding than the texts need
    with pytest.raises(ValueError, match="raise meta_rm.seq_len"):
        scalar.pair_up([([1] * 9, [2])], 4)


TOY = """
from experiments.spct_tiny import get_config as tiny

def get_config(arg=""):
    config = tiny(arg)
    config.model_overrides.update(d_model=32, d_ff=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16)
    config.data.general_items = 0
    config.batch_size = 8
    config.tensorboard = config.export = False
    config.rft.update(steps=2, comparisons=24, save_every=2, warmup_steps=0)
    config.meta_rm.update(steps=30, batch_size=8, save_every=30, lr=3e-3, warmup_steps=0)
    config.eval.update(samples=2, max_new_tokens=8)
    return config
"""


def test_a_world_experiment_is_measured_on_its_own_held_out_comparisons(tmp_path, one_device):
    config_file = tmp_path / "toy.py"
    config_file.write_text(TOY)
    config = run.load_config(str(config_file), "seed=0,eval.comparisons=40")
    items = run.Bench(config, tmp_path, None, "world", ".", None).everything
    own = sources.judging(config, "test").take(0, 40)
    assert [c.id for c in items] == [c.id for c in own if c.n > 1] and 0 < len(items) < 40
    assert {c.meta["subset"] for c in items} <= set(config.data.families or TRAINED_NAMES)
    assert all("world" not in c.meta for c in items)


def test_no_judge_is_shown_a_reference(tmp_path, one_device, monkeypatch):
    config_file = tmp_path / "toy.py"
    config_file.write_text(TOY)
    config = run.load_config(str(config_file), "seed=0")
    known = Comparison("q", ("a", "b"), "the answer", 0, "x", {"group": "x"})
    monkeypatch.setattr(Benchmark, "load", lambda self, root: [known])
    bench = run.Bench(config, tmp_path, None, "gsm8k", ".", None)
    assert [c.reference for c in bench.comparisons] == [None]
    assert rendering.choose("compact", bench.comparisons[0]) == "compact"


def test_a_judge_is_named_by_its_weights(tmp_path, one_device):
    config_file = tmp_path / "toy.py"
    config_file.write_text(TOY)
    bench = run.Bench(
        run.load_config(str(config_file), "seed=0,eval.comparisons=8"),
        tmp_path,
        None,
        "world",
        ".",
        1,
    )
    with jax.set_mesh(one_device):
        first, second = (states.init_params(bench.cfg, one_device, seed) for seed in (0, 1))
        names = [bench.judge(params, "compact").name for params in (first, first, second)]
    assert names[0] == names[1] != names[2] and names[0].startswith("compact@")


@pytest.fixture
def one_device(monkeypatch):
    """A mesh of one of the emulated devices: toy batches do not divide over eight."""
    mesh = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(run, "make_mesh", lambda **_: mesh)
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
    return report.Measured(entry, judged)


def test_the_table_has_means_over_seeds_and_paired_differences():
    right, half = set(range(12)), set(range(6))
    found = {
        "bt": {0: measured("bt", half), 1: measured("bt", half | {7, 8, 9})},
        "spct rl, k = 8": {
            0: measured("spct rl", right, k=8),
            1: measured("spct rl", right - {0, 1, 2}, k=8),
        },
        "cloud": {1: measured("cloud", set())},
    }
    table = report.summary(WORLD, found, draws=50)
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


def test_what_judges_said_comes_back_for_the_same_config_alone(tmp_path):
    which = lambda name, arg="seed=0": kept.identity(spct_tiny.get_config(arg), name, "world", None)  # noqa: E731
    assert (
        which("bt")
        == which("bt", "seed=0,meta_rm.start=rl,rl.steps=7")
        != which("bt", "seed=0,meta_rm.batch_size=4")
    )
    assert (
        which("llm_judge")
        == which("llm_judge", "seed=0,meta_rm.batch_size=4")
        != which("llm_judge", "seed=0,rft.steps=3")
    )
    assert (
        len(
            {
                which("spct"),
                which("spct", "seed=0,rl.steps=7"),
                which("spct", "seed=1"),
                which("bt"),
            }
        )
        == 4
    )

    found, path = {"bt": measured("bt", {1, 2})}, tmp_path / "judges" / "bt-0.json"
    comparisons = [j.comparison for j in found["bt"].judged]
    kept.save(path, "x", found, both_orders=False)
    (again,) = kept.load(path, "x", comparisons).values()
    assert again.judged == found["bt"].judged
    table, table_again = (
        report.summary(WORLD, {"bt": {0: m}}, draws=20) for m in (found["bt"], again)
    )
    assert table == table_again
    assert (
        kept.load(path, "y", comparisons) is None and kept.load(path, "x", comparisons[1:]) is None
    )
    assert kept.load(tmp_path / "none.json", "x", comparisons) is None


def test_judges_of_other_comparisons_do_not_come_into_one_table():
    other = measured("cloud", set())
    found = {
        "bt": {0: measured("bt", set())},
        "cloud": {0: report.Measured(other.entry, other.judged[1:])},
    }
    with pytest.raises(
        ValueError, match="cloud of seed 0 judged other comparisons than the rest: keep data.seed"
    ):
        report.summary(WORLD, found)


@pytest.mark.slow
def test_all_baselines_come_into_one_table(tmp_path, one_device):
    from grm_jax.training import loop, rft, sources
    from grm_jax.training.programs import model_config

    config_file = tmp_path / "toy.py"
    config_file.write_text(TOY)
    config = run.load_config(str(config_file), "seed=0")
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
    assert run.main(args) == 0
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
        run.main(args) == 0
    )  # everything is done: nothing is trained again, and the numbers are the same
    assert (tmp_path / "out" / "table.md").read_text() == text
    assert run.main([*args, "--baselines", "rm"]) == 2


@pytest.mark.slow
def test_the_scalar_learns_to_prefer_a_token(tmp_path, one_device):
    """Pairs that differ in one token: accuracy rises from chance to one."""
    from grm_jax.training import loop, sources
    from grm_jax.training.programs import model_config

    config_file = tmp_path / "toy.py"
    config_file.write_text(TOY)
    config = run.load_config(str(config_file), "seed=0")
    assert (
        run.section_of(config).steps == config.rft.steps
    )  # from random weights: as much training as RFT has
    rng = np.random.default_rng(0)
    texts = [
        ([2, *rng.integers(10, 90, 5).tolist(), 100], [2, *rng.integers(10, 90, 5).tolist(), 101])
        for _ in range(64)
    ]
    section = run.section_of(config)
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
    monkeypatch.setitem(run.RUNNERS, "bt", lambda *_: pytest.fail("was run"))
    assert run.main(args) == 1 and "nothing was measured" in capsys.readouterr().err
    bench = run.Bench(run.load_config(str(config_file), "seed=0"), tmp_path, None, "world", ".", 6)
    judged = [JudgedComparison(c, tuple(range(c.n))) for c in bench.comparisons]
    entry = measure(
        bench.benchmark, judged, 6, {"kind": "baseline", "name": "bt", "k": 1, "seed": 0}, draws=20
    )
    which = kept.identity(bench.config, "bt", "world", 6)
    kept.save(
        tmp_path / "out" / "judges" / "bt-0.json",
        which,
        {"bt": report.Measured(entry, judged)},
        False,
    )
    assert run.main(args) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "judges",
        "table.json",
        "table.md",
        "table.html",
    }
