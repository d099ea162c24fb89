"""`grm judge` in the terminal: one comparison, standard input and output, errors, names."""

import io
import json
import sys

import jax
import pytest
from fake_judge import fake_judge, first_wins
from test_run import ROWS, header_of, judge_all, loaded, write_rows

from grm_jax import Judge, cli as grm
from grm_jax.data import sources
from grm_jax.judging import cli
from grm_jax.judging.loading import fingerprint, model_name
from grm_jax.judging.summary import UNPARSED, failure_text, unparsed_text
from grm_jax.types import STATUSES


def test_one_comparison_prints_its_verdict_and_critiques(command, capsys):
    status = command(
        *("--query", "2 + 2?", "--system", "Be brief.", "--k", 2, "--reference", "4"),
        *("--response", "4", "--response", "5, I think"),
    )
    printed = capsys.readouterr()
    assert status == 0 and printed.err == ""
    assert printed.out.startswith("Tie (sum of 2 critiques).\n  Response 1  9\n  Response 2  9\n")
    assert "Critique 1 of 2: scores " in printed.out and "60% Accuracy" in printed.out


def test_a_terminal_shows_which_program_compiles(command, capsys, monkeypatch):
    def judge_one(self, comparisons, **options):
        jax.jit(lambda x: x * 3 + len(comparisons))(1.0)
        return call(self, comparisons, **options)

    call = Judge.__call__
    monkeypatch.setattr(Judge, "__call__", judge_one)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert command("--query", "2 + 2?", "--response", "4", "--response", "5") == 0
    assert capsys.readouterr().err == "\rcompiling (1 of 5)\r\x1b[K"


@pytest.mark.parametrize(
    "arguments",
    [("IN", "OUT", "--query", "q"), ("IN",), (), ("--query", "q"), ("IN", "--response", "a")],
)
def test_a_file_or_one_comparison(command, capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        command(*arguments)
    assert exit.value.code == 2
    assert "give IN and OUT, or --query and one --response or more" in capsys.readouterr().err


def test_standard_input_and_output(tmp_path, command, capfdbinary, monkeypatch):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:3], {1: b"{\n"})
    assert command(source, tmp_path / "out.jsonl", "--k", 2) == 1
    capfdbinary.readouterr()
    assert command(source, "-", "--k", 2) == 1
    printed = capfdbinary.readouterr()
    assert printed.out == (tmp_path / "out.jsonl").read_bytes()
    assert b"standard output: 4 rows, 1 of them errors" in printed.err
    sources._spooled.cache_clear()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
    assert command("-", tmp_path / "piped.jsonl", "--k", 2) == 1
    assert (tmp_path / "piped.jsonl").read_bytes() == printed.out


def test_files_are_checked_before_the_model_loads(tmp_path, command, capsys):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:2])
    (tmp_path / "empty.jsonl").write_text("\n")
    before = source.read_bytes()
    for argv, message in [
        ((source, tmp_path / "none" / "o"), f"the folder {tmp_path}/none of the output does not"),
        ((source, tmp_path), "is not writable: name a file"),
        ((source, source, "--overwrite"), "is the input: name another output"),
        ((source, "gs://b/o.jsonl"), "gs://b/o.jsonl: the output is a local file: copy it"),
        ((source, tmp_path / "o.csv"), f"rows are JSON lines: name it {tmp_path}/o.jsonl"),
        ((source, "-", "--resume"), "--resume needs a file"),
        ((source, tmp_path / "o", "--limit", 0), "--limit 0: judge at least one row"),
        ((tmp_path / "empty.jsonl", tmp_path / "o"), "empty.jsonl has no rows"),
        ((tmp_path / "no.jsonl", tmp_path / "o"), "no input file"),
        ((source, tmp_path / "o", "--k_meta", 3), "--k_meta 3 needs a meta reward model: give"),
        ((source, tmp_path / "o", "--principles", "no.txt"), "give own, first, or a text file"),
    ]:
        assert command(*argv, "--mesh", "checked later") == 2
        assert message in capsys.readouterr().err
    assert source.read_bytes() == before


def test_the_reasons_of_error_rows_are_counted(tmp_path, command, capsys):
    bad = [b'{"a": 1}\n', b'{"a": 2}\n', b"{\n", b'{"query": "q", "responses": []}\n', b"\xff\n"]
    source = write_rows(tmp_path / "in.jsonl", ROWS[:1], dict(enumerate(bad)))
    assert command(source, tmp_path / "out.jsonl", "--k", 2) == 1
    error = capsys.readouterr().err
    assert "5 of 6 rows failed:\n  2 x the fields a fit no format: name one" in error
    assert "(first: line 1)" in error and "  1 x other reasons\nnext: " in error


def test_reasons_that_differ_in_numbers_are_one():
    reasons = [f"the prompt of {n:,} tokens does not fit 8,192" for n in (9001, 12000)]
    rows = [{"error": {"reason": r, "line": i}} for i, r in enumerate(reasons, 3)]
    assert failure_text([{"error": None}, *rows]) == (
        "2 of 3 rows failed:\n  2 x the prompt of 9,001 tokens does not fit 8,192 (first: line 3)"
    )


@pytest.mark.parametrize(
    "argv, message",
    [
        (
            "judge a b --modle x",
            "grm judge: unknown option '--modle': did you mean --model? (--help lists the options)",
        ),
        ("eval --benchmrk x", "did you mean --benchmark?"),
        ("convert a b --dtpye x", "did you mean --dtype?"),
        ("report a --titel x", "did you mean --title?"),
        ("table runs x --otu y", "did you mean --out?"),
        ("judge a b --model x --xyzzy", "unknown option '--xyzzy' (--help"),
        ("judge a b --model x --samples 4", "unknown option '--samples' (--help"),
        ("judge a b --model x -k 5", "unknown option '-k': did you mean --k?"),
        ("judge a b --model x -y 5", "unknown option '-y' (--help"),
        ("judge a --out b --model x", "unknown option '--out': OUT is the second argument"),
        ("judge a b --model x --top- 2", "'--top-' is ambiguous: --top_p, --top_k"),
        ("table eval/x", "argument paper|runs: invalid choice: 'eval/x'"),
    ],
)
def test_unknown_options_are_answered_with_the_nearest(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        grm.main(argv.split())
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1


def test_options_may_be_abbreviated():
    p = cli.parser()
    for argv in ("--max-new 5 --lim 2", "--max_new=5 --LIM=2", "--max_new_tokens 5 --limit 2"):
        args = p.parse_args(["a", "b", "--mod", "x", *argv.split()])
        assert (args.max_new_tokens, args.limit, args.model) == (5, 2, "x")


def test_the_summary_names_the_way_out_of_unparsed_critiques():
    assert unparsed_text({"ok": 12, "truncated": 12}) == unparsed_text({}) == ""
    assert unparsed_text({"truncated": 24}) == (
        "24 of 24 critiques are cut off: raise --max_new_tokens"
    )
    assert unparsed_text({"ok": 1, "truncated": 1, "no_scores": 2}) == (
        "2 of 4 critiques have no scores, 1 are cut off: use another model or --template"
    )
    assert set(UNPARSED) | {"ok"} == set(STATUSES)


def test_dashes_are_underscores(tmp_path, command):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:1])
    output = tmp_path / "out.jsonl"
    assert (
        command(source, output, "--max-new-tokens=32", "--top-p", 0.9, "--prompt-slots", "1") == 0
    )
    assert loaded(output)[0]["top_p"] == 0.9 and loaded(output)[0]["max_new_tokens"] == 32
    assert command("--query=--x", "--response", "--two words", "--k", 1) == 0


# ---------------------------------------------------------------- the names of models


def test_a_model_is_named_by_its_run(tmp_path):
    folder = tmp_path / "spct_tiny" / "rl" / "hf"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert model_name(folder) == f"spct_tiny/rl@{fingerprint(folder)}"
    (tmp_path / "gemma-2.5").mkdir()
    assert model_name(tmp_path / "gemma-2.5").startswith("gemma-2.5@")


@pytest.mark.parametrize("finished", [True, False])
def test_an_output_with_the_earlier_name_of_its_model_is_resumed(tmp_path, finished):
    source, output = write_rows(tmp_path / "in.jsonl", ROWS[:3]), tmp_path / "out.jsonl"
    old = fake_judge(first_wins, name="hf@0123456789ab")
    judge_all(old, source, output)
    if not finished:
        header = header_of(old, source, tmp_path / "header")
        (tmp_path / "out.jsonl.part").write_bytes(header + output.read_bytes())
        output.unlink()
    new = fake_judge(first_wins, name="spct_tiny/rl@0123456789ab")
    assert judge_all(new, source, output, existing="resume").resumed == 3
    other = fake_judge(first_wins, name="hf@0123456789ff")
    with pytest.raises(ValueError, match="model = 'hf@0123456789ab', now it is 'hf@0123456789ff'"):
        judge_all(other, source, output, existing="resume")


def test_a_run_folder_is_answered_with_its_models(tmp_path):
    run = tmp_path / "run"
    for stage in ("rft", "rl", "meta_rm"):
        (run / stage / "hf").mkdir(parents=True)
        (run / stage / "hf" / "config.json").write_text("{}")
    (run / "config.json").write_text(json.dumps({"name": "spct_tiny"}))
    for path, models in ((run, f"{run}/rl/hf or {run}/rft/hf"), (run / "rl", f"{run}/rl/hf")):
        with pytest.raises(ValueError, match=f"is the folder of a training run: .*{models}$"):
            Judge.load(path)
