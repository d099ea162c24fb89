"use strict";
// Building blocks of the page. All data is inserted by textContent: no query, response or critique
// is ever markup.

const $ = (id) => document.getElementById(id);
const hue = (i) => `var(--r${i % 6})`;
const isMissing = (x) => x === null || x === undefined || x === false;
const number = (x) => (isMissing(x) ? "–" : Number.isInteger(x) ? String(x) : x.toFixed(2));
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
const prose = (text) => make("p", { class: "prose", text });
const block = (title, ...children) =>
  make("section", { class: "block" }, make("h2", { text: title }), ...children);

// A horizontal bar; share: 0 to 1.
function bar(share, label) {
  const fill = make("i");
  fill.style.width = `${100 * share}%`;
  return make("div", { class: "bar", role: "img", title: label, "aria-label": label }, fill);
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

// A line without axes, with its highest and lowest value.
function sparkline(values, label) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const points = values.map((value, i) => [
    4 + (136 * i) / (values.length - 1),
    26 - (22 * (value - low)) / (high - low || 1),
  ]);
  return draw(
    "svg",
    { viewBox: "0 0 190 30", role: "img", "aria-label": label },
    drawLine(points, "var(--accent)"),
    drawText(146, 10, percent(high)),
    low === high ? "" : drawText(146, 28, percent(low)),
  );
}
