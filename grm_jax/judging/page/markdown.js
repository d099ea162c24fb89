// Markdown as elements. `markdownTree` parses a text into [tag, attributes, children]; a child is a
// string or such a tree. There is no HTML: tags in a text stay text, images become links, and a
// link has to be http, https or mailto. Depth and the reach of every search are bounded, so the
// time is linear in the length.

const MAX_DEPTH = 6; // of block quotes and lists, and of emphasis
const MAX_SPAN = 2000; // characters of an emphasis, a link text or an address
const MAX_COLUMNS = 40;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/s;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const DIVIDER = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?$/;
const isBlank = (line) => line.trim() === "";
const fenceOf = (line) => (line.length < 300 ? FENCE.exec(line) : null);
const indent = (line) => line.length - line.trimStart().length;

function markdownTree(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  return ["div", {}, blocks(lines, 0)];
}

function blocks(lines, depth) {
  const trees = [];
  for (let i = 0; i < lines.length; ) {
    if (isBlank(lines[i])) {
      i += 1;
      continue;
    }
    const parse = KINDS.find((kind) => kind.starts(lines, i, depth));
    const [tree, next] = (parse || paragraph)(lines, i, depth);
    trees.push(tree);
    i = next;
  }
  return trees;
}

// Each of these returns [tree, index of the line after it].

function code(lines, i) {
  const [, fence, language] = fenceOf(lines[i]) || [];
  let end = i + 1;
  if (!fence) {
    while (end < lines.length && (isBlank(lines[end]) || indent(lines[end]) >= 4)) end += 1;
    while (isBlank(lines[end - 1])) end -= 1;
    const text = lines.slice(i, end).map((line) => line.slice(4));
    return [["pre", {}, [text.join("\n")]], end];
  }
  const isEnd = (line) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "");
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  const attributes = language ? { "data-language": language } : {};
  return [["pre", attributes, [lines.slice(i + 1, end).join("\n")]], end + 1];
}
code.starts = (lines, i) => fenceOf(lines[i]) || lines[i].startsWith("    ");

function heading(lines, i) {
  const [, marks, text] = HEADING.exec(lines[i]);
  return [["p", { class: `heading h${marks.length}` }, inline(text)], i + 1];
}
heading.starts = (lines, i) => HEADING.test(lines[i]);

const rule = (lines, i) => [["hr", {}, []], i + 1];
rule.starts = (lines, i) => lines[i].length < 200 && RULE.test(lines[i]);

function quote(lines, i, depth) {
  let end = i;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(i, end).map((line) => line.replace(QUOTE, ""));
  return [["blockquote", {}, blocks(inner, depth + 1)], end];
}
quote.starts = (lines, i, depth) => depth < MAX_DEPTH && QUOTE.test(lines[i]);

function list(lines, i, depth) {
  const [, , first] = ITEM.exec(lines[i]);
  const isOrdered = /\d/.test(first);
  const items = [];
  while (i < lines.length) {
    const match = ITEM.exec(lines[i]);
    if (!match || /\d/.test(match[2]) !== isOrdered || rule.starts(lines, i)) break;
    const width = match[1].length + match[2].length + Math.max(1, Math.min(4, match[3].length));
    const inner = [lines[i].slice(width)];
    for (i += 1; i < lines.length; i += 1) {
      if (isBlank(lines[i])) {
        if (indent(lines[i + 1] || "") < 2) break;
        inner.push("");
      } else if (indent(lines[i]) >= Math.min(width, 2)) {
        inner.push(lines[i].slice(Math.min(width, indent(lines[i]))));
      } else if (startsBlock(lines, i, depth)) break;
      else inner.push(lines[i]);
    }
    items.push(["li", {}, blocks(inner, depth + 1)]);
    while (i < lines.length && isBlank(lines[i]) && ITEM.test(lines[i + 1] || "")) i += 1;
  }
  const attributes = isOrdered ? { start: String(parseInt(first, 10)) } : {};
  return [[isOrdered ? "ol" : "ul", attributes, items], i];
}
list.starts = (lines, i, depth) => depth < MAX_DEPTH && ITEM.test(lines[i]);

function table(lines, i) {
  const cells = (line, tag) => {
    const texts = line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/);
    if (texts.length > MAX_COLUMNS) texts.push(texts.splice(MAX_COLUMNS - 1).join("|"));
    return ["tr", {}, texts.map((text) => [tag, {}, inline(text.trim())])];
  };
  const rows = [cells(lines[i], "th")];
  let end = i + 2;
  for (; end < lines.length && lines[end].includes("|"); end += 1) rows.push(cells(lines[end], "td"));
  return [["table", {}, rows], end];
}
table.starts = (lines, i) => {
  const next = (lines[i + 1] || "").trim();
  return lines[i].includes("|") && next.includes("|") && DIVIDER.test(next);
};

function paragraph(lines, i, depth) {
  let end = i + 1;
  while (end < lines.length && !isBlank(lines[end]) && !startsBlock(lines, end, depth)) end += 1;
  return [["p", {}, inline(lines.slice(i, end).join("\n"))], end];
}
function startsBlock(lines, i, depth) {
  if (fenceOf(lines[i])) return true;
  return [heading, rule, quote, list, table].some((one) => one.starts(lines, i, depth));
}

const KINDS = [code, heading, rule, quote, list, table];

// --- within a line ---

const SPECIAL = /\\[`*_~#|]|`+|\*{1,3}|_{1,3}|~~|!?\[|https?:\/\//g;
const ADDRESS = /https?:\/\/[^\s<>"'`()[\]{}|\\^]{1,2000}/y;
const EMPHASIS = { 1: ["em"], 2: ["strong"], 3: ["em", "strong"] };
const isWord = (character) => /[\p{L}\p{N}_]/u.test(character || "");

// The parts of a text: strings and trees.
function inline(text, depth = 0) {
  const parts = [];
  const special = new RegExp(SPECIAL);
  const searched = {}; // mark -> index before which no later mark of this kind closes
  let from = 0;
  for (let match = special.exec(text); match; match = special.exec(text)) {
    const [tree, end] = depth < MAX_DEPTH ? spanTree(text, match, depth, searched) : [null];
    if (tree === null) continue;
    parts.push(text.slice(from, match.index), tree);
    from = special.lastIndex = end;
  }
  parts.push(text.slice(from));
  return parts.filter((part) => part !== "");
}

// Returns [tree, index after it] of what begins at a match of SPECIAL; [null] if it is plain text.
function spanTree(text, match, depth, searched) {
  const [mark] = match;
  const start = match.index + mark.length;
  if (mark[0] === "\\") return [mark[1], start];
  if (mark.endsWith("[")) return link(text.slice(start, start + 2 * MAX_SPAN), start, mark, depth);
  if (mark.startsWith("http")) {
    ADDRESS.lastIndex = match.index;
    const address = (ADDRESS.exec(text) || [""])[0].replace(/[.,:;!?*_~]{1,9}$/, "");
    const href = safeAddress(address);
    return href ? [["a", { href }, [address]], match.index + address.length] : [null];
  }
  const isCode = mark[0] === "`";
  const isInWord = mark[0] === "_" && isWord(text[match.index - 1]);
  if (!isCode && (isInWord || !/\S/.test(text[start] || ""))) return [null];
  const isEnd = (i) => {
    const [before, after] = [text[i - 1], text[i + mark.length]];
    if (isCode) return before !== "`" && after !== "`";
    return !/\s/.test(before) && after !== mark[0] && !(mark[0] === "_" && isWord(after));
  };
  const end = closing(text, start, mark, isEnd, searched);
  if (end < 0) return [null];
  const inner = text.slice(start, end);
  const tags = isCode ? ["code"] : mark === "~~" ? ["s"] : EMPHASIS[mark.length];
  const children = isCode ? [inner] : inline(inner, depth + 1);
  return [tags.reduceRight((trees, tag) => [[tag, {}, trees]], children)[0], end + mark.length];
}
// The index of the mark that closes, at most MAX_SPAN characters after start; -1 without one.
function closing(text, start, mark, isEnd, searched) {
  const limit = start + MAX_SPAN;
  const first = Math.max(start + 1, searched[mark] || 0);
  const ahead = text.slice(first, limit);
  for (let i = ahead.indexOf(mark); i >= 0; i = ahead.indexOf(mark, i + mark.length)) {
    if (isEnd(first + i)) return first + i;
  }
  searched[mark] = limit;
  return -1;
}

// [text](address "title"); an image is a link to it. The address is shown beside the text.
function link(ahead, start, mark, depth) {
  const match = /^([^[\]\n]{0,500})\]\(([^\s()<>]{1,2000})(?:[ \t]+"[^"\n]{0,300}")?\)/.exec(ahead);
  const href = match && safeAddress(match[2]);
  if (!href) return [null];
  const name = mark[0] === "!" ? ["image: ", match[1]] : inline(match[1], depth + 1);
  const tree = ["span", {}, [["a", { href }, name], ` (${match[2]})`]];
  return [tree, start + match[0].length];
}
// The address if it is absolute and opens a page or a mail, else null.
function safeAddress(text) {
  if (!/^(https?:\/\/|mailto:)/i.test(text)) return null;
  try {
    const { protocol, href } = new URL(text);
    return ["http:", "https:", "mailto:"].includes(protocol) ? href : null;
  } catch {
    return null;
  }
}

// --- elements ---

function elementOf([tag, attributes, children]) {
  const element = make(tag, attributes);
  if (tag === "a") {
    element.target = "_blank";
    element.rel = "noopener noreferrer nofollow";
  }
  if (tag === "pre") element.tabIndex = 0;
  for (const child of children) {
    element.append(typeof child === "string" ? child : elementOf(child));
  }
  return element;
}

let isPlain = false; // texts are shown as they are, without Markdown
function prose(text, attributes) {
  const element = make("div", { class: isPlain ? "prose" : "prose md", ...attributes });
  if (isPlain) element.textContent = asText(text);
  else element.append(...elementOf(markdownTree(asText(text))).childNodes);
  return element;
}
