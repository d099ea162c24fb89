"""The comparison of rows by the sampler and through a server: counts, absent fields, pages."""

from benchmarks import endpoint_rows as program


def row(id, *statuses, **more):
    critiques = [{"order": [0, 1], "status": status, **more} for status in statuses]
    return {"id": id, "k": 2, "critiques": critiques}


def test_fields_are_counted_in_rows_and_critiques():
    ours = [row("a", "ok", "ok"), row("b", "ok", "truncated")]
    theirs = [row("a", "ok", "no_scores", prompt_tokens=9), row("b", "ok", "truncated") | {"k": 3}]
    fields = program.compare(ours, theirs)
    assert fields["id"] == fields["critiques"] == (2, 2, "")
    assert fields["k"] == (1, 2, "")
    assert fields["critique.order"] == (4, 4, "")
    assert fields["critique.status"] == (3, 4, "")
    assert fields["critique.prompt_tokens"] == (0, 2, "sampler")
    assert "| `critique.prompt_tokens` | 0 | 2 | sampler |" in program.table(fields)
    assert program.statuses(theirs) == {"ok": 2, "no_scores": 1, "truncated": 1}


def test_a_row_that_failed_has_fewer_critiques():
    fields = program.compare([row("a")], [row("a", "ok")])
    assert fields["critiques"] == (0, 1, "") and "critique.order" not in fields


def test_rows_of_different_comparisons_are_not_equal():
    assert program.compare([row("a", "ok")], [row("b", "ok")])["id"] == (0, 1, "")


def test_pages_differ_in_their_elements_not_in_their_texts():
    one = program.page_elements('<p class="critique">a<b>x</b></p>')
    assert one == program.page_elements('<p class="critique">other<b>y</b><b>z</b></p>')
    assert one ^ program.page_elements('<p class="row">a<b>x</b></p>') == {
        ("p", "critique"),
        ("p", "row"),
    }
