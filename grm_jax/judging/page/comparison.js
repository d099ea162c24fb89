// One comparison: query, responses, votes and critiques of one run or of two.

const LETTERS = ["A", "B"];
const isPaired = data.runs.length > 1;
const runName = (i) => (isPaired ? `${LETTERS[i]}: ${data.runs[i].name}` : "");

function outcomeOf(side) {
  if (!side) return ["", "no row"];
  if (side.error) return ["bad", "error"];
  if (side.all_unparsed) return ["bad", "all unparsed"];
  if (side.tie) return ["mild", "tie"];
  if (side.credit === 1) return ["good", "right"];
  if (side.credit !== null) return ["bad", "wrong"];
  if (!isPaired) return null;
  return ["", side.scores.length > 1 ? `chose ${side.best + 1}` : number(side.scores[0])];
}
function outcomeBadges(row) {
  return row.sides.map((side, i) => {
    const outcome = outcomeOf(side);
    return outcome && badge(outcome[0], isPaired ? `${LETTERS[i]} ${outcome[1]}` : outcome[1]);
  });
}

function comparisonElements(row, detail) {
  const errors = row.sides.map((side, i) => {
    if (!side || !side.error) return null;
    const name = isPaired ? make("strong", { text: `Run ${LETTERS[i]}: ` }) : null;
    return make("p", { class: "error" }, name, side.error);
  });
  return [
    ...errors,
    detail.query !== null && querySection(detail),
    detail.query === null && detail.record !== null && recordSection(detail.record),
    detail.responses.length > 0 && responsesSection(row, detail),
    voteSection(row, detail),
    critiquesSection(row, detail),
    detail.meta && metaSection(detail.meta),
  ].filter(Boolean);
}

function querySection({ query, reference }) {
  const turn = (role, text) => div("turn", make("div", { class: "who", text: role }), prose(text));
  const turns = typeof query === "string" ? [{ role: "user", content: query }] : query;
  return block(
    "Query",
    ...turns.map((one) => turn(one.role, asText(one.content))),
    reference ? turn("reference answer", reference) : null,
  );
}
const recordSection = (record) =>
  block(
    "Record of the input",
    make("pre", { class: "prose raw", text: JSON.stringify(record, null, 2), tabindex: "0" }),
  );
const metaSection = (meta) =>
  make(
    "details",
    { class: "block" },
    make("summary", { class: "quiet", text: "meta" }),
    make("pre", { class: "prose raw", text: JSON.stringify(meta, null, 2), tabindex: "0" }),
  );

function responsesSection(row, detail) {
  const cards = detail.responses.map((text, i) => {
    const lines = row.sides.map((side, run) => scoreLine(side, detail.sides[run], i, run));
    const header = make(
      "header",
      {},
      make("h3", { text: `Response ${i + 1}` }),
      detail.labelled_best[i] && badge("", "label: best"),
      isPaired ? null : lines[0].line,
    );
    const bars = isPaired ? lines.map(({ line, scoreBar }) => div("side-line", line, scoreBar)) : [];
    const body = prose(text, { tabindex: "0", role: "group", "aria-label": `Response ${i + 1}` });
    const scoreBar = isPaired ? null : lines[0].scoreBar;
    return make("article", { class: "card", "--hue": hue(i) }, header, scoreBar, bars, body);
  });
  return block(detail.responses.length > 1 ? "Responses" : "Response", div("responses", cards));
}
// The score of a response by one run, and its mean score as a bar.
function scoreLine(side, sideDetail, i, run) {
  const line = div("score", isPaired && make("strong", { text: LETTERS[run] }));
  if (!sideDetail) return { line, scoreBar: null };
  if (!side.all_unparsed) {
    const isTied = side.tie && areTop(side.scores)[i];
    const badges = [side.best === i && badge("good", "chosen"), isTied && badge("mild", "tied")];
    line.append(span("nums", number(side.scores[i])), ...badges.filter(Boolean));
  }
  const means = sideDetail.votes.mean || [];
  const [low, high] = sideDetail.scale;
  const share = Math.max(0, Math.min(1, (means[i] - low) / (high - low || 1)));
  const label = `mean score ${number(means[i])} on a scale of ${low} to ${high}`;
  return { line, scoreBar: means.length ? bar(share, label) : null };
}

// The parts of each run beside each other; of a single run, that part alone.
function beside(row, detail, build) {
  const parts = row.sides.map((side, i) => {
    const title = isPaired ? [make("h3", { text: runName(i) })] : [];
    const parts = detail.sides[i] ? build(side, detail.sides[i], i) : [quiet("no verdict")];
    return [...title, ...parts];
  });
  return isPaired ? [div("sides", ...parts.map((part) => div("run-side", ...part)))] : parts[0];
}

function voteSection(row, detail) {
  if (detail.sides.every((side) => !side || side.scalar)) return null;
  return block("Vote", ...beside(row, detail, voteElements));
}
function voteElements(side, { scalar, votes, vote, kept, votes_by_k, critiques, scale }) {
  const count = critiques.length;
  if (scalar) return [quiet("A scalar reward model: one reward per response, no critiques.")];
  if (side.all_unparsed) return [quiet(`No critique of ${count} was parsed.`)];
  const lines = Object.entries(votes).map(([rule, scores]) => {
    const name = (data.labels[rule] || rule) + (rule === vote ? " (decides)" : "");
    const won = areTop(scores);
    const cells = scores.map((score, i) =>
      make("td", { class: won[i] ? "won" : null, text: number(score) }),
    );
    return [name, ...cells];
  });
  const heads = side.scores.map((_, i) => `Response ${i + 1}`);
  const facts = [
    `${critiques.filter(({ status }) => status === "ok").length} of ${count} critiques parsed`,
    kept && `${kept.length} kept by the meta reward model`,
    side.flip && "orders name different winners",
  ];
  const chart = votes_by_k.length > 1 ? votesByK(votes_by_k, scale, side.scores.length) : null;
  return [
    make("p", { class: "quiet", text: facts.filter(Boolean).join(" · ") }),
    div("split", tableElement("votes", ["vote", ...heads], lines), chart),
  ];
}
// The mean score of each response over the first k critiques.
function votesByK(steps, [low, high], n) {
  const texts = steps.map(
    ({ k, means }) => `k=${k}: ${means.map(number).join(", ") || "unparsed"}`,
  );
  const parsed = steps.filter((step) => step.means.length);
  const lines = Array.from({ length: n }, (_, i) => ({
    name: `Response ${i + 1}`,
    hue: hue(i),
    points: parsed.map((step) => [step.k, step.means[i]]),
  }));
  return lineChart({
    ...{ lines, low, high },
    ks: steps.map((step) => step.k),
    format: (value) => String(+value.toFixed(1)),
    label: `mean score over the first k critiques: ${texts.join("; ")}`,
    caption: "mean score over the first k critiques",
  });
}

function critiquesSection(row, detail) {
  const counts = detail.sides.map((side) => (side ? side.critiques.length : 0));
  if (!Math.max(...counts)) return null;
  const lists = beside(row, detail, (side, sideDetail, i) =>
    critiqueList(sideDetail, side.scores.length, LETTERS[i]),
  );
  return block(`Critiques (${counts.join(" and ")})`, ...lists);
}
