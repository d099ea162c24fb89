// One comparison: query, responses, vote and critiques.

function queryText(row) {
  if (typeof row.query === "string") return row.query;
  return (row.query || []).map((turn) => turn.content).join("\n");
}
function outcomeBadge(row) {
  if (row.error) return badge("bad", "error");
  if (row.all_unparsed) return badge("bad", "all unparsed");
  if (row.tie) return badge("mild", "tie");
  if (row.credit === 1) return badge("good", "right");
  return row.credit === null ? null : badge("bad", "wrong");
}

function querySection(row) {
  const turn = (role, text) => div("turn", make("div", { class: "who", text: role }), prose(text));
  const turns = typeof row.query === "string" ? [{ role: "user", content: row.query }] : row.query;
  const reference = row.reference ? turn("reference answer", row.reference) : null;
  return block("Query", ...turns.map((one) => turn(one.role, one.content)), reference);
}

function responsesSection(row) {
  const top = Math.max(...row.scores);
  const [low, high] = row.scale;
  const means = row.votes.mean || [];
  const cards = row.responses.map((text, i) => {
    const isTied = !row.all_unparsed && row.tie && row.scores[i] === top;
    const header = make(
      "header",
      {},
      make("h3", { text: `Response ${i + 1}` }),
      span("nums", row.all_unparsed ? "" : number(row.scores[i])),
      row.best === i && badge("good", "chosen"),
      isTied && badge("mild", "tied"),
      row.labelled_best[i] && badge("", "label: best"),
    );
    const share = Math.max(0, Math.min(1, (means[i] - low) / (high - low || 1)));
    const label = `mean score ${number(means[i])} on a scale of ${low} to ${high}`;
    const body = make("p", { class: "prose", text, tabindex: "0" });
    const scoreBar = means.length ? bar(share, label) : null;
    return make("article", { class: "card", "--hue": hue(i) }, header, scoreBar, body);
  });
  return block(row.n > 1 ? "Responses" : "Response", div("responses", cards));
}

function voteSection(row) {
  const count = row.critiques.length;
  if (row.all_unparsed) {
    return block(
      "Vote",
      make("p", { class: "quiet", text: `No critique of ${count} was parsed.` }),
    );
  }
  const heads = row.responses.map((_, i) =>
    make("th", { scope: "col", text: `Response ${i + 1}` }),
  );
  const lines = Object.entries(row.votes).map(([rule, scores]) => {
    const name = (labels[rule] || rule) + (rule === row.vote ? " (decides)" : "");
    const top = Math.max(...scores);
    const cells = scores.map((score) =>
      make("td", { class: score === top ? "won" : null, text: number(score) }),
    );
    return make("tr", {}, make("th", { scope: "row", text: name }), cells);
  });
  const head = make("thead", {}, make("tr", {}, make("th", { text: "vote" }), heads));
  const table = make("table", { class: "votes" }, head, make("tbody", {}, lines));
  const facts = [
    `${count - row.unparsed} of ${count} critiques parsed`,
    row.kept && `${row.kept.length} kept by the meta reward model`,
    row.flip && "orders name different winners",
  ];
  return block(
    "Vote",
    make("p", { class: "quiet", text: facts.filter(Boolean).join(" · ") }),
    div("split", div("scroll", table), row.votes_by_k.length > 1 ? votesByK(row) : null),
  );
}

// The mean score of each response over the first k critiques.
function votesByK(row) {
  const [low, high] = row.scale;
  const steps = row.votes_by_k;
  const [width, height, left, right, bottom, top] = [460, 170, 30, 78, 24, 10];
  const x = (k) => left + ((width - left - right) * (k - 1)) / (steps.length - 1);
  const y = (s) => height - bottom - ((height - bottom - top) * (s - low)) / (high - low || 1);
  const texts = steps.map(
    ({ k, means }) => `k=${k}: ${means.map(number).join(", ") || "unparsed"}`,
  );
  const svg = draw("svg", {
    viewBox: `0 0 ${width} ${height}`,
    class: "by-k",
    role: "img",
    "aria-label": `mean score over the first k critiques: ${texts.join("; ")}`,
  });
  for (const s of [low, (low + high) / 2, high]) {
    const axis = { x1: left, x2: width - right, y1: y(s), y2: y(s), class: "axis" };
    svg.append(draw("line", axis), drawText(left - 6, y(s) + 4, +s.toFixed(1), undefined, "end"));
  }
  const every = Math.ceil(steps.length / 8);
  steps.forEach(({ k }, i) => {
    const isShown = i % every === 0 || i === steps.length - 1;
    if (isShown) svg.append(drawText(x(k), height - 6, k, undefined, "middle"));
  });
  const parsed = steps.filter((step) => step.means.length);
  const ends = row.responses.map((_, i) => {
    const points = parsed.map((step) => [x(step.k), y(step.means[i])]);
    svg.append(drawLine(points, hue(i), i % 2 ? "6 3" : "none"));
    return [points[points.length - 1][1], i];
  });
  ends.sort((a, b) => a[0] - b[0]);
  ends.forEach((end, j) => {
    if (j) end[0] = Math.max(end[0], ends[j - 1][0] + 12); // labels do not overlap
    svg.append(drawText(width - right + 6, end[0] + 4, `Response ${end[1] + 1}`, hue(end[1])));
  });
  const caption = make("figcaption", { class: "quiet", text: "mean score over the first k" });
  return make("figure", {}, caption, svg);
}

function critiquesSection(row) {
  const elements = row.critiques.map((critique, i) => critiqueElement(row, critique, i));
  return block(`Critiques (${row.critiques.length})`, ...elements);
}
function critiqueElement(row, critique, i) {
  const isKept = row.kept ? row.kept.includes(i) : null;
  const { scores, order, meta_score, expected_scores: expected } = critique;
  const summary = make(
    "summary",
    {},
    make("strong", { text: `#${critique.sample + 1}` }),
    span("nums", scores ? scores.map(number).join(" : ") : ""),
    critique.status !== "ok" && badge("bad", critique.status.replace(/_/g, " ")),
    row.n > 1 && quiet(`shown as ${order.map((index) => index + 1).join(", ")}`),
    meta_score !== null && span("quiet nums", `meta ${meta_score.toFixed(2)}`),
    isKept !== null && badge(isKept ? "good" : "", isKept ? "kept" : "not kept"),
    expected && span("quiet nums", `expected ${expected.map(number).join(" : ")}`),
    quiet(`${critique.tokens} tokens`),
  );
  const inner = div("inner");
  const className = isKept === false ? "critique dropped" : "critique";
  const details = make("details", { class: className, open: i ? null : "" }, summary, inner);
  const fillOnce = () => inner.childNodes.length || inner.append(...critiqueBody(critique));
  if (i === 0) fillOnce();
  details.addEventListener("toggle", fillOnce);
  return details;
}
function critiqueBody(critique) {
  const parts = [];
  if (critique.principles.length) {
    parts.push(make("h3", { text: "Principles" }), ...critique.principles.map(principleElement));
  }
  if (critique.analysis) parts.push(make("h3", { text: "Analysis" }), prose(critique.analysis));
  const text = make("pre", { class: "prose raw", text: critique.text });
  const title = make("summary", { class: "quiet", text: "full text" });
  return [...parts, make("details", { open: parts.length ? null : "" }, title, text)];
}
function principleElement({ name, weight, description }) {
  const text = weight === null ? "no weight" : `${number(weight)}%`;
  const title = div("name", make("span", { text: name }), " ", span("quiet nums", text));
  const left = make("div", {}, title, bar((weight || 0) / 100, `weight ${text}`));
  return div("principle", left, make("div", { class: "description", text: description }));
}
