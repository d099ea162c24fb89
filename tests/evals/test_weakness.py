"""The weakness report: themes of the principles under which the policy lost."""

import json

import pytest

from grm_jax.evals import weakness


def row(id, scores, critiques, models=("ours", "theirs"), error=None):
    made = [
        {
            "status": "ok",
            "scores": s,
            "principles": [{"name": n, "weight": w, "description": f"about {n}"} for n, w in names],
        }
        for s, names in critiques
    ]
    return {
        "id": id,
        "n": 2,
        "scores": scores,
        "critiques": made,
        "meta": {"models": list(models)},
        "error": error,
    }


ROWS = [
    row(
        "a",
        [8, 14],
        [
            ([4, 7], [("Factual Accuracy", 70), ("Tone", 30)]),
            ([4, 7], [("Accuracy of facts", 60), ("Depth", 40)]),
        ],
    ),
    row("b", [5, 9], [([5, 9], [("factual accuracy", None)])]),
    row("c", [9, 3], [([9, 3], [("Tone", 50), ("Depth", 50)])]),
    row("d", [5, 5], [([5, 5], [("Tone", 100)])]),
    row("e", [1, 9], [([1, 9], [("Safety", 100)])], models=("x", "y")),
    row("f", [], [], error={"line": 6, "reason": "too long"}),
]


def test_principles_with_the_same_stems_form_a_theme_weighted_by_deficit():
    themes, counts = weakness.collect(ROWS, policy="ours")
    assert counts == {"rows": 6, "with the policy": 4, "lost": 2, "won": 1, "tied": 1}
    first = weakness.ranked(themes)[0]
    assert first.lost == 3 and first.won == 0 and first.examples == ["a", "b"]
    assert first.deficit == pytest.approx(3 * 0.7 + 3 * 0.6 + 4)
    assert (
        weakness.lift(first, themes) > 2 > weakness.lift(themes[weakness.theme_key("Tone")], themes)
    )
    assert weakness.theme_key("Safety") not in themes  # no response of the policy


def test_a_critique_counts_once_for_a_theme():
    names = [("Factual accuracy", 40), ("Accuracy of facts", 40), ("Tone", 20)]
    themes, _ = weakness.collect([row("a", [4, 7], [([4, 7], names)])], policy="ours")
    theme = themes[weakness.theme_key("Factual accuracy")]
    assert (theme.lost, theme.won, theme.names.total()) == (1, 0, 2)
    assert theme.deficit == pytest.approx(3 * 0.8)
    themes, _ = weakness.collect([row("a", [7, 4], [([7, 4], names)])], policy="ours")
    assert [theme.won for theme in themes.values()] == [1, 1]


@pytest.mark.parametrize(
    "first, second",
    [
        ("Factual Accuracy", "Accuracy of the facts"),
        ("Clarity", "clarity"),
        ("Conciseness", "Concise answer"),
        ("Instruction Following", "Follows instructions"),
    ],
)
def test_names_with_the_same_stems_share_a_key(first, second):
    assert weakness.theme_key(first) == weakness.theme_key(second)
    assert weakness.theme_key(first) != weakness.theme_key("Harmlessness")


def test_the_report(tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, ROWS)))
    assert weakness.main([str(source), "--policy", "ours"]) == 0
    text = capsys.readouterr().out
    assert "4 comparisons: 2 lost, 1 won, 1 tied" in text and "| Factual Accuracy | 3 | 0 |" in text
    assert (
        weakness.main([str(source), "--policy_index", "1", "--out", str(tmp_path / "w.json")]) == 0
    )
    assert json.loads((tmp_path / "w.json").read_text())["counts"]["lost"] == 1
    assert weakness.main([str(source), "--policy", "nobody"]) == 2
    assert "none of 6 rows has a response of the policy 'nobody'" in capsys.readouterr().err
    assert weakness.main([str(source), "--policy_index", "-1"]) == 2
    error = capsys.readouterr().err
    assert "the policy's index is -1: count its response from 0" in error
    assert error.count("\n") == 1
