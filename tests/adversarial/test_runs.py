"""Runs of `grm judge` and `grm eval`: options, identity, files, and several processes at once."""

import dataclasses
import json
import math
import re

import fuzz
import pytest

from grm_jax import cli as grm
from grm_jax.judging.loading import LoadOptions
from grm_jax.judging.options import NUMBERS, Options
from grm_jax.judging.run import RunConfig

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
    (tmp_path / "run" / "results.json").write_text("[]")
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
    for wrong in ({"rows": 0}, {"prompt_slots": -1}, {"rows": 1.5}):
        with pytest.raises(ValueError, match="use"):
            LoadOptions(**wrong)
    for wrong in ({"chunk": 0}, {"chunk": -5}, {"existing": "append"}):
        with pytest.raises(ValueError, match="use"):
            RunConfig(**wrong)


def test_random_values_of_options(cases, record_property):
    """An accepted value is in its range, and has a JSON form."""
    names = [field.name for field in dataclasses.fields(Options)]

    def draws(rng):
        return {
            rng.choice(names): rng.choice(fuzz.ODD_VALUES) for _ in range(rng.choice([1, 1, 2]))
        }

    def check(values):
        options = Options(**values)
        for name, number in NUMBERS.items():
            value = getattr(options, name)
            if value is not None:
                assert number.low <= value <= number.high and value > number.above
        json.dumps(dataclasses.asdict(options), allow_nan=False)

    tried = ((f"values {i}", draws(rng)) for i, rng in cases(300, 3000))
    fuzz.run("options", tried, check, record_property)
