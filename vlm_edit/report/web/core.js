// The data, and small things that all parts use. Text from the data reaches the page as text
// nodes and attributes only.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

// Figures of all features come in blocks, compressed; some are inflated only when they are wanted.
const KINDS = { f4: Float32Array, f8: Float64Array, i4: Int32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
const blocks = new Map([...document.querySelectorAll("script.block")].map((node) => [node.dataset.name, node]));
const inflating = new Map();

function binary(text) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i += 1) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

const inflated = (node) => new Response(new Blob([binary(node.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();

function block(name) {
  if (!inflating.has(name)) {
    const node = blocks.get(name);
    inflating.set(name, node ? inflated(node).then((bytes) => new KINDS[node.dataset.kind](bytes)) : Promise.resolve(null));
    node?.remove();
  }
  return inflating.get(name);
}

const column = Object.fromEntries(data.columns.map((c) => [c.name, c]));
const state = { rule: data.rules.find((r) => r.name === "interval") ?? data.rules[0], ready: false };
const names = new Map(data.names.map(([feature, name, told]) => [feature, { name, told }]));
const lists = {};

async function loadBlocks() {
  await Promise.all([
    ...data.columns.map(async (c) => { c.values = await block(`column ${c.name}`); }),
    ...["image", "text"].map(async (stream) => { lists[stream] = { top: await block(`top ${stream}`), values: await block(`values ${stream}`) }; }),
  ]);
}

// The row of one feature in a block with so many figures each.
const rowOf = (values, feature, width) => values.subarray(feature * width, (feature + 1) * width);

function topOf(stream, feature) {
  const row = rowOf(lists[stream].top, feature, data.listed);
  const end = row.indexOf(-1);
  return [...(end < 0 ? row : row.subarray(0, end))];
}

const strengthsOf = (stream, feature) => [...rowOf(lists[stream].values, feature, data.listed)];
const classOf = (feature) => data.classes[Number(state.rule.member[feature])];

function valueOf(name, feature) {
  const value = column[name]?.values[feature];
  return value === undefined || Number.isNaN(value) ? null : value;
}

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Figures: always with the same number of decimals in a column, so that they line up.
const whole = new Intl.NumberFormat("en");
const brief = (value) => Number(value.toPrecision(3)).toString().replace("-", "−");

function figure(value, format) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (format === "count") return whole.format(value);
  if (format === "size") return brief(value);
  if (format === "times") return `${value >= 100 ? whole.format(Math.round(value)) : value.toFixed(1)}×`;
  if (format === "p") return value < 0.0001 ? "< .0001" : value.toFixed(4).replace(/^0/, "");
  return value.toFixed(3).replace("-", "−");
}

const several = (count, what) => `${whole.format(count)} ${what}${count === 1 ? "" : "s"}`;

const caption = (pair, tag = "span", attributes = {}) =>
  el(tag, { dir: "auto", ...attributes }, data.captions[pair]);

// Captions that differ, in their order; images of equal captions are shown once too.
function distinct(pairs) {
  const seen = new Set();
  return pairs.filter((pair) => !seen.has(data.captions[pair]) && seen.add(data.captions[pair]));
}

const pill = (kind) => el("span", { class: `pill ${kind.name}` }, el("span", { class: "dot", "aria-hidden": "true" }), kind.title);

// A line from 0 (text) to 1 (image) with the score and, where known, its interval.
function track(feature) {
  const score = valueOf("mds", feature);
  const node = el("span", { class: `track ${classOf(feature).name}`, "aria-hidden": "true" });
  if (score === null) return node;
  const [low, high] = interval(feature);
  if (low !== null) {
    const span = el("span", { class: "span" });
    span.style.left = `${100 * low}%`;
    span.style.width = `${100 * (high - low)}%`;
    node.append(span);
  }
  const mark = el("span", { class: "mark" });
  mark.style.left = `${100 * score}%`;
  node.append(mark);
  return node;
}

const interval = (feature) => [valueOf("mds_low", feature), valueOf("mds_high", feature)];

function intervalText(feature) {
  const [low, high] = interval(feature);
  return low === null ? "–" : `[${low.toFixed(2)}, ${high.toFixed(2)}]`;
}
