"use strict";
// Everything that comes from data is put in by textContent: nothing in a query, a response or a critique is ever markup.
const { title, run, summary, curve, rows } = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const PAGE = 60;
let shown = [], limit = PAGE, current = -1;

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "class") element.className = value;
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
function draw(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "stroke" || name === "fill") element.style.setProperty(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
const hue = (i) => `var(--r${i % 6})`;
const number = (x) => (x === null || x === undefined ? "–" : Number.isInteger(x) ? String(x) : x.toFixed(2));
const percent = (x) => (x === null || x === undefined ? "–" : (100 * x).toFixed(1) + "%");
const queryText = (row) => (typeof row.query === "string" ? row.query : (row.query || []).map((turn) => turn.content).join("\n"));
const haystack = (row) => row.hay || (row.hay = [row.id, queryText(row), ...(row.responses || []), ...row.critiques.map((c) => c.text), row.error ? row.error.reason : ""].join("\n").toLowerCase());

// --- header ---

function tile(name, value, note) {
  return make("div", { class: "tile", title: note }, make("dt", { text: name }), make("dd", { text: value }));
}
function header() {
  $("title").textContent = title;
  $("run").textContent = run;
  const tiles = [
    tile("comparisons", summary.comparisons, "rows that were judged"),
    summary.labelled ? tile("accuracy", percent(summary.accuracy), `a best response named, of ${summary.labelled} labelled rows; ${percent(summary.chance)} by chance`) : null,
    summary.labelled ? tile("ties shared", percent(summary.tie_credit), "accuracy where t tied responses get 1/t each") : null,
    tile("ties", percent(summary.ties), "comparisons of several responses that ended in a tie"),
    tile("critiques read", percent(summary.parsed), Object.entries(summary.statuses).map(([s, n]) => `${s} ${n}`).join(", ")),
    tile("flips", percent(summary.flips), `orders of one comparison that name different winners; ${summary.seen_in_several_orders} seen in several orders`),
    summary.first_place === null ? null : tile("first wins", percent(summary.first_place), `winner was shown first; ${percent(summary.first_chance)} by chance`),
    tile("tokens", summary.mean_tokens === null ? "–" : Math.round(summary.mean_tokens), "mean length of a critique"),
    tile("errors", summary.errors, "rows that could not be judged"),
  ];
  $("tiles").append(...tiles.filter(Boolean));
  if (curve.length > 1) {
    const note = curve.map((p) => `k=${p.k}: ${percent(p.credit)}`).join(", ");
    $("tiles").append(make("div", { class: "tile chart", title: note }, make("dt", { text: `accuracy as k grew to ${curve.length}` }), make("dd", {}, spark(curve.map((p) => p.credit), note))));
  }
}
function spark(values, label) {
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  const points = values.map((v, i) => `${4 + (136 * i) / (values.length - 1)},${26 - 22 * ((v - low) / span)}`).join(" ");
  return draw("svg", { viewBox: "0 0 190 30", role: "img", "aria-label": label },
    draw("polyline", { points, stroke: "var(--accent)", fill: "none", "stroke-width": "2" }),
    label_at(146, 10, percent(high)), low === high ? "" : label_at(146, 28, percent(low)));
}
function label_at(x, y, text, colour, anchor) {
  const element = draw("text", { x, y, "font-size": "11", fill: colour || "var(--quiet)", "text-anchor": anchor || "start" });
  element.textContent = text;
  return element;
}

// --- list ---

const FILTERS = {
  all: ["all", () => true],
  wrong: ["wrong", (row) => row.credit !== null && row.credit < 1 && !row.tie && !row.nothing],
  right: ["right", (row) => row.credit === 1],
  tie: ["ties", (row) => row.tie],
  flip: ["orders disagree", (row) => row.flip === true],
  unread: ["unread critiques", (row) => row.unparsed > 0],
  error: ["errors", (row) => row.error],
};
const SORTS = {
  line: ["as in the file", (a, b) => a.line - b.line],
  close: ["closest vote first", (a, b) => a.margin - b.margin],
  clear: ["clearest vote first", (a, b) => b.margin - a.margin],
  unread: ["most unread first", (a, b) => b.unparsed - a.unparsed],
};
function badge(row) {
  if (row.error) return make("span", { class: "badge bad", text: "error" });
  if (row.nothing) return make("span", { class: "badge bad", text: "nothing read" });
  if (row.tie) return make("span", { class: "badge mild", text: "tie" });
  if (row.credit === 1) return make("span", { class: "badge good", text: "right" });
  if (row.credit !== null) return make("span", { class: "badge bad", text: "wrong" });
  return null;
}
function item(row, place) {
  const scores = row.error ? "" : row.scores.map(number).join(" : ");
  const text = row.error ? row.error.reason : queryText(row);
  return make("li", {}, make("button", { class: "item", "data-place": place, "aria-current": place === current ? "true" : null, onclick: () => select(place, true) },
    make("span", { class: "line" }, make("span", { text: row.id }), make("span", { class: "nums", text: scores }), badge(row)),
    make("span", { class: "text", text: text.slice(0, 300) })));
}
function list() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const keep = FILTERS[$("filter").value][1];
  shown = rows.filter((row) => keep(row) && words.every((word) => haystack(row).includes(word))).sort(SORTS[$("sort").value][1]);
  limit = PAGE;
  current = shown.length ? 0 : -1;
  fill();
  detail();
}
function fill() {
  $("count").textContent = shown.length === rows.length ? `${rows.length} comparisons` : `${shown.length} of ${rows.length} comparisons`;
  const items = shown.slice(0, limit).map(item);
  if (shown.length > limit) items.push(make("li", {}, make("button", { class: "small more", text: `show ${Math.min(PAGE, shown.length - limit)} more`, onclick: () => { limit += PAGE; fill(); } })));
  $("list").replaceChildren(...items);
}
function select(place, read) {
  if (place < 0 || place >= shown.length) return;
  current = place;
  while (place >= limit) limit += PAGE;
  fill();
  detail();
  const button = document.querySelector(`[data-place="${place}"]`);
  if (button) { button.scrollIntoView({ block: "nearest" }); if (!read) button.focus({ preventScroll: true }); }
  $("detail").scrollTop = 0;
  if (read) { document.body.classList.add("reading"); if (matchMedia("(max-width: 760px)").matches) window.scrollTo(0, 0); }
}

// --- one comparison ---

function detail() {
  const row = shown[current];
  if (!row) { $("detail").replaceChildren(make("p", { class: "quiet", text: "No comparison fits." })); return; }
  const back = make("button", { class: "small back", text: "← list", onclick: leave });
  const head = make("div", { class: "head" }, back, make("h2", { text: `Comparison ${row.id}` }), badge(row), make("span", { class: "quiet", text: `line ${row.line}` }));
  if (row.error) { $("detail").replaceChildren(head, make("p", { class: "error", text: row.error.reason })); return; }
  $("detail").replaceChildren(head, query(row), responses(row), voting(row), critiques(row));
}
function block(name, ...children) {
  return make("section", { class: "block" }, make("h2", { text: name }), ...children);
}
function query(row) {
  const turns = typeof row.query === "string" ? [{ role: "user", content: row.query }] : row.query;
  const parts = turns.map((turn) => make("div", { class: "turn" }, make("div", { class: "who", text: turn.role }), make("p", { class: "prose", text: turn.content })));
  if (row.reference) parts.push(make("div", { class: "turn" }, make("div", { class: "who", text: "reference answer" }), make("p", { class: "prose", text: row.reference })));
  return block("Query", ...parts);
}
function responses(row) {
  const top = Math.max(...row.scores), means = row.votes.mean || [];
  const cards = row.responses.map((text, i) => make("article", { class: "card", "--hue": hue(i) },
    make("header", {}, make("h3", { text: `Response ${i + 1}` }), make("span", { class: "nums", text: row.nothing ? "" : number(row.scores[i]) }),
      row.best === i ? make("span", { class: "badge good", text: "chosen" }) : null,
      !row.nothing && row.tie && row.scores[i] === top ? make("span", { class: "badge mild", text: "tied" }) : null,
      row.truth[i] ? make("span", { class: "badge", text: "label: best" }) : null),
    means.length ? scale(means[i], row) : null,
    make("p", { class: "prose", text, tabindex: "0" })));
  return block(row.n > 1 ? "Responses" : "Response", make("div", { class: "responses" }, cards));
}
function scale(value, row) {
  const [low, high] = row.scale, share = Math.max(0, Math.min(1, (value - low) / (high - low || 1)));
  const bar = make("i");
  bar.style.width = `${100 * share}%`;
  return make("div", { class: "bar", title: `mean score ${number(value)} on a scale of ${low} to ${high}`, role: "img", "aria-label": `mean score ${number(value)} of ${high}` }, bar);
}
function voting(row) {
  if (row.nothing) return block("Vote", make("p", { class: "quiet", text: `None of the ${row.critiques.length} critiques could be read.` }));
  const heads = row.responses.map((_, i) => make("th", { scope: "col", text: `Response ${i + 1}` }));
  const lines = Object.entries(row.votes).map(([rule, scores]) => make("tr", {}, make("th", { scope: "row", text: rule === row.vote ? `${rule} (decides)` : rule }),
    scores.map((score) => make("td", { class: score === Math.max(...scores) ? "won" : null, text: number(score) }))));
  const table = make("div", { class: "scroll" }, make("table", { class: "votes" }, make("thead", {}, make("tr", {}, make("th", { text: "vote" }), heads)), make("tbody", {}, lines)));
  const notes = [`${row.critiques.length - row.unparsed} of ${row.critiques.length} critiques read`];
  if (row.kept) notes.push(`${row.kept.length} kept by the meta reward model`);
  if (row.flip === true) notes.push("orders name different winners");
  return block("Vote", make("p", { class: "quiet", text: notes.join(" · ") }), make("div", { class: "split" }, table, row.grew.length > 1 ? grew(row) : null));
}
function grew(row) {
  const [low, high] = row.scale, K = row.grew.length, W = 460, H = 170, left = 30, right = 78, bottom = 24, topEdge = 10;
  const x = (k) => left + ((W - left - right) * (k - 1)) / (K - 1), y = (s) => H - bottom - ((H - bottom - topEdge) * (s - low)) / (high - low || 1);
  const said = row.grew.map((step) => `k=${step.k}: ${step.means.length ? step.means.map(number).join(", ") : "nothing read"}`).join("; ");
  const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, class: "grew", role: "img", "aria-label": `mean score as k grew: ${said}` });
  for (const s of [low, (low + high) / 2, high]) svg.append(draw("line", { x1: left, x2: W - right, y1: y(s), y2: y(s), class: "axis" }), label_at(left - 6, y(s) + 4, +s.toFixed(1), null, "end"));
  const every = Math.ceil(K / 8);
  row.grew.forEach((step, i) => { if (i % every === 0 || i === K - 1) svg.append(label_at(x(step.k), H - 6, step.k, null, "middle")); });
  const ends = [];
  row.responses.forEach((_, i) => {
    const points = row.grew.filter((step) => step.means.length).map((step) => [x(step.k), y(step.means[i])]);
    svg.append(draw("polyline", { points: points.map((p) => p.join(",")).join(" "), stroke: hue(i), fill: "none", "stroke-width": "2", "stroke-dasharray": i % 2 ? "6 3" : "none" }));
    ends.push([points[points.length - 1][1], i]);
  });
  ends.sort((a, b) => a[0] - b[0]);
  ends.forEach((end, j) => { if (j) end[0] = Math.max(end[0], ends[j - 1][0] + 12); });
  for (const [at, i] of ends) svg.append(label_at(W - right + 6, at + 4, `Response ${i + 1}`, hue(i)));
  return make("figure", {}, make("figcaption", { class: "quiet", text: "mean score over the first k critiques" }), svg);
}
function critiques(row) {
  return block(`Critiques (${row.critiques.length})`, ...row.critiques.map((critique, i) => oneCritique(row, critique, i)));
}
function oneCritique(row, critique, i) {
  const kept = row.kept ? row.kept.includes(i) : null;
  const scores = critique.scores ? critique.scores.map(number).join(" : ") : "";
  const said = critique.status === "ok" ? null : make("span", { class: "badge bad", text: critique.status.replace(/_/g, " ") });
  const summary = make("summary", {}, make("strong", { text: `#${critique.sample + 1}` }), make("span", { class: "nums", text: scores }), said,
    row.n > 1 ? make("span", { class: "quiet", text: `shown as ${critique.order.map((o) => o + 1).join(", ")}` }) : null,
    critique.meta_score === null ? null : make("span", { class: "quiet nums", text: `meta ${critique.meta_score.toFixed(2)}` }),
    kept === null ? null : make("span", { class: kept ? "badge good" : "badge", text: kept ? "kept" : "not kept" }),
    critique.expected_scores ? make("span", { class: "quiet nums", text: `expected ${critique.expected_scores.map(number).join(" : ")}` }) : null,
    make("span", { class: "quiet", text: `${critique.tokens} tokens` }));
  const inner = make("div", { class: "inner" });
  const node = make("details", { class: kept === false ? "critique dropped" : "critique", open: i === 0 ? "" : null }, summary, inner);
  const open = () => { if (!inner.childNodes.length) inner.append(...critiqueBody(critique)); };
  if (i === 0) open();
  node.addEventListener("toggle", open);
  return node;
}
function critiqueBody(critique) {
  const parts = [];
  if (critique.principles.length) {
    parts.push(make("h3", { text: "Principles" }), ...critique.principles.map(principle));
  }
  if (critique.analysis) parts.push(make("h3", { text: "Analysis" }), make("p", { class: "prose", text: critique.analysis }));
  const raw = make("details", { open: parts.length ? null : "" }, make("summary", { class: "quiet", text: "text as it was written" }), make("pre", { class: "prose raw", text: critique.text }));
  return [...parts, raw];
}
function principle(p) {
  const bar = make("i");
  bar.style.width = `${p.weight || 0}%`;
  const weight = p.weight === null ? "no weight" : `${number(p.weight)}%`;
  return make("div", { class: "principle" },
    make("div", {}, make("div", { class: "name" }, make("span", { text: p.name }), " ", make("span", { class: "quiet nums", text: weight })), make("div", { class: "bar", role: "img", "aria-label": `weight ${weight}` }, bar)),
    make("div", { class: "what", text: p.description }));
}

// --- keys, colours, start ---

function leave() {
  document.body.classList.remove("reading");
  const button = document.querySelector(`[data-place="${current}"]`);
  if (button) button.focus();
}
function theme(name) {
  const dark = name ? name === "dark" : document.documentElement.dataset.theme !== "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
}
function openAll() {
  const all = [...document.querySelectorAll("details.critique")], open = all.some((node) => !node.open);
  all.forEach((node) => { node.open = open; });
}
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select");
  if (event.key === "Escape") { if (typing) event.target.blur(); else leave(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const inText = event.target.closest(".prose[tabindex]");
  const act = {
    j: () => select(current + 1), k: () => select(current - 1), "/": () => $("search").focus(), f: () => $("filter").focus(), o: openAll, t: () => theme(), "?": () => $("keys").showModal(),
    ...(inText ? {} : { ArrowDown: () => select(current + 1), ArrowUp: () => select(current - 1) }),
  }[event.key];
  if (act) { event.preventDefault(); act(); }
});
for (const [name, [label]] of Object.entries(FILTERS)) {
  const count = rows.filter(FILTERS[name][1]).length;
  $("filter").append(make("option", { value: name, text: `${label} (${count})` }));
}
for (const [name, [label]] of Object.entries(SORTS)) $("sort").append(make("option", { value: name, text: label }));
$("search").addEventListener("input", list);
$("filter").addEventListener("change", list);
$("sort").addEventListener("change", list);
$("theme").addEventListener("click", () => theme());
$("help").addEventListener("click", () => $("keys").showModal());
theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
header();
list();
const fit = () => document.documentElement.style.setProperty("--top", `${document.querySelector(".top").offsetHeight}px`);
fit();
addEventListener("resize", fit);
