"""What the report page draws, in node with a DOM of the few methods that the scripts use."""

import dataclasses
import json
import shutil
import subprocess

import pytest

from grm_jax.judging import report, report_data, votes
from grm_jax.judging.codec import judged_row
from grm_jax.judging.report_data import Run
from grm_jax.types import Comparison, Critique

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="no node")
DOM = """
class Node {
  constructor(tag) { Object.assign(this, { tag, attributes: {}, children: [] }); }
  style = { setProperty: () => {} };
  setAttribute(name, value) { this.attributes[name] = value; }
  append(...children) { this.children.push(...children); }
  addEventListener() {}
}
const input = JSON.parse(require("fs").readFileSync(0, "utf8"));
const document = {
  createElement: (tag) => new Node(tag),
  createElementNS: (_, tag) => new Node(tag),
  getElementById: () => ({ textContent: JSON.stringify(input) }),
};
const all = (node) => [node, ...(node.children || []).flatMap(all)];
"""


def run(expression, data):
    """Returns the value of an expression after the page's scripts for some data."""
    names = [name for name in report.SCRIPTS if name not in ("address.js", "report.js")]
    script = "\n".join([DOM, *((report.PAGE / name).read_text() for name in names)])
    script += f"\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run(["node", "-e", script], input=json.dumps(data).encode(), capture_output=1)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return json.loads(done.stdout)


def row(line, critiques, rule="sum"):
    """Returns an output row of critiques with these scores; the first response is labelled best."""
    n = len(critiques[0])
    made = [Critique("", scores=scores, order=tuple(range(n)), status="ok") for scores in critiques]
    comparison = Comparison("q", ("a",) * n, label=0, id=str(line))
    verdict = dataclasses.replace(votes.verdict(made, n, rule=rule), id=str(line))
    settings = {"k": len(made), "temperature": 0.5, "seed": 0, "vote": rule, "input": "i"}
    return judged_row(comparison, verdict, line, {"model": "m", "template": "t"} | settings)


def test_responses_that_tie_but_for_rounding_are_all_marked():
    # A tie of three gives each 1/3: 1 + 1/3 + 1/3 + ... and ... + 1/3 + 1/3 + 1 differ by rounding.
    judged = row(1, [(9, 1, 1), *[(5, 5, 5)] * 3, (1, 9, 1)], "majority")
    side, detail = report_data.side(judged), report_data.votes_of(judged, (1, 10))
    top, second, _ = judged["votes"]["majority"]
    assert judged["tie"] and top != second
    data = {"runs": [{}], "labels": {}, "side": side, "detail": detail}
    won = "all({ children: voteElements(input.side, input.detail) }).filter((e) => e.tag === 'tr')"
    rows = run(f"{won}.map((e) => e.children.slice(1).map((cell) => cell.className || ''))", data)
    assert rows[[*judged["votes"]].index("majority") + 1] == ["won", "won", ""]
    tied = "[0, 1, 2].map((i) => all(scoreLine(input.side, input.detail, i, 0).line)"
    tied += ".some((e) => e.textContent === 'tied'))"
    assert run(tied, data) == [True, True, False]


def test_a_run_of_one_critique_is_inside_the_chart_of_two_runs():
    single = [row(i, [(1, 9)]) for i in range(3)]
    several = [row(i, [(9, 1)] * 4) for i in range(3)]
    runs = [Run(single, "a"), Run(several, "b")]
    drawn = run(
        "all(curveElement()).filter((e) => e.attributes).map(({ tag, attributes, textContent }) => "
        "({ tag, textContent, ...attributes }))",
        report_data.page_data(runs, "t"),
    )
    (marker,) = (e for e in drawn if e["tag"] == "circle")
    labels = {e.get("textContent"): e for e in drawn if e["tag"] == "text"}
    axis = [e["y1"] for e in drawn if e.get("class") == "axis"]
    assert min(axis) <= marker["cy"] <= max(axis)
    assert 0 < labels["A"]["x"] - marker["cx"] < 20 and labels["B"]["x"] > labels["A"]["x"] + 100
