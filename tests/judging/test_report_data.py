"""The data of the report page: two runs matched and compared, counts of whole files, odd rows."""

import base64
import hashlib
import json
import random
import zlib

import pytest

from grm_jax.evals.bootstrap import Resampler, mcnemar
from grm_jax.judging import pairs, report, report_data, summary, votes
from grm_jax.judging.codec import without_texts
from grm_jax.judging.report_data import Run

ABSENT = "absent"


def row(line, best=0, query=None, input="i", **fields):
    """Returns a row of two responses, the first of which is labelled best. best: None for a tie."""
    scores = {0: [8.0, 2.0], 1: [2.0, 8.0], None: [5.0, 5.0]}[best]
    critique = {
        **{"text": "t", "order": [0, 1], "scores": scores, "status": "ok", "sample": 0},
        **{"meta_score": None, "expected_scores": None, "tokens": 3, "analysis": ""},
        "principles": [],
    }
    return {
        **{"id": f"id-{line}", "line": line, "n": 2, "label": 0, "scores": scores, "best": best},
        **{"tie": best is None, "votes": {"mean": scores}, "vote": "mean", "unparsed": 0},
        **{"kept": None, "critiques": [critique], "reference": None, "error": None},
        **{"query": f"q{line}" if query is None else query, "responses": ["a", "b"], "meta": {}},
        **{"model": "m", "template": "t", "k": 1, "temperature": 0.5, "seed": 0, "input": input},
        **fields,
    }


def error(line, **fields):
    empty = {"n": 0, "label": None, "scores": [], "best": None, "critiques": [], "unparsed": 0}
    reason = {"error": {"line": line, "reason": "too long"}}
    without = {name: value for name, value in row(line).items() if name not in ("query", "meta")}
    return without | empty | {"responses": None} | reason | fields


def details(data):
    parts = [json.loads(zlib.decompress(base64.b64decode(part))) for part in data["parts"]]
    return [parts[entry["place"][0]][entry["place"][1]] for entry in data["rows"]]


# --- two runs ---


def test_rows_of_one_input_match_by_line_and_of_two_by_id():
    a, b = [row(1), row(2), row(3)], [row(3), row(1), row(4)]
    lines = [tuple(r and r["line"] for r in pair) for pair in pairs.match(a, b)]
    assert lines == [(1, 1), (2, None), (3, 3), (None, 4)]
    moved = [r | {"line": r["line"] + 10, "input": "other"} for r in b]
    lines = [tuple(r and r["line"] for r in pair) for pair in pairs.match(a, moved)]
    assert lines == [(1, 11), (2, None), (3, 13), (None, 14)]


def test_rows_with_other_texts_are_no_pair_and_equal_ids_match_in_turn():
    a = [row(1, input="x", id="same"), row(2, input="x", id="same"), row(3, input="x")]
    b = [row(1, id="same"), row(2, id="same"), row(3, query="another")]
    matched = pairs.match(a, b)
    assert [(x and x["line"], y and y["line"]) for x, y in matched] == [
        (1, 1),
        (2, 2),
        (3, None),
        (None, 3),
    ]
    with pytest.raises(ValueError, match="share no comparison"):
        pairs.match([row(1)], [row(1, query="another")])


def test_agreement_by_hand():
    a = [row(1, 0), row(2, 0), row(3, 1), row(4, None), row(5, None), error(6), row(7, 0)]
    b = [row(1, 0), row(2, 1), row(3, 0), row(4, None), row(5, 0), row(6, 0), error(7)]
    rates = pairs.agreement(pairs.match(a, b))
    assert (rates["pairs"], rates["changed"], rates["labelled"]) == (5, 3, 5)
    assert rates["unpaired"] == 0 and pairs.agreement([(row(1), None)])["unpaired"] == 1
    assert rates["agreement"] == pytest.approx(2 / 5)
    assert rates["accuracy"] == pytest.approx([2 / 5, 3 / 5])
    assert rates["tie_credit"] == pytest.approx([3 / 5, 3.5 / 5])
    assert rates["difference"]["value"] == pytest.approx(0.1)
    assert (rates["gained"], rates["lost"]) == (2, 1)


def test_a_tie_and_an_unparsed_row_are_no_agreement():
    tie, unparsed = row(1, None), row(1, None, tie=False)
    rates = pairs.agreement([(tie, unparsed), (tie, tie), (unparsed, unparsed)])
    assert (rates["agreement"], rates["changed"]) == (pytest.approx(2 / 3), 1)


def test_a_difference_on_one_prompt_has_no_interval():
    expected = {"value": 0.5, "low": None, "high": None}
    assert pairs.difference([1.0, 0.0], ["q", "q"]) == expected


def test_no_labels_and_no_pairs_give_no_rates():
    rates = pairs.agreement([(row(1, label=None), row(1, 1, label=None))])
    assert (rates["agreement"], rates["accuracy"], rates["difference"]) == (0, [None, None], None)
    assert pairs.agreement([(row(1), None)])["agreement"] is None


def test_the_interval_and_the_test_are_those_of_grm_eval():
    rng = random.Random(0)
    values = [rng.choice((-1.0, -0.5, 0.0, 0.0, 1.0)) for _ in range(120)]
    prompts = [f"q{rng.randrange(50)}" for _ in values]
    expected = Resampler(prompts).mean(values)
    assert pairs.difference(values, prompts) == pytest.approx(expected.as_json())
    assert pairs.mcnemar(9, 3) == mcnemar([0] * 9 + [1] * 3, [1] * 9 + [0] * 3)["p"]


# --- counts of whole files ---


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def digest_of(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()[:12]


def test_a_page_of_the_first_rows_has_the_rates_of_all():
    rows = [row(i, int(i > 3)) for i in range(1, 11)]
    data = report_data.page_data([Run(rows)], "t", limit=2)
    assert (len(data["rows"]), data["total"]) == (2, 10)
    assert data["runs"][0]["summary"] == summary.summarise(rows)
    assert len(details(data)) == 2


def test_a_run_that_was_cut_says_so(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    write(source, [{"query": f"q{i}", "responses": ["a", "b"]} for i in range(1, 6)])
    rows = [row(i, input=digest_of(source)) for i in range(1, 4)]
    finished = write(tmp_path / "out.jsonl", rows)
    part = write(tmp_path / "out.jsonl.part", [{"input": "x"}, *rows])
    (tmp_path / "torn.jsonl").write_text((tmp_path / "out.jsonl").read_text()[:-20])
    torn = str(tmp_path / "torn.jsonl")
    assert report.load_run(finished).state == ""
    assert report.load_run(finished, source).state == "3 of 5 rows of the input were judged"
    assert report.load_run(part).state == "unfinished run: 3 rows so far"
    assert report.load_run(part, source).state == "unfinished run: 3 of 5 rows so far"
    assert report.load_run(torn).state == "the file is cut off after 2 rows"
    page = tmp_path / "r.html"
    assert report.main([part, "--input", str(source), "-o", str(page)]) == 0
    assert "3 of 5 rows so far" in capsys.readouterr().err
    assert "3 of 5 rows so far" in page.read_text()


def test_the_input_gives_the_records_of_error_rows(tmp_path):
    records = [{"query": "q1", "responses": ["a", "b"]}, {"query": "no answers", "responses": []}]
    source = write(tmp_path / "in.jsonl", records)
    rows = [r | {"input": digest_of(source)} for r in (row(1), error(2))]
    run = report.load_run(write(tmp_path / "out.jsonl", rows), source)
    assert run.records == {"2": records[1]} and run.state == ""
    assert details(report_data.page_data([run], "t"))[1]["record"] == records[1]
    other = write(tmp_path / "other.jsonl", [row(1, input="0123456789ab")])
    with pytest.raises(ValueError, match="is not what was judged .*0123456789ab"):
        report.load_run(other, source)


def test_wrong_arguments_get_one_line(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [row(1)])
    page = str(tmp_path / "r.html")
    assert report.main([path, path, path, "-o", page]) == 2
    assert "3 outputs: give one, or two to compare" in capsys.readouterr().err
    assert report.main([path, "--limit", "0", "-o", page]) == 2
    assert "--limit 0" in capsys.readouterr().err


# --- odd rows ---


def test_an_error_row_shows_the_query_that_the_other_run_judged():
    data = report_data.page_data([Run([error(1), row(2)]), Run([row(1), row(2)])], "t")
    assert data["rows"][0]["text"] == "q1"
    assert details(data)[0]["query"] == "q1"
    assert [side and side["error"] for side in data["rows"][0]["sides"]] == ["too long", None]


def test_rows_of_one_id_get_keys_of_their_own():
    rows = [row(1, id="x"), row(2, id="x"), row(3, id="y")]
    data = report_data.page_data([Run(rows)], "t")
    assert [entry["key"] for entry in data["rows"]] == ["x (line 1)", "x (line 2)", "y"]
    joined = [*rows, *rows, row(4, id="x (line 1)")]  # as after cat a.jsonl a.jsonl
    keys = [entry["key"] for entry in report_data.page_data([Run(joined)], "t")["rows"]]
    assert len(set(keys)) == 7 and keys[3:5] == ["x (line 1), 2", "x (line 2), 2"]


def scores_of(template, *scores):
    """Returns a row whose critiques have these scores."""
    critiques = [
        row(1)["critiques"][0] | {"scores": list(values), "order": list(range(len(values)))}
        for values in scores
    ]
    n, mean = len(scores[0]), [sum(column) / len(scores) for column in zip(*scores)]
    fields = {"n": n, "responses": ["a"] * n, "scores": mean, "votes": {"mean": mean}}
    fields |= {"best": (best := votes.winner(mean)), "tie": best is None, "label": None}
    return row(1) | fields | {"critiques": critiques, "template": template}


@pytest.mark.parametrize(
    "rows, scales",
    [
        ([scores_of("own", [1], [1])], [(0, 1)]),  # one response that all critiques call right
        ([scores_of("own", [1, 1]), scores_of("own", [1, 0])], [(0, 1)] * 2),
        ([scores_of("own", [1]), scores_of("own", [7])], [(1, 10)] * 2),
        ([scores_of("own", [1, 1])], [(1, 10)]),
        ([scores_of("grm/single@0123", [1])], [(1, 10)]),
        ([scores_of("grm/single_binary@0", [1]), scores_of("grm", [1, 1])], [(0, 1), (1, 10)]),
        ([scores_of("compact/pairwise@0123", [1, 0])], [(0, 1)]),
    ],
)
def test_the_scale_is_that_of_the_template(rows, scales):
    data = report_data.page_data([Run(rows)], "t")
    assert [tuple(detail["sides"][0]["scale"]) for detail in details(data)] == scales


def test_numbers_that_json_lacks_and_lone_surrogates():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="row 'id-1' .line 1. has scores or votes .* finite"):
            report.page([row(1, scores=[value, 1.0])])
        with pytest.raises(ValueError, match="NaN or infinite"):
            report.page([row(1, meta={"weight": value})])
    text = report.page([row(1, query="\ud800 lone")])
    assert text.encode("utf-8")


def test_rates_by_fields_of_meta():
    metas = [{"subset": "a", "n": {"level": 1}}, {"subset": "b", "n": {"level": 2}}] * 3
    rows = [row(i, int(i < 2), meta=meta) for i, meta in enumerate(metas)]
    rows = [
        r | {"meta": r["meta"] | {"name": f"name {i}", "long": "x" * 99}}
        for i, r in enumerate(rows)
    ]
    groups = report_data.page_data([Run(rows)], "t")["breakdown"]
    assert list(groups) == ["subset", "n.level"]  # "name" has a value for each row
    assert [group["value"] for group in groups["subset"]] == ["a", "b"]
    assert [group["rates"][0]["accuracy"] for group in groups["subset"]] == pytest.approx(
        [2 / 3, 2 / 3]
    )


def test_large_files_are_in_several_parts():
    rows = [row(i, query=f"q{i} " + "x" * 50_000) for i in range(20)]
    data = report_data.page_data([Run(rows)], "t")
    assert len(data["parts"]) > 2
    assert [detail["query"].split()[0] for detail in details(data)] == [f"q{i}" for i in range(20)]


def test_damaged_rows_are_refused_in_one_line(tmp_path, capsys):
    critique = row(1)["critiques"][0]
    damages = [
        {"critiques": "x"},
        {"critiques": ["x"]},
        {"critiques": [critique | {"order": [0, 0]}]},
        {"critiques": [critique | {"order": None}]},
        {"critiques": [critique | {"scores": [1.0]}]},
        {"critiques": [critique | {"scores": None}]},
        {"scores": None},
        {"scores": ["1", "2"]},
        {"n": None},
        {"n": "2"},
        {"label": 7},
        {"label": "first"},
        {"label": [1.0]},
        {"error": "text"},
        {"responses": [1, 2]},
        {"responses": ["one"]},
        {"query": 5},
        {"query": ["text"]},
        {"kept": {}},
        {"votes": {"mean": 1.0}},
        {"critiques": {}},
        {"critiques": [critique | {"status": 1, "scores": None}]},
        {"critiques": [critique | {"expected_scores": 1.0}]},
        {"critiques": [critique | {"principles": ["text"]}]},
        {"meta": "text"},
        {"model": ABSENT},
        {"unparsed": ABSENT},
    ]
    for damage in damages:
        path = write(
            tmp_path / "out.jsonl", [{k: v for k, v in (row(1) | damage).items() if v != ABSENT}]
        )
        assert report.main([path, "-o", str(tmp_path / "r.html")]) == 2, damage
        error = capsys.readouterr().err
        assert "row 'id-1' (line 1) has" in error and error.count("\n") == 1, damage
    for text in ("5", "[1]", '"line"', "null"):
        (tmp_path / "out.jsonl").write_text(text + "\n")
        assert report.main([str(tmp_path / "out.jsonl"), "-o", str(tmp_path / "r.html")]) == 2
        assert "is not a row of `grm judge`" in capsys.readouterr().err


def test_rows_of_a_private_benchmark_have_a_page():
    data = report_data.page_data([Run([without_texts(row(1)), without_texts(error(2))])], "t")
    assert [detail["responses"] for detail in details(data)] == [[], []]
    assert data["runs"][0]["summary"]["accuracy"] == 1
