// The page: rates of the file, the list of comparisons with search, filter and sort, and the keys.

const data = JSON.parse($("data").textContent);
const { title, run, summary, curve, labels, rows } = data;
const PAGE = 60; // items that the list shows at once
let shown = []; // the rows that pass search and filter, sorted
let limit = PAGE;
let current = -1; // index in `shown`

// --- header ---

function tile(name, value, note) {
  return make(
    "div",
    { class: "tile", title: note },
    make("dt", { text: name }),
    make("dd", {}, value),
  );
}
function header() {
  $("title").textContent = title;
  $("run").textContent = run;
  const { labelled, statuses, mean_tokens: tokens } = summary;
  const statusCounts = Object.entries(statuses).map(([status, n]) => `${status} ${n}`);
  const points = curve.map((point) => `k=${point.k}: ${percent(point.credit)}`).join(", ");
  const chance = percent(summary.chance);
  const tiles = [
    tile("comparisons", summary.comparisons, "rows that were judged"),
    labelled > 0 &&
      tile(
        "accuracy",
        percent(summary.accuracy),
        `share of ${labelled} labelled rows with a best response named; ${chance} by chance`,
      ),
    labelled > 0 &&
      tile("ties shared", percent(summary.tie_credit), "accuracy with 1/t for each of t tied"),
    tile("ties", percent(summary.ties), "share of comparisons of several responses that tied"),
    tile("parse rate", percent(summary.parsed), statusCounts.join(", ")),
    tile(
      "flips",
      percent(summary.flips),
      "share of comparisons whose orders name different winners, " +
        `of ${summary.shown_in_several_orders} shown in several orders`,
    ),
    summary.first_place !== null &&
      tile(
        "first wins",
        percent(summary.first_place),
        `share of winners shown first; ${percent(summary.first_chance)} by chance`,
      ),
    tile("tokens", isMissing(tokens) ? "–" : Math.round(tokens), "mean length of a critique"),
    tile("errors", summary.errors, "rows that could not be judged"),
  ];
  if (curve.length > 1) {
    const credits = curve.map((point) => point.credit);
    const chart = tile(`accuracy for k = 1 to ${curve.length}`, sparkline(credits, points), points);
    chart.classList.add("chart");
    tiles.push(chart);
  }
  $("tiles").append(...tiles.filter(Boolean));
}

// --- list ---

const isWrong = (row) => row.credit !== null && row.credit < 1 && !row.tie && !row.all_unparsed;
const FILTERS = {
  all: ["all", () => true],
  wrong: ["wrong", isWrong],
  right: ["right", (row) => row.credit === 1],
  tie: ["ties", (row) => row.tie],
  flip: ["orders disagree", (row) => row.flip === true],
  unparsed: ["unparsed critiques", (row) => row.unparsed > 0],
  error: ["errors", (row) => row.error],
};
const SORTS = {
  line: ["as in the file", (a, b) => a.line - b.line],
  close: ["closest vote first", (a, b) => a.margin - b.margin],
  clear: ["clearest vote first", (a, b) => b.margin - a.margin],
  unparsed: ["most unparsed first", (a, b) => b.unparsed - a.unparsed],
};

function searchText(row) {
  if (!row.searchText) {
    const critiques = row.critiques.map((critique) => critique.text);
    const texts = [row.id, queryText(row), ...(row.responses || []), ...critiques];
    row.searchText = [...texts, row.error ? row.error.reason : ""].join("\n").toLowerCase();
  }
  return row.searchText;
}
function item(row, place) {
  const scores = row.error ? "" : row.scores.map(number).join(" : ");
  const text = row.error ? row.error.reason : queryText(row);
  const attributes = {
    class: "item",
    "data-place": place,
    "aria-current": place === current ? "true" : null,
    onclick: () => select(place, true),
  };
  const name = make("span", { text: row.id });
  const line = make("span", { class: "line" }, name, span("nums", scores), outcomeBadge(row));
  return make("li", {}, make("button", attributes, line, span("text", text.slice(0, 300))));
}
function updateList() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const passes = FILTERS[$("filter").value][1];
  shown = rows
    .filter((row) => passes(row) && words.every((word) => searchText(row).includes(word)))
    .sort(SORTS[$("sort").value][1]);
  limit = PAGE;
  current = shown.length ? 0 : -1;
  showList();
  showComparison();
}
function showList() {
  const of = shown.length === rows.length ? "" : `${shown.length} of `;
  $("count").textContent = `${of}${rows.length} comparisons`;
  const items = shown.slice(0, limit).map(item);
  if (shown.length > limit) {
    const showMore = () => {
      limit += PAGE;
      showList();
    };
    const text = `show ${Math.min(PAGE, shown.length - limit)} more`;
    items.push(make("li", {}, make("button", { class: "small more", text, onclick: showMore })));
  }
  $("list").replaceChildren(...items);
}

// Shows a comparison. opens: it was clicked, which on a phone replaces the list.
function select(place, opens) {
  if (place < 0 || place >= shown.length) return;
  current = place;
  while (place >= limit) limit += PAGE;
  showList();
  showComparison();
  const button = document.querySelector(`[data-place="${place}"]`);
  if (button) {
    button.scrollIntoView({ block: "nearest" });
    if (!opens) button.focus({ preventScroll: true });
  }
  $("detail").scrollTop = 0;
  if (opens) {
    document.body.classList.add("reading");
    if (matchMedia("(max-width: 760px)").matches) window.scrollTo(0, 0);
  }
}
function showComparison() {
  const row = shown[current];
  if (!row) {
    $("detail").replaceChildren(make("p", { class: "quiet", text: "No comparison matches." }));
    return;
  }
  const back = make("button", { class: "small back", text: "← list", onclick: backToList });
  const name = make("h2", { text: `Comparison ${row.id}` });
  const head = div("head", back, name, outcomeBadge(row), quiet(`line ${row.line}`));
  const body = row.error
    ? [make("p", { class: "error", text: row.error.reason })]
    : [querySection(row), responsesSection(row), voteSection(row), critiquesSection(row)];
  $("detail").replaceChildren(head, ...body);
}
function backToList() {
  document.body.classList.remove("reading");
  const button = document.querySelector(`[data-place="${current}"]`);
  if (button) button.focus();
}

// --- colours and keys ---

function setTheme(isDark) {
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  $("theme").textContent = isDark ? "Light" : "Dark";
}
const toggleTheme = () => setTheme(document.documentElement.dataset.theme !== "dark");
function toggleCritiques() {
  const all = [...document.querySelectorAll("details.critique")];
  const open = all.some((details) => !details.open);
  for (const details of all) details.open = open;
}
const KEYS = {
  j: () => select(current + 1),
  k: () => select(current - 1),
  ArrowDown: () => select(current + 1),
  ArrowUp: () => select(current - 1),
  "/": () => $("search").focus(),
  f: () => $("filter").focus(),
  o: toggleCritiques,
  t: toggleTheme,
  "?": () => $("keys").showModal(),
};
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, select");
  if (event.key === "Escape") {
    if (isTyping) event.target.blur();
    else backToList();
    return;
  }
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const scrollsText = event.key.startsWith("Arrow") && event.target.closest(".prose[tabindex]");
  const action = scrollsText ? null : KEYS[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});

// --- start ---

for (const [value, [label, passes]] of Object.entries(FILTERS)) {
  const text = `${label} (${rows.filter(passes).length})`;
  $("filter").append(make("option", { value, text }));
}
for (const [value, [label]] of Object.entries(SORTS)) {
  $("sort").append(make("option", { value, text: label }));
}
$("search").addEventListener("input", updateList);
$("filter").addEventListener("change", updateList);
$("sort").addEventListener("change", updateList);
$("theme").addEventListener("click", toggleTheme);
$("help").addEventListener("click", () => $("keys").showModal());
setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
header();
updateList();
function fitHeight() {
  const height = document.querySelector(".top").offsetHeight;
  document.documentElement.style.setProperty("--top", `${height}px`);
}
fitHeight();
addEventListener("resize", fitHeight);
