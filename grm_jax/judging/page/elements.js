"use strict";
// Building blocks of the page. All data is inserted by textContent: no query, response or critique
// is ever markup of the page.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const hue = (i) => `var(--r${i % 6})`;
const isMissing = (x) => x === null || x === undefined || x === false;
const number = (x) =>
  typeof x !== "number" ? "–" : Number.isInteger(x) ? String(x) : x.toFixed(2);
const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));
// Whether each score is the highest, with the tolerance of `votes.top`: sums of thirds are rounded.
const areTop = (scores) => {
  const best = Math.max(...scores);
  return scores.map((x) => best - x <= 1e-9 * Math.max(1, Math.abs(best), Math.abs(x)));
};
const percent = (x) => (isMissing(x) ? "–" : (100 * x).toFixed(1) + "%");

// An HTML element. Attributes: text, class, --css-variable, onevent, or any other name; those that
// are null or false are skipped, and so are such children.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (isMissing(value)) continue;
    if (name === "text") element.textContent = value;
    else if (name === "class") element.className = value;
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => !isMissing(child)));
  return element;
}
const span = (className, text) => make("span", { class: className, text });
const badge = (kind, text) => span(`badge ${kind}`.trim(), text);
const quiet = (text) => span("quiet", text);
const div = (className, ...children) => make("div", { class: className }, ...children);
const block = (title, ...children) =>
  make("section", { class: "block" }, make("h2", { text: title }), ...children);

// A horizontal bar; share: 0 to 1.
function bar(share, label) {
  const fill = make("i");
  fill.style.width = `${100 * share}%`;
  return make("div", { class: "bar", role: "img", "aria-label": label }, fill);
}

// A table in a box that scrolls sideways. rows: arrays of cells, the first of which is a heading.
function tableElement(className, headings, rows) {
  const head = headings.map((text) => make("th", { scope: "col", text }));
  const body = rows.map(([name, ...cells]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, name),
      cells.map((cell) => (cell instanceof Node ? cell : make("td", { text: cell }))),
    ),
  );
  const parts = [make("thead", {}, make("tr", {}, head)), make("tbody", {}, body)];
  return div("scroll", make("table", { class: className }, parts));
}

// An SVG element.
function draw(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "stroke" || name === "fill") element.style.setProperty(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
function drawText(x, y, text, colour = "var(--quiet)", anchor = "start") {
  const attributes = { x, y, "font-size": "11", fill: colour, "text-anchor": anchor };
  const element = draw("text", attributes);
  element.textContent = text;
  return element;
}
function drawLine(points, colour, dashes = "none") {
  return draw("polyline", {
    points: points.map((point) => point.join(",")).join(" "),
    stroke: colour,
    fill: "none",
    "stroke-width": "2",
    "stroke-dasharray": dashes,
  });
}

// A chart of lines over k with its axis, each line labelled at its end.
// lines: [{name, hue, points: [[k, value], ...]}]; low, high: the ends of the axis.
function lineChart({ lines, ks, low, high, format, label, caption }) {
  const [width, height, left, right, bottom, top] = [460, 170, 40, 78, 24, 10];
  const last = ks[ks.length - 1];
  const x = (k) => left + ((width - left - right) * (k - ks[0])) / (last - ks[0] || 1);
  const y = (s) => height - bottom - ((height - bottom - top) * (s - low)) / (high - low || 1);
  const svg = draw("svg", {
    viewBox: `0 0 ${width} ${height}`,
    class: "by-k",
    role: "img",
    "aria-label": label,
  });
  for (const s of [low, (low + high) / 2, high]) {
    const axis = { x1: left, x2: width - right, y1: y(s), y2: y(s), class: "axis" };
    svg.append(draw("line", axis), drawText(left - 6, y(s) + 4, format(s), undefined, "end"));
  }
  const every = Math.ceil(ks.length / 8);
  ks.forEach((k, i) => {
    const isLast = i === ks.length - 1;
    const isShown = isLast || (i % every === 0 && ks.length - 1 - i >= every / 2);
    if (isShown) svg.append(drawText(x(k), height - 6, k, undefined, "middle"));
  });
  const ends = lines
    .filter((line) => line.points.length)
    .map((line, i) => {
      const points = line.points.map(([k, value]) => [x(k), y(value)]);
      const [end, height] = points[points.length - 1];
      const isPoint = points.length === 1;
      const marker = isPoint && draw("circle", { cx: end, cy: height, r: 3, fill: line.hue });
      svg.append(marker || drawLine(points, line.hue, i % 2 ? "6 3" : "none"));
      return { end, height, ...line };
    });
  ends.sort((a, b) => a.height - b.height);
  ends.forEach((line, i) => {
    const above = ends.slice(0, i).filter(({ end }) => end === line.end).pop();
    if (above) line.height = Math.max(line.height, above.height + 12); // labels do not overlap
    svg.append(drawText(line.end + 6, line.height + 4, line.name, line.hue));
  });
  return make("figure", {}, make("figcaption", { class: "quiet", text: caption }), svg);
}
