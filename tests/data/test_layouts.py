"""Published layouts, on small records of their shape, and malformed records."""

import dataclasses
from pathlib import Path

import growth
import pytest

from grm_jax.data import records
from grm_jax.data.answers import boxed_answer, same_answer
from grm_jax.data.comparisons import detect, placed, simplified
from grm_jax.data.layouts import LAYOUTS

ROOT = Path(__file__).resolve().parents[2]


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


OPTIONAL = ("source", "domain", "id", "bon_uid", "category_path", "ground_truth", "6b_finetuning")
OPTIONAL += ("6b_verification", "175b_finetuning", "175b_verification")  # any number of solutions


def read(name, record, record_name="r-1"):
    return LAYOUTS[name].read(record, record_name)


@pytest.mark.parametrize("name", GOOD)
def test_record_gives_comparisons_with_the_best_labelled(name):
    comparisons = read(name, GOOD[name])
    assert len(comparisons) == (9 if name == "rm_bench" else 1)
    for comparison in map(simplified, comparisons):
        assert comparison.query == "q"
        assert comparison.responses[comparison.best].startswith("best")
        assert comparison.id


@pytest.mark.parametrize("name", GOOD)
def test_published_order_is_kept_with_the_better_response_of_a_pair_first(name):
    for comparison in read(name, GOOD[name]):
        assert comparison.best == (1 if name == "ultrafeedback" else 0)


@pytest.mark.parametrize("name", GOOD)
def test_missing_field_is_malformed_and_named(name):
    for key in set(GOOD[name]) - set(OPTIONAL):
        record = {k: v for k, v in GOOD[name].items() if k != key}
        with pytest.raises(records.Malformed, match=r"is missing|give "):
            read(name, record)


def test_placed_balances_the_positions_of_the_best():
    (comparison,) = read("offsetbias", GOOD["offsetbias"])
    labels = [placed(dataclasses.replace(comparison, id=f"file-{i}")).label for i in range(2000)]
    assert abs(sum(labels) / 2000 - 0.5) < 0.05
    # Only the id decides: reading again, or another file, changes nothing.
    assert labels[:5] == [
        placed(dataclasses.replace(comparison, id=f"file-{i}")).label for i in range(5)
    ]


def test_placed_moves_rewards_with_their_responses():
    (comparison,) = read("ultrafeedback", GOOD["ultrafeedback"])
    rewards = dict(zip(comparison.responses, comparison.label))
    orders = set()
    for i in range(20):
        moved = placed(dataclasses.replace(comparison, id=f"r-{i}"))
        assert dict(zip(moved.responses, moved.label)) == rewards
        orders.add(moved.responses)
    assert len(orders) == 6
    with pytest.raises(ValueError, match="without an id"):
        placed(dataclasses.replace(comparison, id=None))


def test_ultrafeedback_scores_are_the_rewards():
    assert sorted(read("ultrafeedback", GOOD["ultrafeedback"])[0].label) == [3.0, 5.0, 9.0]
    alone = {**GOOD["ultrafeedback"], "completions": GOOD["ultrafeedback"]["completions"][:1]}
    with pytest.raises(records.Unusable, match="one completion"):
        read("ultrafeedback", alone)


def test_helpsteer2_sign_strength_and_turns():
    first = read("helpsteer2", {**GOOD["helpsteer2"], "preference_strength": -3})[0]
    assert first.responses[first.best] == "worse" and first.meta["strength"] == 3
    with pytest.raises(records.Unusable):
        read("helpsteer2", {**GOOD["helpsteer2"], "preference_strength": 0})
    with pytest.raises(records.Malformed, match="-3 to 3"):
        read("helpsteer2", {**GOOD["helpsteer2"], "preference_strength": 5})
    prompt = "hello\n<extra_id_1>Assistant\nhi\n<extra_id_1>User\nmore"
    chat = read("helpsteer2", {**GOOD["helpsteer2"], "prompt": prompt})[0]
    assert chat.query == turns("hello", "hi", "more")


def test_skywork_conversations_must_share_all_turns_but_the_last():
    record = {"chosen": turns("q", "best"), "rejected": turns("other", "worse")}
    with pytest.raises(records.Malformed, match="do not share"):
        read("skywork", record)
    record = {"chosen": turns("q", "a", "b", "best"), "rejected": turns("q", "a", "c", "worse")}
    with pytest.raises(records.Malformed, match="turns after those that both share"):
        read("skywork", record)


def test_verified_answers_come_as_groups_pairs_or_singles():
    group = read("gsm8k", GOOD["gsm8k"])[0]
    assert group.n == 3 and "<<" not in group.reference
    assert [c.n for c in read("gsm8k_pairs", GOOD["gsm8k"])] == [2, 2]
    singles = read("gsm8k_singles", GOOD["gsm8k"])
    assert [c.label for c in singles] == [(0.0,), (0.0,), (1.0,), (1.0,)]
    with pytest.raises(records.Unusable, match="all right"):
        read("math", {**GOOD["math"], "samples": [r"\boxed{1/2}"]})


def test_rm_bench_pairs_carry_their_styles():
    pairs = read("rm_bench", GOOD["rm_bench"])
    assert {(c.meta["chosen_style"], c.meta["rejected_style"]) for c in pairs} == {
        (i, j) for i in range(3) for j in range(3)
    }


def test_rmb_pair():
    pair = {**GOOD["rmb"], "chosen": {"answer": "best"}, "reject": {"answer": "worse"}}
    pair |= {"pair_uid": "9"}
    del pair["bon_best"]
    comparison = read("rmb", pair)[0]
    assert comparison.n == 2 and comparison.responses[comparison.best] == "best"
    assert comparison.id == "rmb-pair-9"


def test_comparison_layout_keeps_order_label_and_id():
    record = {"query": turns("a", "b", "c"), "responses": ["x", "y"], "label": [0.1, 0.9], "id": 3}
    comparison = read("comparison", record)[0]
    assert comparison.label == (0.1, 0.9) and comparison.id == "3"
    assert comparison.query == turns("a", "b", "c")
    assert LAYOUTS["comparison"].keeps_order


def test_sharegpt_turns_are_renamed():
    record = {"query": [{"from": "human", "value": "q"}], "responses": ["x"]}
    assert read("comparison", record)[0].query == [{"role": "user", "content": "q"}]


def test_unknown_layout_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown layout 'x'"):
        LAYOUTS["x"]


def test_new_layout_needs_one_registration(monkeypatch, tmp_path):
    """One entry of LAYOUTS is seen by detection, the command line and training configs."""
    from grm_jax.data import layouts, mixtures
    from grm_jax.judging import cli

    def read_my_set(record, name):
        return [layouts.Comparison(record["ask"], record["answers"], label=0, id=name)]

    layout = layouts.Layout(read_my_set, "me/my_set", matches=lambda record: "answers" in record)
    monkeypatch.setitem(LAYOUTS, "my_set", layout)
    assert detect({"ask": "q", "answers": ["a", "b"]}) == "my_set"
    command = ["in", "out", "--model", "m", "--format", "my_set"]
    assert cli.parser().parse_args(command).format == "my_set"
    (tmp_path / "x.jsonl").write_text('{"ask": "q", "answers": ["a", "b"]}\n')
    mixtures.add_comparisons("t_mine", {"train": str(tmp_path / "x.jsonl")}, layout="my_set")
    assert '"id": "x-1"' in next(mixtures.read("t_mine", "train", mixtures.COMPARISON))


def test_docs_list_every_layout():
    page = (ROOT / "docs/data.md").read_text()
    for name in LAYOUTS:
        assert f"`{name}`" in page, f"docs/data.md does not list the layout {name}"


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
        (r"\$18.90", "18.90", True),
        (r"\$18.90", "18.9", True),
        (r"$\$1{,}250$", "1250", True),
        (".35625", "0.35625", True),
        ("(-.5, 1)", "(-0.5,1)", True),
        ("x=5", "5", True),
        (r"x = \frac12", "0.5", True),
        (r"\theta = 3", "3", True),
        ("y=2x+3", "2x+3", True),
        ("x=5", "y=5", False),
        ("x=5", "6", False),
        (r"11\sqrt2", r"11\sqrt{2}", True),
        (r"11\sqrt2", r"11\sqrt{3}", False),
        (r"\frac1{72}", r"\frac{1}{72}", True),
        (r"5.4\text{ cents}", "5.4", True),
        (r"5.4 \text{cents}", "5.40", True),
        (r"12\mbox{ cm}^2", "12", True),
        (r"3\sqrt{2}\text{ cm}", r"3\sqrt2", True),
        (r"5\text{ cm}", r"5\text{ m}", False),
        (r"10\text{ a.m.}", r"10\text{ p.m.}", False),
        (r"5\text{ inches}", r"5\text{ inch}", True),
        (r"\text{Friday}", "Friday", True),
        (r"\text{(A)}", r"\text{(B)}", False),
        (r"2\text{ and }3", "2", False),
        ("9" * 5000, "1", False),
        ("1/0", "1/0 ", True),
    ],
)
def test_same_answer_compares_meaning(a, b, same):
    assert same_answer(a, b) == same


@pytest.mark.parametrize(
    "text", [r"\boxed{", r"\boxed{\text{ ", "{", "}", r"\box ", "x=", "1,", "$"]
)
def test_long_answers_take_linear_time(text):
    def compare(length):
        boxed_answer(text * length)
        same_answer(text * length, "1")
        same_answer(text * 100, "1")

    growth.check_linear(compare, 30_000)


def test_boxed_answer_is_the_last_balanced_box():
    assert boxed_answer(r"\boxed{1} then \boxed{\frac{a}{b}}.") == r"\frac{a}{b}"
    assert boxed_answer(r"\boxed{1} and \boxed{2") == "1"
    assert (
        boxed_answer(r"\boxed{\boxed{5}} }") == "5" and boxed_answer(r"\boxed{\{1\}}") == r"\{1\}"
    )
    assert boxed_answer("none") is None
