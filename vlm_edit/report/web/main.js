// Cards, and the start of everything.

function summary(feature) {
  const lift = valueOf("lift", feature);
  const images = topOf("image", feature).slice(0, 6).map((pair) => picture(pair));
  const texts = distinct(topOf("text", feature)).slice(0, 3).map((pair) => caption(pair, "li"));
  const name = names.get(feature);
  return el("div", { "data-feature": feature },
    el("p", { class: "headline" }, pill(classOf(feature)), ` MDS ${figure(valueOf("mds", feature))}`),
    el("p", { class: "note" }, name ? el("strong", { dir: "auto" }, name.name) : null, name ? ": " : null, `${whole.format(valueOf("active", feature))} of ${whole.format(data.pairs)} pairs${lift === null ? "" : `; both sides ${figure(lift, "times")} chance`}`),
    images.length ? el("div", { class: "strip" }, ...images) : el("p", { class: "note" }, "No image activates it."),
    texts.length ? el("ul", {}, ...texts) : el("p", { class: "note" }, "No text activates it."));
}

function card(feature, level) {
  return el("article", { class: `card ${classOf(feature).name}` },
    el(level, {}, el("a", { href: `#feature-${feature}`, "data-go": feature }, `Feature ${feature}`)), summary(feature));
}

function drawCards() {
  $("random-cards").replaceChildren(...data.random.map((k) => card(k, "h3")));
  $("strongest-cards").replaceChildren(...data.classes.flatMap(({ name, title }, code) => {
    const shown = state.rule.strongest[name] ?? [];
    if (!shown.length) return [];
    const total = whole.format(state.rule.counts[code]);
    return [el("h3", {}, `${title[0].toUpperCase()}${title.slice(1)}: ${total}`), el("div", { class: "cards" }, ...shown.map((k) => card(k, "h4")))];
  }));
}

function drawExamples() {
  if (!data.examples.length) return;
  $("example-cards").replaceChildren(...data.examples.flatMap(({ title, note: told, items }) => [
    el("h3", {}, title),
    el("p", { class: "note" }, told),
    el("div", { class: "cards" }, ...items.map(([pair, ...lines]) =>
      el("div", { class: "card example" }, picture(pair), el("div", {}, ...lines.map((line) => el("div", { dir: "auto" }, line)))))),
  ]));
}

async function start() {
  setUpTheme(() => { drawCharts(); });
  await loadBlocks();
  adopt(placeAndQuery()[1]);
  setUpNotes();
  setUpBrowser();
  setUpExport();
  setUpViewer();
  setUpDetail();
  setUpCharts();
  setUpAddress();
  document.querySelector("main").addEventListener("click", (event) => {
    const link = event.target.closest("a[data-go]");
    if (link) { event.preventDefault(); go(Number(link.dataset.go)); }
  });
  drawFilters();
  const { page } = view;
  state.ready = true;
  ruleChanged();
  view.page = page;
  render();
  drawExamples();
  document.documentElement.dataset.ready = "yes";
  followAddress();
}

start();
