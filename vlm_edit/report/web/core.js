// The data, and small things that all parts use. Text from the data reaches the page as text
// nodes and attributes only.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

const column = Object.fromEntries(data.columns.map((c) => [c.name, c]));
const state = { rule: data.rules.find((r) => r.name === "interval") ?? data.rules[0] };
const classOf = (feature) => data.classes[Number(state.rule.member[feature])];
const valueOf = (name, feature) => column[name]?.values[feature] ?? null;

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// Figures: always with the same number of decimals in a column, so that they line up.
const whole = new Intl.NumberFormat("en");

function figure(value, format) {
  if (value === null || value === undefined) return "–";
  if (format === "count") return whole.format(value);
  if (format === "times") return `${value >= 100 ? whole.format(Math.round(value)) : value.toFixed(1)}×`;
  if (format === "p") return value < 0.0001 ? "< .0001" : value.toFixed(4).replace(/^0/, "");
  return value.toFixed(3).replace("-", "−");
}

// Pictures: one sheet holds many; its address is made when the first of its pictures is shown.
const sheets = [...document.querySelectorAll("script.sheet")];
const addresses = [];

function address(sheet) {
  if (!addresses[sheet]) {
    const bytes = Uint8Array.from(atob(sheets[sheet].textContent), (c) => c.charCodeAt(0));
    addresses[sheet] = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
  }
  return addresses[sheet];
}

function picture(pair, decorative = false) {
  const caption = data.captions[pair];
  const place = data.places[pair];
  const label = decorative ? { "aria-hidden": "true" } : { role: "img", "aria-label": caption };
  if (place < 0) return el("span", { class: "picture none", title: caption, dir: "auto", ...label }, caption);
  const node = el("span", { class: "picture", title: caption, ...label });
  const tile = place % data.sheet.size;
  const sheet = Math.floor(place / data.sheet.size);
  node.style.backgroundImage = `url("${address(sheet)}")`;
  node.style.setProperty("--x", tile % data.sheet.row);
  node.style.setProperty("--y", Math.floor(tile / data.sheet.row));
  return node;
}

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

// Light or dark: the system's choice until the button is used.
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function setUpTheme(changed) {
  const label = () => { $("theme").textContent = isDark() ? "Light" : "Dark"; $("theme").setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`); };
  $("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("vlm-edit-theme", theme); } catch { /* closed to files */ }
    label();
    changed();
  });
  systemDark.addEventListener("change", () => { label(); changed(); });
  label();
}
