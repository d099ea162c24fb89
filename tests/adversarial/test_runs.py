"""Runs of `grm judge` and `grm eval`: options, identity, files, and several processes at once."""

import dataclasses
import json
import math
import os
import re
import shutil
import stat
import tracemalloc

import fuzz
import pytest
from fake_judge import fake_judge, well_formed

from grm_jax import cli as grm
from grm_jax.judging.judge import Judge
from grm_jax.judging.loading import LoadOptions
from grm_jax.judging.options import NUMBERS, Options
from grm_jax.judging.run import RunConfig, judge_file
from grm_jax.judging.summary import summarise
from grm_jax.text.rendering import FOLDER

# ---------------------------------------------------------------- numbers of options


def status_of(argv):
    """The exit status of a command, also where argparse exits."""
    try:
        return grm.main(argv)
    except SystemExit as exit:
        return exit.code


OUT_OF_RANGE = {
    "--k": "0 -1 1048577",
    "--temperature": "-0.1 nan inf 101",
    "--top_p": "0 -1 1.01 nan",
    "--top_k": "-1 -5 2147483648",
    "--max_new_tokens": "0 -1 2147483648",
    "--seed": "-1 2147483648",
    "--k_meta": "0 9",
    "--chunk": "0 -5",
    "--rows": "0 -1",
    "--prompt_slots": "0 -1",
    "--limit": "0 -1",
}
COMMANDS = {
    "judge": ("judge IN OUT --model none", OUT_OF_RANGE),
    "eval": ("eval --benchmark judgebench --data none --model m", OUT_OF_RANGE | {"--draws": "0"}),
    "eval, a baseline": (
        "eval --benchmark judgebench --data none --judge first",
        OUT_OF_RANGE | {"--draws": "-1 1000001"},
    ),
    "report": ("report OUT", {"--limit": "0 -3"}),
    "convert": ("convert a b", {"--file_gb": "0 -1 nan inf"}),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_numbers_outside_their_range_are_errors_in_one_line(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "IN").write_text('{"query": "q", "responses": ["a", "b"]}\n')
    command, options = COMMANDS[name]
    (tmp_path / "m").mkdir()
    for option, values in options.items():
        for value in values.split():
            argv = [*command.split(), f"{option}={value}"]
            argv += ["--meta_rm", "m"] if option == "--k_meta" else []
            assert status_of(argv) == 2, argv
            error = capsys.readouterr().err
            assert error.count("\n") == 1, error
            assert option.lstrip("-") in error and re.search(": (use|keep|.*at least)", error)
            assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize("value", ["x=1e9", "run=", "run=-1", "run=nan", "run=inf", "1e9"])
def test_flops_per_token_name_a_run_and_a_number(value, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    entry = {"benchmark": "world", "title": "World", "judge": {}, "rule": "r", "headline": "h"}
    entry |= {"metrics": {"r": {"h": estimate}}, "curves": {}, "cost": {}}
    (tmp_path / "run" / "results.json").write_text(json.dumps([entry]))
    argv = ["table", "runs", str(tmp_path / "run"), "--flops_per_token", value]
    assert status_of(argv) == 2
    error = capsys.readouterr().err
    assert "--flops_per_token" in error and error.count("\n") == 1


def test_numbers_in_python_have_the_same_ranges():
    for name in NUMBERS:
        for value in (-1, math.nan, math.inf, 2**40, "3", True, [1], 10**400, -(10**400), 1j):
            with pytest.raises(ValueError, match=f"^{name} = ") as error:
                Options(**{name: value})
            assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 200
    for field, value in {"vote": 3, "orders": None, "expected": 1, "given_principles": " "}.items():
        with pytest.raises(ValueError, match=field):
            Options(**{field: value})
    kinds = {"quantize": "int2"}, {"kv_cache_dtype": "fp8"}
    for wrong in ({"rows": 0}, {"prompt_slots": -1}, {"rows": 1.5}, *kinds):
        with pytest.raises(ValueError, match="use"):
            LoadOptions(**wrong)
    for wrong in ({"chunk": 0}, {"chunk": -5}, {"existing": "append"}):
        with pytest.raises(ValueError, match="use"):
            RunConfig(**wrong)


def test_random_values_of_options(cases, record_property):
    """An accepted value is in its range, and has a JSON form."""
    names = [field.name for field in dataclasses.fields(Options)]

    def draws(rng):
        chosen = rng.sample(names, rng.choice([1, 1, 2]))
        return {name: rng.choice([1, 0.5, "sum", *fuzz.ODD_VALUES]) for name in chosen}

    def check(values):
        options = Options(**values)
        for name, number in NUMBERS.items():
            value = getattr(options, name)
            if value is not None:
                assert number.low <= value <= number.high and value > number.above
        json.dumps(dataclasses.asdict(options), allow_nan=False)

    tried = ((f"values {i}", draws(rng)) for i, rng in cases(300, 3000))
    fuzz.run("options", tried, check, record_property)


# ---------------------------------------------------------------- input and output


ROWS = [{"query": f"Question {i}?", "responses": [f"answer {i}", "b"]} for i in range(4)]


def write_rows(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def judge(monkeypatch, tmp_path):
    """`grm judge` with a judge that needs no weights, in tmp_path; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        Judge, "load", lambda path, **options: fake_judge(by_content, template=options["template"])
    )
    return lambda *argv: status_of(["judge", *map(str, argv), "--model", "m", "--quiet"])


def by_content(responses, key):
    return well_formed([(key[0] >> i) % 10 + 1 for i in range(len(responses))])


def content_of(folder):
    """Name -> content of the regular files of a folder, without those of the run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "argv",
    [
        "a a --overwrite",
        "a ./a --overwrite",
        "a link --overwrite",
        "link a --overwrite",
        "a hard --overwrite",
        "x.part x --overwrite",
        "x.part x --resume",
        "x.part x",
        "a y --overwrite",  # y.part is a link to the input
        "folder folder/part.jsonl --overwrite",
        "a template.jinja --template template.jinja --overwrite",
        "a principles.txt --principles principles.txt --overwrite",
        "a m/rows.jsonl --overwrite",
    ],
)
def test_an_input_is_never_an_output(argv, judge, tmp_path, capsys):
    write_rows(tmp_path / "a")
    write_rows(tmp_path / "x.part")
    (tmp_path / "m").mkdir()
    (tmp_path / "folder").mkdir()
    write_rows(tmp_path / "folder" / "part.jsonl")
    (tmp_path / "m" / "rows.jsonl").write_text("{}")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "y.part").symlink_to("a")
    (tmp_path / "hard").hardlink_to(tmp_path / "a")
    (tmp_path / "principles.txt").write_text("1. Rhyme (100%): it rhymes")
    shutil.copy(FOLDER / "compact" / "judge.jinja", tmp_path / "template.jinja")
    before = content_of(tmp_path), content_of(tmp_path / "m"), content_of(tmp_path / "folder")
    assert judge(*argv.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search("name another output|symlink|pass --resume", error)
    assert before == (
        *(content_of(tmp_path), content_of(tmp_path / "m"), content_of(tmp_path / "folder")),
    )


def test_names_of_temporary_files_are_free(judge, tmp_path):
    for name in ("x.tmp", "x.partial", ".x.tmp", "x~"):
        write_rows(tmp_path / name)
        assert judge(name, "x", "--k", 2, "--overwrite") == 0
        assert len((tmp_path / "x").read_text().splitlines()) == len(ROWS)
        assert (tmp_path / name).read_text() == write_rows(tmp_path / "again").read_text()


def test_an_output_behind_a_symlink_is_replaced_and_the_link_stays(judge, tmp_path):
    write_rows(tmp_path / "a")
    (tmp_path / "disk").mkdir()
    for target in ("disk/new", "disk/old"):
        (tmp_path / "disk" / "old").write_text("old\n")
        link = tmp_path / f"to-{target[5:]}"
        link.symlink_to(tmp_path / target)
        assert judge("a", link, "--k", 2, "--overwrite") == 0
        assert link.is_symlink() and len((tmp_path / target).read_text().splitlines()) == len(ROWS)
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["new", "old"]


@pytest.mark.parametrize("output", ["fifo", "link", "folder", "/dev/null", "/dev/stdout"])
def test_special_files_are_no_output(output, judge, tmp_path, capsys):
    write_rows(tmp_path / "a")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("fifo")
    for flags in ((), ("--resume",), ("--overwrite",)):
        assert judge("a", output, *flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and output in error
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_reports_and_tables_never_replace_what_they_read(judge, tmp_path, capsys):
    write_rows(tmp_path / "a")
    assert judge("a", "out", "--k", 2) == 0
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("[]")
    os.mkfifo(tmp_path / "fifo")
    before = content_of(tmp_path), content_of(tmp_path / "run")
    for argv in (
        "report out -o out",
        "report out -o link",
        "report link -o out",
        "report out -o out.part",
        "report out --input a -o a",
        "report out -o fifo",
        "report out -o run",
        "table runs run --out run/results.json",
        "table runs x=run --out fifo",
        "convert out out",
        "convert m out",
    ):
        capsys.readouterr()
        assert status_of(argv.split()) == 2, argv
        assert capsys.readouterr().err.count("\n") == 1, argv
    assert before == (content_of(tmp_path), content_of(tmp_path / "run"))


def test_an_evaluation_never_replaces_its_data(tmp_path, capsys):
    record = {"pair_id": "1", "source": "mmlu-pro-law", "question": "q", "label": "A>B"}
    record |= {"response_A": "a", "response_B": "b"}
    data = tmp_path / "data"
    (data / "judgebench").mkdir(parents=True)
    write_rows(data / "judgebench" / "judgebench.jsonl", [record])
    scores = tmp_path / "out" / "results.json"
    scores.parent.mkdir()
    write_rows(scores, [{"id": "judgebench-gpt-1", "scores": [1, 2]}])
    before = content_of(data / "judgebench"), content_of(scores.parent)
    base = f"eval --benchmark judgebench --data {data}"
    for rest in (
        f"--judge first --out {data}/judgebench",
        f"--write_comparisons {data}/judgebench",
        f"--scores {scores} --out {scores.parent}",
        f"--scores {data}/judgebench/judgebench.jsonl --out {data}/judgebench",
        f"--judge first --out {tmp_path}/o --against {tmp_path}/./o",
    ):
        assert status_of([*base.split(), *rest.split()]) == 2, rest
        assert capsys.readouterr().err.count("\n") == 1, rest
    assert before == (content_of(data / "judgebench"), content_of(scores.parent))


def test_an_input_is_never_an_output_in_python(tmp_path):
    source = write_rows(tmp_path / "a.part")
    for output in (source, tmp_path / "a"):
        config = RunConfig(existing="overwrite", progress=False)
        with pytest.raises(ValueError, match="is the input"):
            judge_file(fake_judge(by_content), source, output, Options(k=2), config)
    assert source.read_text() == write_rows(tmp_path / "again").read_text()


def test_the_closing_summary_streams():
    """Its memory does not grow with the rows: 2,000 rows of 50 kB, one at a time."""
    critique = {"order": [0, 1], "scores": [7.0, 3.0], "status": "ok", "tokens": 9}
    row = {"n": 2, "label": 0, "scores": [7.0, 3.0], "best": 0, "tie": False, "unparsed": 0}

    def rows():
        for i in range(2000):
            yield row | {"critiques": [critique | {"text": f"{i}" * 10_000}], "error": None}

    tracemalloc.start()
    summary = summarise(rows())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (summary["rows"], summary["accuracy"], summary["mean_tokens"]) == (2000, 1.0, 9.0)
    assert peak < 2e6
