"""The identity of a run: everything that decides a row; a resumed run that differs is refused."""

import dataclasses
import json

import pytest
from fake_judge import fake_judge, well_formed, world_tokenizer
from test_run import header_of, judge_all

from grm_jax.judging.identity import FREE_OF_JUDGE, FREE_OF_RUN, run_identity
from grm_jax.judging.judge import Judge
from grm_jax.judging.loading import LoadOptions
from grm_jax.judging.options import Options
from grm_jax.judging.run import RunConfig, judge_rows
from grm_jax.run_store import IdentityMismatch

ROWS = [{"query": f"q{i}", "responses": ["a", "b"]} for i in range(3)]
TEMPLATE = """Judge.
[Query]
{{ query }}
[/Query]
{% for r in responses %}
[Response {{ loop.index }}]
{{ r }}
[/Response {{ loop.index }}]
{% endfor %}
"""


def write(responses, key):
    return well_formed([(key[0] >> i) % 10 + 1 for i in range(len(responses))])


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def refused(source, tmp_path, first, second, field, finished=True, **options):
    """Asserts that a run begun by `first` is not resumed by `second`, killed or finished."""
    output = tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    for state in ["killed", *(["finished"] if finished else [])]:
        for path in (output, part):
            path.unlink(missing_ok=True)
        if state == "finished":
            judge_all(first(), source, output, **options)
        else:
            folder = tmp_path / f"header{len(list(tmp_path.iterdir()))}"
            part.write_bytes(header_of(first(), source, folder))
        before = (output if state == "finished" else part).read_bytes()
        with pytest.raises(IdentityMismatch, match=f"with {field} = .*, now it is") as error:
            judge_all(second(), source, output, existing="resume", **options)
        assert len(str(error.value).splitlines()) == 1
        assert (output if state == "finished" else part).read_bytes() == before


# ---------------------------------------------------------------- what is in it


def test_every_field_is_in_the_identity_or_listed_as_free():
    """A new field of any of these classes fails here until it is classified."""
    judge = fake_judge(write, settings=LoadOptions().settings())
    identity = run_identity(judge, Options(given_principles="1. Rhyme"), "input")
    options = {field.name for field in dataclasses.fields(Options)} - {"given_principles"}
    of_judge = {field.name for field in dataclasses.fields(Judge)} - {"settings", *FREE_OF_JUDGE}
    of_loading = {field.name for field in dataclasses.fields(LoadOptions)} - {*LoadOptions.FREE}
    assert identity.keys() == {*(options | of_judge | of_loading), *("model", "input", "templates")}
    assert {field.name for field in dataclasses.fields(RunConfig)} - {*FREE_OF_RUN} == {"private"}
    json.dumps(identity, allow_nan=False)


ANOTHER = {
    "k": 3,
    "temperature": 0.7,
    "seed": 1,
    "max_new_tokens": 77,
    "top_p": 0.9,
    "top_k": 5,
    "vote": "mean",
    "orders": "given",
    "k_meta": 1,
    "principles": "first",
    "given_principles": "1. Rhyme",
    "expected": True,
}


def test_every_option_decides_the_identity():
    assert ANOTHER.keys() == {field.name for field in dataclasses.fields(Options)}
    judge, default = fake_judge(write), Options()
    for name, value in ANOTHER.items():
        changed = dataclasses.replace(default, **{name: value})
        assert run_identity(judge, changed, "") != run_identity(judge, default, ""), name


# ---------------------------------------------------------------- resuming with a difference


def test_another_dtype_is_refused(source, tmp_path):
    first, second = (
        lambda dtype=dtype: fake_judge(write, settings=LoadOptions(dtype=dtype).settings())
        for dtype in ("bfloat16", "float32")
    )
    refused(source, tmp_path, first, second, "dtype")
    assert LoadOptions(rows=4, prompt_slots=2).settings() == LoadOptions().settings()


@pytest.mark.parametrize("field", ["quantize", "kv_cache_dtype"])
def test_int8_numbers_are_refused_in_a_run_of_float_ones(source, tmp_path, field):
    first, second = (
        lambda kind=kind: fake_judge(write, settings=LoadOptions(**{field: kind}).settings())
        for kind in (None, "int8")
    )
    refused(source, tmp_path, first, second, field)


@pytest.mark.parametrize("change", ["stops", "chat_template"])
def test_another_tokenizer_is_refused(source, tmp_path, change):
    def other():
        tokenizer = world_tokenizer()
        if change == "stops":
            tokenizer.stop_ids = (*tokenizer.stop_ids, 7)
        else:
            tokenizer.chat_template += " "
        return fake_judge(write, tokenizer=tokenizer)

    refused(source, tmp_path, lambda: fake_judge(write), other, "tokenizer")


@pytest.mark.parametrize("included", [False, True])
def test_an_edited_template_is_refused(source, tmp_path, included):
    template, part = tmp_path / "own.jinja", tmp_path / "part.jinja"
    part.write_text("Judge.\n")
    body = TEMPLATE.replace("Judge.", "{% include 'part.jinja' %}") if included else TEMPLATE

    def judge(text):
        def load():
            part.write_text(text)
            template.write_text(body if included else body.replace("Judge.", text))
            return fake_judge(write, template=str(template))

        return load

    refused(source, tmp_path, judge("Judge."), judge("Judge well."), "template.*")


def test_a_template_edited_during_the_run_ends_the_run(source, tmp_path):
    """The rows that were judged before the edit are kept, and resumed once it is restored."""
    template, output = tmp_path / "own.jinja", tmp_path / "out.jsonl"
    template.write_text(TEMPLATE)
    edits = iter(["", "", "Another."])

    def edit(responses, key):
        if key[1] == 0 and (text := next(edits, "")):
            template.write_text(TEMPLATE + text)
        return write(responses, key)

    with pytest.raises(ValueError, match="a template was edited during the run .*restore it"):
        judge_all(fake_judge(edit, template=str(template)), source, output)
    assert not output.exists()
    template.write_text(TEMPLATE)
    judge = fake_judge(write, template=str(template))
    assert judge_all(judge, source, output, existing="resume").resumed == 1


def test_another_meta_template_and_likelihood_are_refused(source, tmp_path, meta_rm):
    def judge(**changes):
        def load():
            meta = meta_rm()
            vars(meta).update(changes)
            return fake_judge(write, meta_rm=meta)

        return load

    own = tmp_path / "meta.jinja"
    own.write_text(TEMPLATE)
    first = judge()
    refused(source, tmp_path, first, judge(template=str(own)), "meta_template")
    refused(source, tmp_path, first, judge(likelihood=0.5), "meta_likelihood")


@pytest.fixture
def meta_rm():
    """Makes a meta reward model without weights, which likes every critique."""
    from grm_jax.judging.meta import MetaRM

    class Likes(MetaRM):
        def __init__(self):
            self.template, self.name, self.likelihood = "compact/meta_rm", "meta@1", 0.0

        def __call__(self, critiques):
            return [0.0 for _ in critiques]

    return Likes


def test_rows_with_and_without_texts_are_not_mixed(source, tmp_path):
    from grm_jax.data.comparisons import read_rows

    output, rows = tmp_path / "out.jsonl", list(read_rows(source))
    (tmp_path / "out.jsonl.part").write_bytes(
        header_of(fake_judge(write), source, tmp_path / "header")
    )
    config = RunConfig(existing="resume", private=True, progress=False)
    digest = json.loads((tmp_path / "out.jsonl.part").read_bytes().partition(b"\t")[0])["input"]
    selection = {"format": None}
    with pytest.raises(IdentityMismatch, match="private = False, now it is True"):
        judge_rows(
            fake_judge(write), rows, output, Options(k=2), lambda _: digest, config, selection
        )
