// The critiques of one run.

function critiqueList(sideDetail, n, prefix) {
  return sideDetail.critiques.map((critique, i) => critiqueElement(critique, i, sideDetail, n, prefix));
}
function critiqueElement(critique, i, { kept }, n, prefix) {
  const isKept = kept ? kept.includes(i) : null;
  const { scores, order, meta_score, expected_scores: expected, sample = i } = critique;
  const summary = make(
    "summary",
    {},
    make("strong", { text: `#${sample + 1}` }),
    span("nums", scores ? scores.map(number).join(" : ") : ""),
    critique.status !== "ok" && badge("bad", critique.status.replace(/_/g, " ")),
    n > 1 && quiet(`shown as ${order.map((index) => index + 1).join(", ")}`),
    !isMissing(meta_score) && span("quiet nums", `meta ${number(meta_score)}`),
    isKept !== null && badge(isKept ? "good" : "", isKept ? "kept" : "not kept"),
    expected && span("quiet nums", `expected ${expected.map(number).join(" : ")}`),
    critique.tokens > 0 && quiet(`${critique.tokens} tokens`),
  );
  const inner = div("inner");
  const details = make(
    "details",
    {
      class: isKept === false ? "critique dropped" : "critique",
      open: i ? null : "",
      "data-key": `${prefix}${i}`,
    },
    summary,
    inner,
  );
  const fillOnce = () => inner.childNodes.length || inner.append(...critiqueBody(critique));
  if (i === 0) fillOnce();
  details.addEventListener("toggle", fillOnce);
  return details;
}
function critiqueBody(critique) {
  const parts = [];
  const { principles = [] } = critique;
  if (principles.length) {
    parts.push(make("h4", { text: "Principles" }), ...principles.map(principleElement));
  }
  if (critique.analysis) parts.push(make("h4", { text: "Analysis" }), prose(critique.analysis));
  const text = make("pre", { class: "prose raw", text: critique.text || critique.error || "", tabindex: "0" });
  const title = make("summary", { class: "quiet", text: "full text" });
  return [...parts, make("details", { open: parts.length ? null : "" }, title, text)];
}
function principleElement({ name, weight, description }) {
  const text = weight === null ? "no weight" : `${number(weight)}%`;
  const title = div("name", make("span", { text: name }), " ", span("quiet nums", text));
  const left = make("div", {}, title, bar((weight || 0) / 100, `weight ${text}`));
  return div("principle", left, make("div", { class: "description", text: description }));
}
