"""Published column layouts, on small records of their shape; and malformed ones."""

import gzip
import json
from pathlib import Path

import pytest

from grm_jax.data import layouts, records
from grm_jax.data.answers import boxed_answer, same_answer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


GOOD = {
    "ultrafeedback": {
        "source": "s",
        "instruction": "q",
        "completions": [
            {"response": t, "overall_score": v}
            for t, v in (("worse", 3.0), ("best", 9.0), ("mid", 5.0))
        ],
    },
    "helpsteer2": {
        "prompt": "q",
        "response_1": "worse",
        "response_2": "best",
        "preference_strength": 2,
    },
    "offsetbias": {"instruction": "q", "output_1": "best", "output_2": "worse", "label": 1},
    "skywork": {"chosen": turns("q", "best"), "rejected": turns("q", "worse"), "source": "s"},
    "gsm8k": {
        "question": "q",
        "ground_truth": "1 + 1 = <<1+1=2>>2",
        "6b_finetuning": {"is_correct": False, "solution": "worse"},
        "6b_verification": {"is_correct": False, "solution": "bad"},
        "175b_finetuning": {"is_correct": True, "solution": "best"},
        "175b_verification": {"is_correct": True, "solution": "best"},
    },
    "math": {
        "problem": "q",
        "solution": r"so \boxed{\frac12}",
        "samples": [r"worse \boxed{2}", r"best \boxed{0.5}"],
    },
    "rm_bench": {
        "id": 7,
        "prompt": "q",
        "chosen": ["best"] * 3,
        "rejected": ["worse"] * 3,
        "domain": "chat",
    },
    "rmb": {
        "bon_uid": "7",
        "conversation_input": [{"role": "user", "content": "q", "language": "English"}],
        "bon_best": {"llm_name": "m", "answer": "best"},
        "loser_list": [{"llm_name": "m", "answer": "worse"}, {"llm_name": "m", "answer": "bad"}],
        "category_path": "c",
    },
}


@pytest.mark.parametrize("name", GOOD)
def test_a_record_becomes_comparisons_with_the_best_labelled(name):
    made = layouts.get_layout(name)(GOOD[name], "r-1")
    assert len(made) == (9 if name == "rm_bench" else 1)
    for c in made:
        assert c.query == "q"
        assert c.responses[c.best].startswith("best")
        assert c.id


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_column_is_malformed_and_named(name):
    read = layouts.get_layout(name)
    for key in GOOD[name]:
        if key in (
            "source",
            "domain",
            "id",
            "bon_uid",
            "category_path",
            "ground_truth",
        ) or key.endswith("ication"):
            continue
        record = {k: v for k, v in GOOD[name].items() if k != key}
        if name == "gsm8k" and key != "question":
            continue  # the four solutions may be any number
        with pytest.raises(records.Malformed):
            read(record, "r-1")


def test_places_of_the_best_are_balanced():
    places = [layouts.offsetbias(GOOD["offsetbias"], f"file-{i}")[0].label for i in range(2000)]
    assert abs(sum(places) / 2000 - 0.5) < 0.05
    # Only the name decides: reading again, or another file, changes nothing.
    assert places[:5] == [
        layouts.offsetbias(GOOD["offsetbias"], f"file-{i}")[0].label for i in range(5)
    ]


def test_ultrafeedback_keeps_scores_as_rewards_and_refuses_ties():
    made = layouts.ultrafeedback(GOOD["ultrafeedback"], "r")[0]
    assert sorted(made.label) == [3.0, 5.0, 9.0]
    tied = {
        **GOOD["ultrafeedback"],
        "completions": [{"response": t, "overall_score": 4} for t in "ab"],
    }
    with pytest.raises(records.Unusable, match="no single best"):
        layouts.ultrafeedback(tied, "r")


def test_helpsteer2_sign_strength_and_turns():
    first = layouts.helpsteer2({**GOOD["helpsteer2"], "preference_strength": -3}, "r")[0]
    assert first.responses[first.best] == "worse" and first.meta["strength"] == 3
    with pytest.raises(records.Unusable):
        layouts.helpsteer2({**GOOD["helpsteer2"], "preference_strength": 0}, "r")
    with pytest.raises(records.Malformed, match="-3 to 3"):
        layouts.helpsteer2({**GOOD["helpsteer2"], "preference_strength": 5}, "r")
    prompt = "hello\n<extra_id_1>Assistant\nhi\n<extra_id_1>User\nmore"
    chat = layouts.helpsteer2({**GOOD["helpsteer2"], "prompt": prompt}, "r")[0]
    assert chat.query == turns("hello", "hi", "more")


def test_skywork_needs_a_shared_conversation():
    with pytest.raises(records.Malformed, match="do not share"):
        layouts.skywork({"chosen": turns("q", "best"), "rejected": turns("other", "worse")}, "r")


def test_verified_answers_come_as_groups_pairs_or_singles():
    group = layouts.gsm8k(GOOD["gsm8k"], "r")[0]
    assert group.n == 3 and "<<" not in group.reference
    assert [c.n for c in layouts.gsm8k(GOOD["gsm8k"], "r", mode="pairs")] == [2, 2]
    singles = layouts.gsm8k(GOOD["gsm8k"], "r", mode="singles")
    assert [c.label for c in singles] == [(0.0,), (0.0,), (1.0,), (1.0,)]
    right = {**GOOD["math"], "samples": [r"\boxed{1/2}"]}
    with pytest.raises(records.Unusable, match="all right"):
        layouts.math(right, "r")


def test_rm_bench_pairs_know_their_styles():
    made = layouts.rm_bench(GOOD["rm_bench"], "r")
    assert {(c.meta["chosen_style"], c.meta["rejected_style"]) for c in made} == {
        (i, j) for i in range(3) for j in range(3)
    }


def test_rmb_reads_pairs_too():
    pair = {
        **GOOD["rmb"],
        "chosen": {"answer": "best"},
        "reject": {"answer": "worse"},
        "pair_uid": "9",
    }
    del pair["bon_best"]
    made = layouts.rmb(pair, "r")[0]
    assert made.n == 2 and made.responses[made.best] == "best" and made.id == "rmb-pair-9"


@pytest.mark.parametrize(
    "a, b, same",
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\dfrac12", "1/2", True),
        (r"\text{ yes}", "yes", True),
        ("1,234", "1234", True),
        ("(1,2)", "(1, 2)", True),
        ("12", "1,2", False),
        (r"2\pi", r"\pi", False),
        ("1/0", "0", False),
        (r"90^\circ", "90", True),
    ],
)
def test_answers_that_mean_the_same(a, b, same):
    assert same_answer(a, b) == same


def test_the_last_balanced_box_is_the_answer():
    assert boxed_answer(r"\boxed{1} then \boxed{\frac{a}{b}}.") == r"\frac{a}{b}"
    assert boxed_answer(r"\boxed{1} and \boxed{2") == "1"
    assert boxed_answer("none") is None


# ---------------------------------------------------------------- files


def lines(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def test_a_malformed_record_is_reported_with_file_and_line_and_skipped(tmp_path, caplog):
    good = GOOD["offsetbias"]
    path = lines(tmp_path / "pairs.jsonl", [good, "{broken", "", good, {**good, "label": 3}, "[1]"])
    account = records.Account()
    made = list(
        records.read_comparisons(path, layouts.offsetbias, max_skipped=0.7, account=account)
    )
    assert [c.id for c in made] == ["pairs-1", "pairs-4"]
    assert [(p, line) for p, line, _ in account.malformed] == [
        (str(path), 2),
        (str(path), 5),
        (str(path), 6),
    ]
    assert f"{path}:5: skipped: column 'label' is 3" in caplog.text
    assert account.summary() == {"seen": 5, "malformed": 3, "unusable": {}}


def test_reading_stops_above_the_stated_share(tmp_path):
    good = GOOD["offsetbias"]
    path = lines(tmp_path / "pairs.jsonl", [good] * 98 + ["{"] * 2 + [good] * 100)
    assert len(list(records.read_comparisons(path, layouts.offsetbias, max_skipped=0.02))) == 198
    with pytest.raises(records.TooManyMalformed, match=r"2 of 100 .*pairs\.jsonl:99: not JSON"):
        list(records.read_comparisons(path, layouts.offsetbias, max_skipped=0.01))


def test_unusable_records_are_counted_but_are_no_fault(tmp_path):
    tie = {**GOOD["helpsteer2"], "preference_strength": 0}
    path = lines(tmp_path / "p.jsonl", [tie, tie, GOOD["helpsteer2"]])
    account = records.Account()
    assert (
        len(
            list(
                records.read_comparisons(path, layouts.helpsteer2, max_skipped=0.0, account=account)
            )
        )
        == 1
    )
    assert account.summary()["unusable"] == {"no single best response": 2}


def test_json_lists_and_gzip_know_their_lines(tmp_path):
    text = json.dumps([{"a": 1}, 5, {"b": [2]}], indent=1)
    (tmp_path / "x.json").write_text(text)
    with gzip.open(tmp_path / "x.json.gz", "wt") as out:
        out.write(text)
    for name in ("x.json", "x.json.gz"):
        rows = list(records.read_records(tmp_path / name))
        assert [line for line, _ in rows] == [2, 5, 6]
        assert rows[2][1] == {"b": [2]} and isinstance(rows[1][1], records.Malformed)


def test_unreadable_files_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data file"):
        list(records.read_records(tmp_path / "none.jsonl"))
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(ValueError, match=r"\.jsonl or \.json"):
        list(records.read_records(tmp_path / "t.csv"))
    (tmp_path / "o.json").write_text("{}")
    with pytest.raises(ValueError, match="no JSON list"):
        list(records.read_records(tmp_path / "o.json"))
    with pytest.raises(ValueError, match="unknown layout 'x'"):
        layouts.get_layout("x")


def test_our_own_layout_keeps_the_order_and_the_label():
    made = layouts.comparison(
        {"query": turns("a", "b", "c"), "responses": ["x", "y"], "label": [0.1, 0.9], "id": 3}, "r"
    )
    assert (
        made[0].label == (0.1, 0.9) and made[0].id == "3" and made[0].query == turns("a", "b", "c")
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public sets are not here (../shared/data)")
@pytest.mark.parametrize(
    "file, layout, count",
    [
        ("gsm8k/grade_school_math/data/example_model_solutions.jsonl", "gsm8k", 731),
        ("rm_bench/data/chat_filtered.json", "rm_bench", 9 * 129),
        ("rm_bench/data/code_filtered.json", "rm_bench", 9 * 228),
    ],
)
def test_real_files_are_read_whole(file, layout, count):
    account = records.Account()
    made = list(
        records.read_comparisons(
            SHARED / file, layouts.get_layout(layout), max_skipped=0.0, account=account
        )
    )
    assert len(made) == count
    assert not account.malformed
