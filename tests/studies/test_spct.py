"""The study over seeds and ablations: statistics, stored runs, the command line."""

import json
from pathlib import Path

import pytest

from experiments import spct_tiny
from grm_jax.training import main
from studies import spct as study

COMMITTED = Path(__file__).resolve().parents[2] / "experiments" / "results" / "spct_tiny"


def test_seeds_are_pooled_and_comparisons_paired(tmp_path):
    runs = {}
    for name, rl in ((study.MAIN, (1, 1, 1, 0)), ("no_rejection", (1, 0, 0, 0))):
        credits = {"rft/Greedy@1": [1, 0, 0, 0], "rl/Greedy@1": rl, "rl/Voting@8": rl}
        runs[name] = [study.Run(name, seed, credits, {}) for seed in (0, 1)]
    results = study.aggregate(runs)
    assert results["claims"]["RL above RFT, greedy"]["mean"] == 0.5
    assert results["claims"]["MetaRM@8 at or above Voting@8 (RL)"] is None
    against = results["ablations"]["no_rejection"]["rl/Greedy@1"]["ablation - main"]
    assert against["mean"] == -0.5
    assert "no_rejection" in study.as_text(results)
    study.write_plots(results, tmp_path)
    for name in ("scaling.png", "ablations.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    # Ablations of fewer seeds are compared with the main runs of these seeds alone.
    runs[study.MAIN][0] = study.Run(study.MAIN, 0, {"rl/Greedy@1": [0, 0, 0, 0]}, {})
    runs["no_rejection"] = runs["no_rejection"][1:]
    against = study.aggregate(runs)["ablations"]["no_rejection"]["rl/Greedy@1"]
    assert against["ablation - main"]["mean"] == -0.5


def test_an_ablation_may_have_its_own_seeds():
    parsed = study.parse_ablations("no_hinted,beta_0.01@0+2,")
    assert parsed == [("no_hinted", []), ("beta_0.01", [0, 2])]
    assert study.parse_ablations("") == []
    with pytest.raises(SystemExit):
        study.main(["--seeds", "0,1", "--ablations", "no_hinted@2"])


def test_intervals_resample_comparisons_of_one_query_together():
    credits = {"rl/Voting@8": [float(i % 2) for i in range(60)], "rl/Voting@1": [0.5] * 60}
    runs = {study.MAIN: [study.Run(study.MAIN, 0, credits, {})]}
    alone, together = (
        study.aggregate(runs, prompts) for prompts in (None, [f"q{i % 4}" for i in range(60)])
    )
    name = "Voting@8 above Voting@1 (RL)"
    for one, other in (
        (alone["claims"][name], together["claims"][name]),
        (alone["main"]["rl/Voting@8"], together["main"]["rl/Voting@8"]),
    ):
        assert one["mean"] == other["mean"]
        assert other["high"] - other["low"] > 2 * (one["high"] - one["low"])


def test_finished_runs_are_loaded_and_only_missing_ones_are_run(tmp_path, monkeypatch):
    started = []

    def run(config, folder):
        started.append(folder.name)
        (folder / "eval").mkdir(parents=True)
        (folder / "eval" / "credits.json").write_text('{"rl/Voting@8": [1.0, 0.33333333]}')
        quality = (
            {"meta_rm": {"auc": 0.8, "auc_within": 0.6, "ece": 0.1, "count": 7}}
            if "main" in folder.name
            else {}
        )
        (folder / "eval" / "result.json").write_text(
            json.dumps({"seconds": {"eval": 1.5}, **quality})
        )

    monkeypatch.setattr(main, "run", run)
    one = lambda ablation, place, extra="": study.run_one(  # noqa: E731
        spct_tiny.get_config, ablation, 2, tmp_path / place, tmp_path / "credits", extra
    )
    first = one("no_hinted", "a")
    assert first.credits == {"rl/Voting@8": [1.0, 0.33333]} and first.seconds == {"eval": 1.5}
    assert one("no_hinted", "b") == first and started == ["no_hinted-2"]  # another machine
    assert one("no_hinted", "c", "meta_rm.steps=5") == first  # an ablation has no meta RM
    assert one("no_hinted", "d", "rl.steps=5") == first  # and this one is of the RFT model
    one("no_rejection", "e")
    one("no_rejection", "f", "rl.steps=5")
    main_run = one("main", "g")
    assert main_run.meta_rm == {"auc": 0.8, "auc_within": 0.6, "ece": 0.1}
    assert one("main", "g2") == main_run
    text = study.as_text(study.aggregate({study.MAIN: [main_run]}))
    assert "seed 2   auc 0.800   auc_within 0.600   ece 0.100" in text
    one("main", "h", "meta_rm.steps=5")
    assert started == ["no_hinted-2", "no_rejection-2", "no_rejection-2", "main-2", "main-2"]


def test_the_committed_credits_give_the_committed_means():
    committed = json.loads((COMMITTED / "study.json").read_text())
    runs = []
    for seed in (0, 1, 2):
        record = json.loads((COMMITTED / "credits" / f"main-{seed}.json").read_text())
        credits, quality = record["credits"], record.get("meta_rm", {})
        runs.append(study.Run(study.MAIN, seed, credits, record["seconds"], quality))
    results = study.aggregate({study.MAIN: runs})
    assert list(results["main"]) == list(committed["main"])
    for name, cell in results["main"].items():
        assert cell["mean"] == pytest.approx(committed["main"][name]["mean"], abs=1e-9)
        assert cell["seeds"] == committed["main"][name]["seeds"]
    for text, claim in results["claims"].items():
        assert claim["mean"] == pytest.approx(committed["claims"][text]["mean"], abs=1e-9)


def test_the_committed_credits_are_of_the_committed_config():
    """So `studies/spct.py` on the committed results loads every run and repeats none."""
    for path in sorted((COMMITTED / "credits").glob("*.json")):
        ablation, _, seed = path.stem.rpartition("-")
        config = study.run_config(spct_tiny.get_config, ablation, int(seed))
        assert json.loads(path.read_text())["config"] == study.config_hash(config), path.name


def test_a_value_without_an_interval_is_a_number():
    assert study.points({"mean": 0.1, "low": None, "high": None}) == "+10.0"
