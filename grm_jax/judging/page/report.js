// The page: the list of comparisons with search, filters and orders, and the keys.

const PAGE = 60; // items that the list shows at once
const MAX_PARTS = 40; // parts whose rows stay in memory
const { rows } = data;
let shown = []; // the rows that pass search and filters, sorted
let limit = PAGE;
let steps = false; // the last comparison was opened by a key, which makes one history entry

// --- the texts of rows, in compressed parts ---

const parts = new Map(); // number of a part -> its rows, in the order in which they were loaded
async function loadPart(number) {
  if (!parts.has(number)) {
    const bytes = Uint8Array.from(atob(data.parts[number]), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    parts.set(number, JSON.parse(await new Response(stream).text()));
    if (parts.size > MAX_PARTS) parts.delete(parts.keys().next().value);
  }
  return parts.get(number);
}

// --- list ---

const anySide = (test) => (row) => row.sides.some((side) => side && test(side));
const everySide = (row) => row.sides.every((side) => side && !side.error);
const isWrong = (side) => side.credit !== null && side.credit < 1 && !side.tie && !side.all_unparsed;
const isSameChoice = (a, b) => a.best === b.best && a.tie === b.tie;
const isRight = (side) => side.credit === 1;
const isGain = (row, to) => everySide(row) && isRight(row.sides[to]) && row.sides[1 - to].credit < 1;
const either = isPaired ? " in A or B" : "";
const FILTERS = {
  all: ["all", () => true],
  ...(isPaired && {
    changed: ["changed", (row) => everySide(row) && isSeveral(row) && !isSameChoice(...row.sides)],
    gained: ["gained: only B right", (row) => isGain(row, 1)],
    lost: ["lost: only A right", (row) => isGain(row, 0)],
    missing: ["in one run only", (row) => row.sides.some((side) => !side)],
  }),
  wrong: [`wrong${either}`, anySide(isWrong)],
  right: [`right${either}`, anySide(isRight)],
  tie: [`ties${either}`, anySide((side) => side.tie)],
  flip: [`orders disagree${either}`, anySide((side) => side.flip === true)],
  unparsed: [`unparsed critiques${either}`, anySide((side) => side.unparsed > 0)],
  error: [`errors${either}`, anySide((side) => side.error)],
};
const isSeveral = (row) => row.sides.some((side) => side.scores.length > 1);
const least = (row) => Math.min(...row.sides.filter(Boolean).map((side) => side.margin));
const unparsed = (row) => row.sides.reduce((sum, side) => sum + (side ? side.unparsed : 0), 0);
const SORTS = {
  line: ["as in the file", () => 0],
  close: ["closest vote first", (a, b) => least(a) - least(b)],
  clear: ["clearest vote first", (a, b) => least(b) - least(a)],
  unparsed: ["most unparsed first", (a, b) => unparsed(b) - unparsed(a)],
};

const searchTexts = new Map(); // index of a row -> its texts in lower case
// Collects the texts of all rows for the search; report: called with the share that is done.
async function loadSearchTexts(report) {
  for (let number = 0; number < data.parts.length; number += 1) {
    const members = rows.filter((row) => row.place[0] === number);
    if (members.every((row) => searchTexts.has(row))) continue;
    const details = await loadPart(number);
    for (const row of members) searchTexts.set(row, searchText(row, details[row.place[1]]));
    report(number / data.parts.length);
  }
}
function searchText(row, { query, responses, record, sides }) {
  const turns = typeof query === "string" ? [query] : (query || []).map((turn) => turn.content);
  const critiques = sides.flatMap((side) => (side ? side.critiques.map(({ text }) => text) : []));
  const errors = row.sides.map((side) => (side && side.error) || "");
  const texts = [row.id, ...turns, ...responses, ...critiques, ...errors];
  return [...texts, record ? JSON.stringify(record) : ""].join("\n").toLowerCase();
}
const wordsOf = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);

// The rows of a state. Rows whose texts are not loaded yet match by id and beginning.
function matching({ q, filter, sort, by, value }) {
  const words = wordsOf(q);
  const passes = FILTERS[filter][1];
  const textOf = (row) => searchTexts.get(row) || `${row.id}\n${row.text}`.toLowerCase();
  return rows
    .filter((row) => passes(row) && (!by || row.groups[by] === value))
    .filter((row) => !words.length || words.every((word) => textOf(row).includes(word)))
    .sort(SORTS[sort][1]);
}

function item(row, place) {
  const attributes = {
    class: "item",
    "data-place": place,
    "aria-current": row.key === state.id ? "true" : null,
    onclick: () => openPlace(place),
  };
  const scores = isPaired || row.sides[0].error ? "" : row.sides[0].scores.map(number).join(" : ");
  const badges = outcomeBadges(row);
  const line = make(
    "span",
    { class: "line" },
    make("span", { class: "id", text: row.id }),
    span("nums", scores),
    isPaired ? make("span", {}, badges.flatMap((one) => [one, " "])) : badges,
  );
  return make("li", {}, make("button", attributes, line, span("text", row.text)));
}
function showList() {
  const of = shown.length === rows.length ? "" : `${shown.length.toLocaleString("en")} of `;
  const all = `${rows.length.toLocaleString("en")} comparisons`;
  const rest = rows.length < data.total ? ` (the first of ${data.total.toLocaleString("en")})` : "";
  $("count").textContent = of + all + rest;
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

const placeOf = (id) => shown.findIndex((row) => row.key === id);
const listButton = () => document.querySelector('.list [aria-current="true"]');
// Scrolls the list to its current item; scrollIntoView would also move where Tab starts.
function revealListButton() {
  const [button, list] = [listButton(), $("list")];
  if (!button || isPhone()) return;
  const [inner, outer] = [button.getBoundingClientRect(), list.getBoundingClientRect()];
  if (inner.top < outer.top) list.scrollTop += inner.top - outer.top;
  else if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom;
}
function openPlace(place) {
  steps = false;
  navigate({ id: shown[place].key, view: "" }, { isOpened: true });
  if (isPhone()) $("detail").focus({ preventScroll: true });
}
// Opens the next or previous comparison of the list.
function step(by) {
  const place = placeOf(state.id) + by;
  if (place < 0 || place >= shown.length) return;
  navigate({ id: shown[place].key, view: "" }, { replace: steps, isOpened: true });
  steps = true;
  const button = listButton();
  if (button && !isPhone()) button.focus({ preventScroll: true });
}
function openOverview() {
  if (data.examples) return;
  navigate({ id: "", view: "overview" }, { isOpened: true });
}
function backToList() {
  if (isPhone() && (state.id || state.view)) {
    if (history.state && history.state.isOpened) history.back();
    else navigate({ id: "", view: "" });
  }
  const button = listButton();
  if (button) button.focus();
}
// Changes search, filter, order or subset. On a wide page the first match is shown.
function changeList(changes, options) {
  const matches = matching({ ...state, ...changes });
  const isKept = matches.some((row) => row.key === state.id);
  const first = isKept ? state.id : matches.length ? matches[0].key : "";
  navigate({ ...changes, ...(isPhone() ? { id: "", view: "" } : { id: first, view: "" }) }, options);
}

// --- the page of a state ---

let listed = ""; // the part of the state that the list shows
function update(view) {
  const { q, filter, sort, by, value } = state;
  const key = JSON.stringify([q, filter, sort, by, value]);
  if (key !== listed) limit = PAGE;
  listed = key;
  shown = matching(state);
  while (placeOf(state.id) >= limit) limit += PAGE;
  if ($("search").value !== q) $("search").value = q;
  $("filter").value = filter;
  $("sort").value = sort;
  $("group").value = by ? JSON.stringify([by, value]) : "";
  document.body.classList.toggle("reading", Boolean(state.id || state.view));
  $("overview").setAttribute("aria-current", String(!state.id && !(isPhone() && !state.view)));
  showList();
  revealListButton();
  showDetail(view || {});
  if (q && searchTexts.size < rows.length) searchAll();
}
// Shows the state of the address. A wide page of examples opens at the first one.
function open(view) {
  state = stateOf(location.hash);
  if (data.examples && rows.length && !state.id && !isPhone()) state.id = rows[0].key;
  update(view);
}
let isSearching = false;
async function searchAll() {
  if (isSearching) return;
  isSearching = true;
  await loadSearchTexts((share) => {
    $("count").textContent = `searching, ${Math.round(100 * share)}%`;
  });
  isSearching = false;
  shown = matching(state);
  if (!isPhone() && state.id && placeOf(state.id) < 0) changeList({}, { replace: true });
  else showList();
}

async function showDetail(view) {
  const row = rows.find((one) => one.key === state.id);
  const back = make("button", { class: "small back", text: "← list", onclick: backToList });
  if (!row) {
    const text = state.id
      ? `No comparison ${state.id} in this page.`
      : wordsOf(state.q).length && !shown.length
        ? "No comparison matches."
        : "";
    const note = text ? [make("p", { class: "quiet", text })] : [];
    $("detail").replaceChildren(back, ...note, ...overviewElements());
    restore(view);
    return;
  }
  const link = make("a", { class: "quiet", href: addressOf({ id: row.key }), text: "link" });
  const name = make("h2", { text: `Comparison ${row.id}` });
  const head = div("head", back, name, outcomeBadges(row).filter(Boolean), quiet(`line ${row.line}`), link);
  const [number, place] = row.place;
  if (!parts.has(number)) {
    $("detail").replaceChildren(head, quiet("loading…"));
    await loadPart(number);
    if (state.id !== row.key) return;
  }
  $("detail").replaceChildren(head, ...comparisonElements(row, parts.get(number)[place]));
  restore(view);
}
// Opens and scrolls what the history entry says.
function restore({ open, top }) {
  if (open) {
    for (const details of document.querySelectorAll("details[data-key]")) {
      details.open = open.includes(details.dataset.key);
    }
  }
  scroller().scrollTop = top || 0;
}

// --- header ---

function header() {
  $("title").textContent = data.title;
  const lines = data.runs.map(({ name, settings }, i) =>
    make("p", { class: "run", text: [runName(i) || name, settings].filter(Boolean).join(" · ") }),
  );
  const states = data.runs
    .map((run, i) => (run.state ? `${runName(i) || run.name}: ${run.state}` : ""))
    .filter(Boolean);
  if (rows.length < data.total) {
    const counts = [rows.length, data.total].map((n) => n.toLocaleString("en"));
    states.push(`this page holds the first ${counts[0]} of ${counts[1]} rows; its rates are of all`);
  }
  const { accuracy, ties, errors } = data.runs[0].summary;
  const main = isPaired
    ? ["agreement", data.pair.agreement]
    : isMissing(accuracy)
      ? ["ties", ties]
      : ["accuracy", accuracy];
  const texts = [`${main[0]} ${percent(main[1])}`, !isPaired && errors ? `errors ${errors}` : ""];
  $("overview").append(quiet(` ${texts.filter(Boolean).join(" · ")}`));
  $("runs").replaceChildren(
    ...lines,
    ...states.map((text) => make("p", { class: "state", text, role: "note" })),
  );
}

// --- colours and keys ---

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
}
function toggleTheme() {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  writeSetting("theme", document.documentElement.dataset.theme);
}
function setPlain(plain) {
  isPlain = plain;
  $("plain").textContent = plain ? "Markdown" : "Plain text";
}
function togglePlain() {
  setPlain(!isPlain);
  writeSetting("plain", String(isPlain));
  remember();
  showDetail(history.state || {});
}
function toggleCritiques() {
  const all = [...document.querySelectorAll("details.critique")];
  const open = all.some((details) => !details.open);
  for (const details of all) details.open = open;
}
const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  "/": () => $("search").focus(),
  f: () => $("filter").focus(),
  h: openOverview,
  o: toggleCritiques,
  m: togglePlain,
  t: toggleTheme,
  "?": () => $("keys").showModal(),
};
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, select");
  if (event.key === "Escape") {
    if ($("keys").open) return;
    if (isTyping) event.target.blur();
    else backToList();
    return;
  }
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const isScrolled = event.target.closest(".prose[tabindex], pre[tabindex]");
  const action = event.key.startsWith("Arrow") && isScrolled ? null : KEYS[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});

// --- start ---

function fillControls() {
  for (const [value, [label, passes]] of Object.entries(FILTERS)) {
    const text = `${label} (${rows.filter(passes).length})`;
    $("filter").append(make("option", { value, text }));
  }
  for (const [value, [label]] of Object.entries(SORTS)) {
    $("sort").append(make("option", { value, text: label }));
  }
  const fields = Object.entries(data.breakdown);
  $("group").hidden = !fields.length;
  $("overview").hidden = data.examples;
  $("group").append(make("option", { value: "", text: "all subsets" }));
  for (const [field, groups] of fields) {
    const options = groups.map(({ value }) =>
      make("option", { value: JSON.stringify([field, value]), text: `${field}: ${value}` }),
    );
    $("group").append(make("optgroup", { label: field }, options));
  }
}
const onChange = (name, changes) =>
  $(name).addEventListener("change", (event) => changeList(changes(event.target.value)));

fillControls();
$("search").addEventListener("input", (event) =>
  changeList({ q: event.target.value }, { replace: state.q !== "" }),
);
onChange("filter", (filter) => ({ filter }));
onChange("sort", (sort) => ({ sort }));
onChange("group", (text) => {
  const [by, value] = text ? JSON.parse(text) : ["", ""];
  return { by, value };
});
$("theme").addEventListener("click", toggleTheme);
$("plain").addEventListener("click", togglePlain);
$("help").addEventListener("click", () => $("keys").showModal());
$("overview").addEventListener("click", openOverview);
$("skip").addEventListener("click", () => $("detail").focus());
addEventListener("popstate", (event) => {
  steps = false;
  open(event.state);
});
let waiting = 0;
function rememberSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(remember, 150);
}
// Both events do not bubble, and a change of the entry while the page unloads is not kept.
document.addEventListener("toggle", rememberSoon, true);
document.addEventListener("scroll", rememberSoon, true);
history.scrollRestoration = "manual";
setTheme(
  readSetting("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"),
);
setPlain(readSetting("plain") === "true");
function fitHeight() {
  const height = document.querySelector(".top").offsetHeight;
  document.documentElement.style.setProperty("--top", `${height}px`);
}
header();
fitHeight();
addEventListener("resize", fitHeight);
open(history.state);
if (data.parts.length <= MAX_PARTS) loadSearchTexts(() => {});
