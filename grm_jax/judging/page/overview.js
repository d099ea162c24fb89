// The rates of the file: tiles with their meaning, accuracy over k, and rates by subset.

const points = (x) => (isMissing(x) ? "–" : (100 * x).toFixed(1));
const signed = (x) => (isMissing(x) ? "–" : `${x < 0 ? "−" : "+"}${Math.abs(100 * x).toFixed(1)}`);

// name, value, meaning; the meaning is text, so that it needs no pointer to hover.
function tile([name, value, note]) {
  const parts = [make("dt", { text: name }), make("dd", { class: "value", text: value })];
  return div("tile", ...parts, make("dd", { class: "note", text: note }));
}

// [name, key of the summary, format, meaning] of the rates that all rows have.
function rateRows(summaries) {
  const some = (name) => summaries.some((summary) => !isMissing(summary[name]));
  const areScalar = data.runs.every((run) => run.scalar); // rewards without critiques
  const [first] = summaries;
  const statuses = summaries.map((summary) =>
    Object.entries(summary.statuses)
      .map(([status, n]) => `${status.replace(/_/g, " ")} ${n}`)
      .join(", "),
  );
  const shown = summaries.map((summary) => summary.shown_in_several_orders).join(" and ");
  const labelled = summaries.map((summary) => summary.labelled).join(" and ");
  const count = (value) => value.toLocaleString("en");
  return [
    ["comparisons", "comparisons", count, "rows that were judged"],
    some("accuracy") && [
      ...["accuracy", "accuracy", percent],
      `share of ${labelled} labelled rows whose best response was chosen; ` +
        `a random choice has ${percent(first.chance)}`,
    ],
    some("tie_credit") && [
      ...["ties shared", "tie_credit", percent],
      "accuracy, with 1/t for each of t tied responses",
    ],
    ["ties", "ties", percent, "share of comparisons whose best responses have equal scores"],
    !areScalar && [
      ...["parse rate", "parsed", percent],
      `critiques with scores; ${statuses.join(" | ")}`,
    ],
    some("flips") && [
      ...["flips", "flips", percent],
      `share of ${shown} comparisons, shown in several orders, whose orders name different winners`,
    ],
    some("first_place") && [
      ...["first wins", "first_place", percent],
      `share of winners that were shown first; ${percent(first.first_chance)} without position bias`,
    ],
    !areScalar && [
      ...["tokens", "mean_tokens", (x) => (isMissing(x) ? "–" : String(Math.round(x)))],
      "mean length of a critique",
    ],
    ["errors", "errors", count, "rows that could not be judged"],
  ].filter(Boolean);
}

function overviewElements() {
  const summaries = data.runs.map((run) => run.summary);
  const rates = rateRows(summaries);
  const head = isPaired ? pairElements(rates, summaries) : [tiles(rates, summaries[0])];
  const fields = Object.entries(data.breakdown);
  return [
    make("h2", { text: "Overview" }),
    ...head,
    curveElement(),
    ...fields.map(([field, groups], i) => breakdownElement(field, groups, i === 0)),
  ].filter(Boolean);
}
function tiles(rates, summary) {
  const texts = rates.map(([name, key, format, note]) => [name, format(summary[key]), note]);
  return make("dl", { class: "tiles" }, texts.map(tile));
}
function pairElements(rates, summaries) {
  const { pairs, unpaired, agreement, changed, several, labelled, difference } = data.pair;
  const { tie_credit: credits, gained, lost, p } = data.pair;
  const rest = unpaired ? `; ${unpaired.toLocaleString("en")} rows are in one run only` : "";
  const { low, high } = difference || {};
  const interval = isMissing(low) ? "" : `; 95% CI ${signed(low)} to ${signed(high)}`;
  const texts = [
    ["pairs", pairs.toLocaleString("en"), `comparisons that both runs judged${rest}`],
    [
      ...["agreement", percent(agreement)],
      `share of ${several} comparisons of several responses with the same choice; ${changed} changed`,
    ],
    difference && [
      ...["B − A", `${signed(difference.value)} points`],
      `paired difference of accuracy, ties shared, on ${labelled} labelled pairs${interval}`,
    ],
    labelled > 0 && [
      ...["gained, lost", `${gained}, ${lost}`],
      `labelled pairs that only B, only A has right` +
        (p === null ? "" : `; exact McNemar test: p = ${p.toPrecision(2)}`),
    ],
    labelled > 0 && [
      ...["accuracy of the pairs", credits.map(percent).join(" → ")],
      "of A and of B, ties shared, on the same labelled pairs",
    ],
  ];
  const rows = rates.map(([name, key, format, note]) => [
    div("", make("div", { text: name }), make("div", { class: "note", text: note })),
    ...summaries.map((summary) => format(summary[key])),
  ]);
  return [
    make("dl", { class: "tiles" }, texts.filter(Boolean).map(tile)),
    block("Rates of each run, over all its rows", tableElement("rates", ["rate", ...LETTERS], rows)),
  ];
}

function curveElement() {
  const curves = data.runs.map((run) => run.curve);
  if (!curves.some((curve) => curve.length > 1)) return null;
  const values = curves.flat().map((point) => point.credit);
  const lines = data.runs.map(({ curve }, i) => ({
    name: isPaired ? LETTERS[i] : percent(curve[curve.length - 1].credit),
    hue: hue(i),
    points: curve.map((point) => [point.k, point.credit]),
  }));
  const longest = curves.reduce((a, b) => (a.length >= b.length ? a : b));
  const texts = lines.map(
    ({ points }) => points.map(([k, credit]) => `k=${k}: ${percent(credit)}`).join(", "),
  );
  const chart = lineChart({
    lines,
    ks: longest.map((point) => point.k),
    low: Math.max(0, Math.floor(20 * Math.min(...values) - 0.5) / 20),
    high: Math.min(1, Math.ceil(20 * Math.max(...values) + 0.5) / 20),
    format: (value) => `${Math.round(100 * value)}%`,
    label: `accuracy over k: ${texts.join("; ")}`,
    caption: "vote of the first k critiques, ties shared, on labelled rows",
  });
  return block("Accuracy over k", chart);
}

// The rates by the values of one field; a value filters the list.
function breakdownElement(field, groups, isOpen) {
  const rows = groups.map(({ value, rates, pair }) => {
    const show = () => changeList({ by: field, value });
    const isCurrent = state.by === field && state.value === value;
    const attributes = { class: "link", text: value, "aria-pressed": String(isCurrent) };
    const name = make("button", { ...attributes, onclick: show });
    const [first] = rates;
    if (!pair) {
      const { comparisons, accuracy, ties, parsed } = first;
      const rate = data.runs[0].scalar ? [] : [percent(parsed)];
      return [name, comparisons, percent(accuracy), percent(ties), ...rate];
    }
    const { value: difference, low, high } = pair.difference || {};
    const interval = isMissing(low) ? "–" : `${signed(low)} to ${signed(high)}`;
    return [
      ...[name, ...pair.tie_credit.map(points), signed(difference), pair.changed, pair.pairs],
      interval,
    ];
  });
  const short = field.split(".").pop();
  const headings = isPaired
    ? [short, "A", "B", "B − A", "changed", "pairs", "95% CI of B − A"]
    : [short, "rows", "accuracy", "ties", ...(data.runs[0].scalar ? [] : ["parse rate"])];
  const title = make("summary", {}, make("h2", { text: `By ${field}` }));
  const note = isPaired && "A, B: accuracy of the pairs in percent, ties shared. B − A: in points.";
  const caption = note && make("p", { class: "note", text: note });
  const table = tableElement("rates groups", headings, rows);
  return make("details", { class: "block", open: isOpen ? "" : null }, title, caption, table);
}
