// Activations over an image and under words: amounts of one colour, which is told apart in light,
// in dark and without colours, each said in figures when pointed at or reached by the arrows.

const most = (values) => values.reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1;

function scaleTo(largest) {
  return el("p", { class: "heat-scale" }, el("span", {}, "0"), el("span", { class: "heat-bar", "aria-hidden": "true" }), el("span", {}, brief(largest)));
}

// Cells can be walked through by arrows; where one stands is said aloud.
function walkable(node, cells, told) {
  const output = el("output", { class: "heat-told", "aria-live": "polite" }, told(-1));
  let at = -1;
  const to = (next) => {
    cells[at]?.classList.remove("at");
    at = next;
    cells[at]?.classList.add("at");
    output.textContent = told(at);
  };
  node.setAttribute("tabindex", "0");
  node.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    to(Math.min(cells.length - 1, Math.max(0, at + by)));
  });
  node.addEventListener("blur", () => to(-1));
  cells.forEach((cell, i) => cell.addEventListener("pointerenter", () => to(i)));
  node.addEventListener("pointerleave", () => to(-1));
  return output;
}

function heatOn(node, { boxes, values }) {
  const largest = most(values);
  const cells = boxes.map(([left, top, right, bottom], i) => {
    const cell = el("span", { class: "heat-cell" });
    cell.style.cssText = `left:${100 * left}%;top:${100 * top}%;width:${100 * (right - left)}%;height:${100 * (bottom - top)}%;--heat-share:${Math.abs(values[i]) / largest}`;
    return cell;
  });
  const layer = el("div", { class: "heat-layer", "aria-hidden": "true" }, ...cells);
  node.append(layer);
  const strongest = values.indexOf(Math.max(...values));
  node.setAttribute("aria-label", `${node.getAttribute("aria-label")}. Heat map of ${boxes.length} places, the strongest number ${strongest + 1} with ${brief(values[strongest] ?? 0)}; arrows walk through them.`);
  const output = walkable(node, cells, (i) => (i < 0 ? "Activation by place: point at one, or walk with the arrows." : `Place ${i + 1} of ${boxes.length}: ${brief(values[i])}`));
  const toggle = el("input", { type: "checkbox" });
  toggle.checked = true;
  toggle.addEventListener("change", () => { layer.hidden = !toggle.checked; });
  return [node, el("div", { class: "heat-under" }, el("label", {}, toggle, " Heat map"), scaleTo(largest)), output];
}

function heatUnder({ words, values }) {
  const largest = most(values);
  const cells = words.map((word, i) => {
    const cell = el("span", { class: "heat-word", title: brief(values[i]) }, word);
    cell.style.setProperty("--heat-share", Math.abs(values[i]) / largest);
    return cell;
  });
  const strongest = values.indexOf(Math.max(...values));
  const line = el("div", { class: "heat-words", dir: "auto", role: "group", "aria-label": `Words by activation, the strongest ${words[strongest] ?? ""} with ${brief(values[strongest] ?? 0)}; arrows walk through them` }, ...cells.flatMap((cell) => [cell, " "]));
  const output = walkable(line, cells, (i) => (i < 0 ? "" : `${words[i]}: ${brief(values[i])}`));
  return el("div", {}, line, output);
}

// Facts of single features that not every run has come in bundles, the most active first.
async function detailsOf(feature) {
  const at = data.details?.at[feature];
  if (at === undefined) return {};
  const all = await bundle(at);
  return all[feature] ?? {};
}

const bundles = new Map();

function bundle(at) {
  if (!bundles.has(at)) {
    bundles.set(at, inflated(document.querySelectorAll("script.bundle")[at]).then((bytes) => JSON.parse(new TextDecoder().decode(bytes))));
  }
  return bundles.get(at);
}

async function mapOf(feature, stream, pair) {
  const { maps } = await detailsOf(feature);
  return (maps?.[stream] ?? []).find((map) => map.pair === data.numbers[pair]) ?? null;
}
