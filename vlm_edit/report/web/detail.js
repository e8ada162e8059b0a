// One feature in full: a dialog with an address of its own, #feature-123.

const detail = { feature: null, opener: null };

function go(feature) {
  if (location.hash === `#feature-${feature}`) show(feature);
  else location.hash = `feature-${feature}`;
}

function followAddress() {
  const number = /^#feature-(\d+)$/.exec(location.hash)?.[1];
  if (number !== undefined && Number(number) < data.features) show(Number(number));
  else if ($("detail").open) $("detail").close();
}

const entry = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));

function figures(feature) {
  const list = el("dl", { class: "entries" });
  for (const c of data.columns) {
    if (c.name === "mds_low" || c.name === "mds_high") continue;
    const node = entry(c.title, c.name === "mds_width" ? intervalText(feature) : figure(c.values[feature], c.format));
    node.title = c.explanation;
    list.append(node);
  }
  return list;
}

function examplesOf(feature, stream) {
  const values = data.values[stream][feature];
  const strongest = Math.max(...values, 0) || 1;
  return data.top[stream][feature].map((pair, i) => {
    const meter = el("span", { class: "meter", "aria-hidden": "true" });
    meter.style.setProperty("--share", values[i] / strongest);
    const value = el("span", { class: "value" }, values[i] === null ? "–" : Number(values[i].toPrecision(3)).toString());
    return { pair, meter, value };
  });
}

function show(feature) {
  const dialog = $("detail");
  detail.feature = feature;
  $("detail-title").replaceChildren(`Feature ${feature} `, pill(classOf(feature)));
  const images = examplesOf(feature, "image").map(({ pair, value }) => el("li", {}, picture(pair), value));
  const texts = examplesOf(feature, "text").map(({ pair, meter, value }) => el("li", {}, caption(pair), value, meter));
  const scale = el("div", { class: "scale" }, el("span", {}, "text"), track(feature), el("span", {}, "image"));
  $("detail-body").replaceChildren(
    scale,
    el("p", { class: "note" }, sentence(feature)),
    el("h3", {}, "Images that activate it most"),
    images.length ? el("ul", { class: "gallery" }, ...images) : el("p", { class: "note" }, "No image activates it."),
    el("h3", {}, "Texts that activate it most"),
    texts.length ? el("ol", { class: "texts" }, ...texts) : el("p", { class: "note" }, "No text activates it."),
    ...(data.ratios ? [el("h3", {}, "Its pairs"), el("div", { id: "ratios", class: "chart", role: "img", "aria-label": "" })] : []),
    el("h3", {}, "Figures"),
    figures(feature),
  );
  if (!dialog.open) {
    detail.opener = document.activeElement;
    dialog.showModal();
  }
  dialog.scrollTop = 0;
  $("detail-title").focus();
  drawRatios();
}

function sentence(feature) {
  const active = valueOf("active", feature);
  if (!active) return "No pair activates it.";
  const lift = valueOf("lift", feature);
  return `MDS ${figure(valueOf("mds", feature))}${interval(feature)[0] === null ? "" : `, 95 % interval ${intervalText(feature)}`}. Active in ${whole.format(active)} of ${whole.format(data.pairs)} pairs; in ${figure(valueOf("cofiring", feature))} of these image and text both activate it, ${figure(valueOf("chance", feature))} if paired at random${lift === null ? "" : ` (${figure(lift, "times")})`}.`;
}

// How the image's share of the activation lies over the feature's active pairs.
function drawRatios() {
  if (!data.ratios || detail.feature === null || typeof Plotly === "undefined") return;
  const counts = data.ratios[detail.feature];
  const middles = counts.map((_, i) => i / (counts.length - 1));
  Plotly.react("ratios", [{ type: "bar", x: middles, y: counts, marker: { color: colour(classOf(detail.feature).name) }, hovertemplate: "%{y} pairs<extra></extra>" }], layout({
    height: 190, margin: { l: 48, r: 12, t: 8, b: 44 }, xaxis: { range: [0, 1], title: "image's share of the activation" }, yaxis: { title: "pairs", rangemode: "tozero" },
  }), settings);
  $("ratios").setAttribute("aria-label", `Histogram of the image's share of the activation, from 0 to 1: ${counts.join(", ")} pairs.`);
}

// The neighbours are those of the table as it is sorted now, or by number if it is filtered away.
function step(by) {
  const at = view.order.indexOf(detail.feature);
  const next = at < 0 ? detail.feature + by : view.order[at + by];
  if (next === undefined || next < 0 || next >= data.features) return;
  history.replaceState(null, "", `#feature-${next}`);
  show(next);
}

function setUpDetail() {
  const dialog = $("detail");
  $("close").addEventListener("click", () => dialog.close());
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    detail.feature = null;
    if (location.hash.startsWith("#feature-")) history.replaceState(null, "", location.pathname + location.search);
    if (detail.opener?.isConnected) detail.opener.focus({ preventScroll: true });
  });
  addEventListener("hashchange", followAddress);
}
