"""Settings and included files of a user's template are constants, or the template is refused."""

import re

import pytest

from grm_jax.text import rendering
from grm_jax.types import Comparison

BODY = (
    "Score from {{ low }} to {{ high }}.\n[Query]\n{{ query }}\n[/Query]\n"
    "{% for r in responses %}\n[Response {{ loop.index }}]\n{{ r }}\n[/Response {{ loop.index }}]\n"
    "{% endfor %}\nScores?"
)
PAIR = Comparison("q", ("a", "b"))


@pytest.mark.parametrize(
    "source, setting",
    [
        ("{% set high = 10 * 10 %}", "high"),
        ("{% set low, high = 0, 5 %}", "low"),
        ("{% set high %}5{% endset %}", "high"),
        ("{% set top = 5 %}{% set high = top %}", "high"),
        ("{% if n > 2 %}{% set low = 0 %}{% endif %}", "low"),
        ("{% set low = 0 %}{{ low }}{% set low = 2 %}", "low"),
        ("{% for high in [5] %}{{ high }}{% endfor %}", "high"),
        ("{% with high = 5 %}{{ high }}{% endwith %}", "high"),
        ("{% macro x() %}{% set high = 5 %}{{ high }}{% endmacro %}{{ x() }}", "high"),
        ("{% from 'scale.jinja' import high %}", "high"),
        ("{% from 'scale.jinja' import high as low %}", "low"),
        ("{% import 'scale.jinja' as high %}", "high"),
        ("{% set output = 'sco' ~ kind %}", "output"),
        ("{% set n_max = n %}", "n_max"),
    ],
)
def test_a_setting_that_is_not_one_constant_is_refused(tmp_path, source, setting):
    (tmp_path / "scale.jinja").write_text("{% set high = 10 %}")
    (tmp_path / "own.jinja").write_text(f"Judge.\n{source}{BODY}")
    message = f"template 'own.jinja', line 2: {setting} may differ .* such as {{% set {setting} ="
    with pytest.raises(ValueError, match=message):
        rendering.load(tmp_path / "own.jinja")


def test_an_included_file_sets_no_other_scale(tmp_path):
    (tmp_path / "scale.jinja").write_text("{% set high = 5 %}to {{ high }}\n")
    (tmp_path / "other.jinja").write_text("{% include 'scale.jinja' %}" + BODY)
    with pytest.raises(ValueError, match="line 1 of scale.jinja: high may differ .* other.jinja"):
        rendering.load(tmp_path / "other.jinja")
    same = "{% set high = 5 %}{% include 'scale.jinja' %}"
    (tmp_path / "same.jinja").write_text(same + BODY)
    assert rendering.load(tmp_path / "same.jinja").high == 5


def test_constants_and_parameters_are_accepted(tmp_path):
    source = (
        "{% for output in [1] %}{% endfor %}{% macro needs() %}{% endmacro %}{% set low = -1 %}"
    )
    source += "{% set low = -1 %}{% macro scale(low, high) %}{{ low }}{% endmacro %}{% set x = n %}"
    (tmp_path / "own.jinja").write_text(source + "{{ scale(low, high) }}\n" + BODY)
    template = rendering.load(tmp_path / "own.jinja")
    assert (template.low, template.high, template.n_max) == (-1, 10, 32)
    assert "from -1 to 10" in rendering.render(template, PAIR)[0]["content"]


@pytest.mark.parametrize(
    "source",
    [
        "{% set head = 'head.jinja' %}{% include head %}",
        "{% include ['none.jinja', x] ignore missing %}",
        "{% import 'head' ~ '.jinja' as head %}",
        "{% extends 'head.jinja' if n > 2 else 'none.jinja' %}",
    ],
)
def test_an_included_file_that_a_variable_names_is_refused(tmp_path, source):
    (tmp_path / "head.jinja").write_text("Be strict.\n")
    (tmp_path / "own.jinja").write_text(source + BODY)
    message = "template 'own.jinja', line 1: the name of an included file is not constant: write"
    with pytest.raises(ValueError, match=message):
        rendering.load(tmp_path / "own.jinja")


def test_a_missing_file_may_be_ignored(tmp_path):
    (tmp_path / "head.jinja").write_text("Be strict.\n")
    source = "{% include 'none.jinja' ignore missing %}{% include ['none.jinja', 'head.jinja'] %}"
    (tmp_path / "own.jinja").write_text(source + BODY)
    template = rendering.load(tmp_path / "own.jinja")
    assert [name for name, _ in template.files] == ["own.jinja", "head.jinja"]
    assert rendering.render(template, PAIR)[0]["content"].startswith("Be strict.Score")
    for names in ("'none.jinja'", "['none.jinja', 'neither.jinja']"):
        (tmp_path / "bad.jinja").write_text(f"{{% include {names} %}}{BODY}{names}")
        with pytest.raises(ValueError, match=re.escape("includes 'none.jinja', which is no")):
            rendering.load(tmp_path / "bad.jinja")
        (tmp_path / "bad.jinja").unlink()
