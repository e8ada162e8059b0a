// One feature in full: a dialog with an address of its own, #feature-123.

const detail = { feature: null, opener: null };

function go(feature) {
  const address = addressOf(`feature-${feature}`);
  if (location.hash === address) show(feature);
  else location.hash = address;
}

const entry = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
const SIZES = [["mean", "mean"], ["median", "median"], ["q99", "99 % below"], ["max", "largest"]];
const drawnApart = new Set(["mds_low", "mds_high", ...["image", "text"].flatMap((stream) => SIZES.map(([name]) => `${stream}_${name}`))]);

function figures(feature) {
  const list = el("dl", { class: "entries" });
  for (const c of data.columns.filter((c) => !drawnApart.has(c.name))) {
    const node = entry(c.title, c.name === "mds_width" ? intervalText(feature) : figure(c.values[feature], c.format));
    node.title = c.explanation;
    list.append(node);
  }
  return list;
}

function topWith(stream, feature) {
  const values = strengthsOf(stream, feature);
  return topOf(stream, feature).map((pair, i) => [pair, values[i]]);
}

function imagesOf(feature, maps, pairs) {
  const heat = new Map((maps?.image ?? []).map((map) => [map.pair, map]));
  const largest = most([...heat.values()].flatMap((map) => map.values));
  const items = pairs.map(([pair, value]) => {
    const node = picture(pair, "button", { type: "button" });
    const map = heat.get(data.numbers[pair]);
    if (map && !node.classList.contains("none")) heatOver(node, pair, map, largest);
    return el("li", {}, node, el("span", { class: "value" }, brief(value)));
  });
  return items.length ? el("ul", { class: "gallery", "data-feature": feature }, ...items) : el("p", { class: "note" }, "No image activates it.");
}

function textsOf(feature, maps, pairs) {
  const strongest = most(pairs.map(([, value]) => value).filter((v) => !Number.isNaN(v)));
  const heat = new Map((maps?.text ?? []).map((map) => [map.pair, map]));
  const items = pairs.map(([pair, value]) => {
    const meter = el("span", { class: "meter", "aria-hidden": "true" });
    meter.style.setProperty("--share", value / strongest);
    const map = heat.get(data.numbers[pair]);
    return el("li", {}, map ? heatUnder(map) : caption(pair), el("span", { class: "value" }, brief(value)), meter);
  });
  const drawn = pairs.some(([pair]) => heat.has(data.numbers[pair])) ? [el("p", { class: "note" }, "The darker a word's line, the more it activates the feature, each text by its own largest.")] : [];
  return items.length ? [el("ol", { class: "texts" }, ...items), ...drawn] : [el("p", { class: "note" }, "No text activates it.")];
}

// The edges of the bins are those of floats: five bits behind the point are a cell, eight a bin.
function edgesBelow(largest, bins) {
  const bits = new Uint32Array(1);
  const float = new Float32Array(bits.buffer);
  float[0] = largest;
  const top = (bits[0] >>> 18) + 1;
  return Array.from({ length: bins + 1 }, (_, i) => { bits[0] = Math.max(0, top - 8 * i) << 18; return float[0]; }).reverse();
}

function bars(counts, edges, colours, words) {
  const tallest = most(counts);
  const node = el("div", { class: `bars ${colours}`, role: "img", "aria-label": words });
  counts.forEach((count, i) => {
    const range = i === 0 ? `below ${brief(edges[1])}` : `${brief(edges[i])} to ${brief(edges[i + 1])}`;
    const bar = el("span", { title: `${several(count, "token")}, ${range}` });
    bar.style.height = `${(100 * count) / tallest}%`;
    node.append(bar);
  });
  return node;
}

async function sizesOf(feature) {
  const nodes = [];
  for (const [stream, kind] of [["image", "vision"], ["text", "language"]]) {
    const counted = await block(`sizes ${stream}`);
    if (!counted) continue;
    const counts = [...rowOf(counted, feature, data.bins)].reverse();
    const total = counts.reduce((a, b) => a + b, 0);
    if (!total) { nodes.push(el("div", {}, el("h4", {}, `By ${stream} tokens`), el("p", { class: "note" }, "None activates it."))); continue; }
    const edges = edgesBelow(valueOf(`${stream}_max`, feature), data.bins);
    const words = `Histogram of ${whole.format(total)} activations by ${stream} tokens, on a logarithmic axis: ${counts.join(", ")}.`;
    const quantiles = el("dl", { class: "quantiles" }, ...SIZES.map(([name, title]) => entry(title, figure(valueOf(`${stream}_${name}`, feature), "size"))));
    nodes.push(el("div", {}, el("h4", {}, `By ${stream} tokens (${whole.format(total)} active)`), bars(counts, edges, kind, words),
      el("p", { class: "ends", "aria-hidden": "true" }, el("span", {}, `≤ ${brief(edges[1])}`), el("span", {}, brief(edges.at(-1)))), quantiles));
  }
  return nodes.length ? [el("h3", {}, "How large its activations are"), el("div", { class: "beside" }, ...nodes)] : [];
}

const WAYS = { decoder: ["By direction", "cosine of decoder rows"], examples: ["By what activates it", "share of examples in common (Jaccard)"] };

function nearTo(near) {
  const nodes = Object.entries(WAYS).filter(([way]) => near?.[way]?.length).map(([way, [title, told]]) =>
    el("div", {}, el("h4", {}, title), el("ul", { class: "near" }, ...near[way].map(([k, value]) =>
      el("li", {}, el("a", { href: `#feature-${k}`, "data-go": k }, `Feature ${k}`), " ", el("span", { class: "value" }, value.toFixed(2).replace("-", "−")), " ", el("span", { class: "near-words", dir: "auto" }, wordsOf(k))))),
    el("p", { class: "note" }, told)));
  return nodes.length ? [el("h3", {}, "Neighbours"), el("div", { class: "beside" }, ...nodes)] : [];
}

function wordsOf(feature) {
  if (names.has(feature)) return names.get(feature).name;
  const [first] = [...topOf("text", feature), ...topOf("image", feature)];
  return first === undefined ? "" : data.captions[first];
}

function effectsOf(effects) {
  const nodes = [["up", "More likely"], ["down", "Less likely"]].filter(([way]) => effects?.[way]?.length).map(([way, title]) =>
    el("div", {}, el("h4", {}, title), el("ul", { class: "words" }, ...effects[way].map(([word, value]) => el("li", {}, el("span", { dir: "auto" }, word), " ", el("span", { class: "value" }, brief(value)))))));
  return nodes.length ? [el("h3", {}, "Its effect on what the model says"), el("div", { class: "beside" }, ...nodes)] : [];
}

function nameOf(name) {
  if (!name?.name) return [];
  const range = Number.isFinite(name.low) && Number.isFinite(name.high) ? ` [${name.low.toFixed(2)}, ${name.high.toFixed(2)}]` : "";
  const told = Number.isFinite(name.score) ? `score ${name.score.toFixed(2)}${range}${Number.isFinite(name.held) ? `, on ${several(name.held, "example")} held out` : ""}` : "not scored";
  return [el("p", { class: "name" }, el("strong", { dir: "auto" }, name.name), " ", el("span", { class: "note" }, told),
    name.words?.length ? el("span", { class: "note name-words" }, ` · ${[name.words].flat().join(", ")}`) : null)];
}

async function show(feature) {
  const dialog = $("detail");
  const fresh = detail.feature !== feature;
  detail.feature = feature;
  $("detail-title").replaceChildren(`Feature ${feature} `, pill(classOf(feature)));
  if (!dialog.open) {
    detail.opener = document.activeElement;
    dialog.showModal();
  }
  const [more, sizes, ratios] = await Promise.all([detailsOf(feature), sizesOf(feature), block("ratios")]);
  if (detail.feature !== feature) return;
  const scale = el("div", { class: "scale" }, el("span", {}, "text"), track(feature), el("span", {}, "image"));
  const [images, texts] = ["image", "text"].map((stream) => drawnOf(stream, feature));
  const heat = more.maps?.image?.length ? el("p", { class: "note" }, `Orange where it is active, in the ${several(more.maps.image.length, "picture")} that ${more.maps.image.length === 1 ? "is" : "are"} mapped; enlarged, each place tells how much.`) : null;
  const left = data.details?.left?.includes(feature) ? el("p", { class: "note" }, "Its heat maps did not fit into the page.") : null;
  $("detail-body").replaceChildren(
    ...nameOf(more.name),
    scale,
    el("p", { class: "note" }, sentence(feature)),
    noteOn(feature),
    el("h3", {}, "Images that activate it most"), imagesOf(feature, more.maps, topWith("image", feature)), ...[heat, left].filter(Boolean),
    el("h3", {}, "Texts that activate it most"), ...textsOf(feature, more.maps, topWith("text", feature)),
    ...(images.length + texts.length ? [el("h3", {}, "Others, drawn among all that activate it")] : []),
    ...(images.length ? [imagesOf(feature, more.maps, images)] : []), ...(texts.length ? textsOf(feature, more.maps, texts) : []),
    ...sizes,
    ...(ratios ? [el("h3", {}, "Its pairs"), el("div", { id: "ratios", class: "chart", role: "img", "aria-label": "" })] : []),
    ...nearTo(more.near), ...effectsOf(more.effects),
    el("h3", {}, "Figures"), figures(feature),
  );
  if (fresh) {
    dialog.scrollTop = 0;
    $("detail-title").focus();
  }
  drawRatios();
}

function sentence(feature) {
  const active = valueOf("active", feature);
  if (!active) return "No pair activates it.";
  const lift = valueOf("lift", feature);
  return `MDS ${figure(valueOf("mds", feature))}${interval(feature)[0] === null ? "" : `, 95 % interval ${intervalText(feature)}`}. Active in ${whole.format(active)} of ${whole.format(data.pairs)} pairs; in ${figure(valueOf("cofiring", feature))} of these image and text both activate it, ${figure(valueOf("chance", feature))} if paired at random${lift === null ? "" : ` (${figure(lift, "times")})`}.`;
}

// How the image's share of the activation lies over the feature's active pairs.
async function drawRatios() {
  const feature = detail.feature;
  const all = await block("ratios");
  if (!all || feature === null || detail.feature !== feature || typeof Plotly === "undefined" || !$("ratios")) return;
  const counts = [...rowOf(all, feature, data.levels)];
  const middles = counts.map((_, i) => i / (counts.length - 1));
  Plotly.react("ratios", [{ type: "bar", x: middles, y: counts, marker: { color: colour(classOf(feature).name) }, hovertemplate: "%{y} pairs<extra></extra>" }], layout({
    height: 190, margin: { l: 48, r: 12, t: 8, b: 44 }, xaxis: { range: [0, 1], title: "image's share of the activation" }, yaxis: { title: "pairs", rangemode: "tozero" },
  }), settings);
  $("ratios").setAttribute("aria-label", `Histogram of the image's share of the activation, from 0 to 1: ${counts.join(", ")} pairs.`);
}

// The neighbours are those of the table as it is sorted now, or by number if it is filtered away.
function step(by) {
  const at = view.order.indexOf(detail.feature);
  const next = at < 0 ? detail.feature + by : view.order[at + by];
  if (next === undefined || next < 0 || next >= data.features) return;
  setAddress(addressOf(`feature-${next}`));
  show(next);
}

function setUpDetail() {
  const dialog = $("detail");
  $("close").addEventListener("click", () => dialog.close());
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  dialog.addEventListener("keydown", (event) => {
    if (event.defaultPrevented) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-go]");
    if (link) { event.preventDefault(); go(Number(link.dataset.go)); }
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => {
    detail.feature = null;
    if (placeAndQuery()[0].startsWith("feature-")) setAddress(addressOf("") === "#" ? location.pathname + location.search : addressOf(""));
    if (detail.opener?.isConnected) detail.opener.focus({ preventScroll: true });
  });
}
