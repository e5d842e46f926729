// Elements made by hand: nothing that a figure brings is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Give `node` what `build` makes of `data`, if that is not what it shows already. */
export function show(node, data, build) {
  const shown = JSON.stringify(data);
  if (node.shown === shown) return;
  node.shown = shown;
  node.replaceChildren(...[build(data)].flat());
}

export function text(node, words) {
  if (node.textContent !== words) node.textContent = words;
}

/** A table with a caption for those who hear it. `rows` begin with their heading. */
export function table(caption, headings, rows) {
  return el(
    "table",
    {},
    el("caption", { class: "quiet" }, caption),
    el("thead", {}, el("tr", {}, ...headings.map((h) => el("th", { scope: "col" }, h)))),
    el(
      "tbody",
      {},
      ...rows.map(([heading, ...cells]) =>
        el("tr", {}, el("th", { scope: "row" }, heading), ...cells.map((c) => el("td", {}, c))),
      ),
    ),
  );
}

/** Shares of one whole, side by side; `parts` are [value, class]. */
export function bar(label, parts, whole) {
  const node = el("div", { class: "bar", role: "img", "aria-label": label });
  for (const [value, kind] of parts) {
    const part = el("span", { class: kind });
    part.style.width = `${(100 * value) / (whole || 1)}%`;
    node.append(part);
  }
  return node;
}
