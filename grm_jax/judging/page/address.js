// The state of the page is its address: "#ID?filter=wrong&q=eggs". So a link opens a comparison, a
// reload keeps it, and the back button works. What is open and how far it is scrolled is in the
// history entry; colours and the kind of text are kept for the next page.

const DEFAULTS = { id: "", view: "", q: "", filter: "all", sort: "line", by: "", value: "" };
let state = { ...DEFAULTS };

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
function stateOf(hash) {
  const [, id, query] = /^#?([^?]*)\??(.*)$/s.exec(hash);
  const result = { ...DEFAULTS, id: decoded(id) };
  for (const [name, value] of new URLSearchParams(query)) {
    if (name in DEFAULTS && name !== "id") result[name] = value;
  }
  if (!Object.hasOwn(FILTERS, result.filter)) result.filter = DEFAULTS.filter;
  if (!Object.hasOwn(SORTS, result.sort)) result.sort = DEFAULTS.sort;
  return result;
}
function addressOf(changes) {
  const next = { ...state, ...changes };
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(next)) {
    if (name !== "id" && value !== DEFAULTS[name]) query.set(name, value);
  }
  return `#${encodeURIComponent(next.id)}${query.size ? `?${query}` : ""}`;
}

// Changes the state, and with it the address. replace: without an entry for the back button.
function navigate(changes, { replace = false, ...view } = {}) {
  const hash = addressOf(changes);
  if (hash === (location.hash || "#")) replace = true;
  remember();
  try {
    if (replace) history.replaceState(view, "", hash);
    else history.pushState(view, "", hash);
  } catch {
    // A page inside another one (srcdoc) has no address of its own.
  }
  state = { ...state, ...changes };
  update(view);
}
// Keeps in the history entry which critiques are open, and how far the comparison is scrolled.
function remember() {
  const open = [...document.querySelectorAll("details[data-key][open]")].map((e) => e.dataset.key);
  try {
    history.replaceState({ ...history.state, open, top: scroller().scrollTop }, "");
  } catch {
    // as above
  }
}

const isPhone = () => matchMedia("(max-width: 760px)").matches;
const scroller = () => (isPhone() ? document.scrollingElement : $("detail"));

function readSetting(name) {
  try {
    return localStorage.getItem(`grm-report-${name}`);
  } catch {
    return null; // storage is off
  }
}
function writeSetting(name, value) {
  try {
    localStorage.setItem(`grm-report-${name}`, value);
  } catch {
    // storage is off
  }
}
