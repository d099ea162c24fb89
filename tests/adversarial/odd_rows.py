"""Files with one odd row among good ones, in every layout and format, for the fuzzer of rows."""

import copy
import gzip
import io
import json
import random
import re
from csv import writer as csv_writer

import fuzz

TURN, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
WORSE = {"role": "assistant", "content": "b"}
CHAT, WORSE_CHAT = [TURN, ANSWER], [TURN, WORSE]
ROWS = [
    {
        "id": "x",
        "query": "q",
        "responses": ["a", "b"],
        "label": 1,
        "meta": {"score": 1.5, "by": ["m"]},
    },
    {
        "id": 7,
        "query": [TURN],
        "responses": ["a", "b", "c"],
        "label": [1.0, 0.5, 0],
        "reference": "r",
    },
    {"prompt": "q", "responses": ["a"], "label": 1},
    {"messages": [TURN], "choices": [{"message": ANSWER}, {"message": WORSE}], "label": 0},
    {"prompt": "q", "chosen": "a", "rejected": "b", "subset": "s"},
    {"prompt": [TURN], "chosen": [ANSWER], "rejected": [WORSE], "system": "s"},
    {"chosen": CHAT, "rejected": WORSE_CHAT},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": ANSWER, "rejected": WORSE},
    {"prompt": "q", "chosen": ["a", "c"], "rejected": ["b"]},
    {"input": {"messages": [TURN]}, "preferred_output": [ANSWER], "non_preferred_output": [WORSE]},
    {"prompt": "q", "completion": "a", "label": True},
    {"messages": CHAT, "label": False},
    {
        "instruction": "q",
        "completions": [{"response": t, "overall_score": s} for t, s in (("a", 1.0), ("b", 9.5))],
    },
    {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -2},
    {"instruction": "q", "output_1": "a", "output_2": "b", "label": 2},
    {"prompt": "q", "full_chosen": "a", "full_rejected": "b"},
    {
        "pair_uid": "u",
        "conversation_input": [TURN],
        "chosen": {"answer": "a"},
        "reject": {"answer": "b"},
    },
    {
        "bon_uid": "u",
        "conversation_input": [TURN],
        "bon_best": {"answer": "a"},
        "loser_list": [{"answer": "b"}],
    },
]
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "feather", "jsonl.gz", "json.gz", "")
_NUMBER = re.compile(r"(?<=[:\[ ])-?\d+(?:\.\d+)?(?=[,\]} ])")
ODD_TOKENS = (
    *("NaN", "-Infinity", "1e400", "9" * 5000, "0." + "3" * 5000, "[" * 988 + "]" * 988, "01"),
    *(
        "[" * 20_000,
        '"\\ud800"',
        '"a\tb"',
        "'a'",
        "{,}",
        '"unclosed',
        "nul",
        "1 2",
        '{"a": 1, "a": 2}',
    ),
)


def text_of(rng: random.Random, row: object) -> str:
    """Returns a row as JSON; sometimes a value is replaced by an odd token, or a key repeated."""
    text = json.dumps(row, ensure_ascii=rng.random() < 0.5)
    action = rng.random()
    if action < 0.15 and (places := list(re.finditer(r'(?<=: )("[^"\\]*"|-?\d+)', text))):
        place = rng.choice(places)
        text = text[: place.start()] + rng.choice(ODD_TOKENS) + text[place.end() :]
    elif action < 0.2 and isinstance(row, dict) and row:
        key = json.dumps(rng.choice(list(row)))
        text = text[:-1] + f", {key}: " + rng.choice(ODD_TOKENS[:3] + ('"z"', "1")) + "}"
    return text


def _cells(row: object) -> dict:
    if not isinstance(row, dict):
        return {"prompt": str(row)}
    return {
        str(k): v if isinstance(v, str) else "" if v is None else json.dumps(v)
        for k, v in row.items()
    }


def _csv(rows: list, delimiter: str) -> bytes:
    text, cells = io.StringIO(), [_cells(row) for row in rows]
    columns = list(dict.fromkeys(key for row in cells for key in row))
    out = csv_writer(text, delimiter=delimiter)
    out.writerow(columns)
    out.writerows([[row.get(c, "") for c in columns] for row in cells])
    return text.getvalue().encode("utf-8", "surrogatepass")


def _table(rows: list, suffix: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    if "[[[[[" in json.dumps(rows):  # pyarrow crashes on lists nested 400 deep
        rows = [_cells(row) for row in rows]
    try:
        columns = dict.fromkeys(key for row in rows for key in row)
        complete = [dict.fromkeys(columns) | row for row in rows]
        table = pa.Table.from_pylist(complete)
        if repr(table.to_pylist()) != repr(complete):  # true became 1.0 beside a number
            raise ValueError
    except (pa.ArrowException, TypeError, OverflowError, ValueError, AttributeError):
        cells = [_cells(row) for row in rows]
        cells = [{k: v.encode(errors="replace").decode() for k, v in r.items()} for r in cells]
        columns = dict.fromkeys(key for row in cells for key in row)
        table = pa.Table.from_pylist([dict.fromkeys(columns) | row for row in cells])
    out = io.BytesIO()
    try:
        if suffix == "parquet":
            pyarrow.parquet.write_table(table, out)
        else:
            new = pa.ipc.new_stream if suffix == "arrow" else pa.ipc.new_file
            with new(out, table.schema) as file:
                file.write_table(table)
    except pa.ArrowException:  # such as a struct without fields
        return _table([_cells(row) for row in rows], suffix)
    return out.getvalue()


def content(rng: random.Random, rows: list, odd: int, suffix: str) -> bytes:
    """Returns the file of some rows, of which the odd one may be written in an odd way."""
    kind = suffix.removesuffix(".gz")
    if kind in ("csv", "tsv"):
        data = _csv(rows, "," if kind == "csv" else "\t")
    elif kind in ("parquet", "arrow", "feather"):
        data = _table(rows, kind)
    else:
        texts = [text_of(rng, r) if i == odd else json.dumps(r) for i, r in enumerate(rows)]
        if kind == "json":
            space = rng.choice(["", " ", "\n", "\r\n  "])
            text = f"[{space}" + f",{space}".join(texts) + f"{space}]"
        else:
            text = rng.choice(["\n", "\r\n", "\n\n"]).join(texts) + "\n" * (rng.random() < 0.8)
        data = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            data = b"\xef\xbb\xbf" + data
    return gzip.compress(data, 1) if suffix.endswith(".gz") else data


def odd_file(rng: random.Random) -> tuple[str, bytes, int, list]:
    """Returns (suffix, content, place of the odd row, all rows)."""
    good = copy.deepcopy(rng.choice(ROWS))
    odd = fuzz.change_json(rng, good, rng.choice([0, 1, 1, 2, 3]))
    rows = [good, copy.deepcopy(good)]
    place = rng.randrange(3)
    rows.insert(place, odd)
    suffix = rng.choice(FORMATS)
    return suffix, content(rng, rows, place, suffix), place, rows
