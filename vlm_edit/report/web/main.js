// Cards, and the start of everything but the charts.

function summary(feature) {
  const lift = valueOf("lift", feature);
  const images = data.top.image[feature].slice(0, 6).map((pair) => picture(pair));
  const texts = distinct(data.top.text[feature]).slice(0, 3).map((pair) => caption(pair, "li"));
  return el("div", {},
    el("p", { class: "headline" }, pill(classOf(feature)), ` MDS ${figure(valueOf("mds", feature))}`),
    el("p", { class: "note" }, `${whole.format(valueOf("active", feature))} of ${whole.format(data.pairs)} pairs${lift === null ? "" : `; both sides ${figure(lift, "times")} chance`}`),
    images.length ? el("div", { class: "strip" }, ...images) : el("p", { class: "note" }, "No image activates it."),
    texts.length ? el("ul", {}, ...texts) : el("p", { class: "note" }, "No text activates it."));
}

function card(feature, level) {
  return el("article", { class: `card ${classOf(feature).name}` },
    el(level, {}, el("a", { href: `#feature-${feature}` }, `Feature ${feature}`)), summary(feature));
}

function drawCards() {
  $("random-cards").replaceChildren(...data.random.map((k) => card(k, "h3")));
  $("strongest-cards").replaceChildren(...data.classes.flatMap(({ name, title }, code) => {
    const chosen = state.rule.strongest[name] ?? [];
    if (!chosen.length) return [];
    const total = whole.format(state.rule.counts[code]);
    return [el("h3", {}, `${title[0].toUpperCase()}${title.slice(1)}: ${total}`), el("div", { class: "cards" }, ...chosen.map((k) => card(k, "h4")))];
  }));
}

function drawExamples() {
  if (!data.examples.length) return;
  $("example-cards").replaceChildren(...data.examples.flatMap(({ title, note, items }) => [
    el("h3", {}, title),
    el("p", { class: "note" }, note),
    el("div", { class: "cards" }, ...items.map(([pair, ...lines]) =>
      el("div", { class: "card example" }, picture(pair), el("div", {}, ...lines.map((line) => el("div", { dir: "auto" }, line)))))),
  ]));
}

function setUpRules() {
  for (const { name, title } of data.rules) $("rule").append(el("option", { value: name }, title));
  $("rule").value = state.rule.name;
  const tell = () => { $("rule-note").textContent = state.rule.note ?? ""; };
  $("rule").addEventListener("change", () => {
    state.rule = data.rules.find((rule) => rule.name === $("rule").value);
    tell();
    select();
    render();
    drawCards();
    drawCharts();
  });
  tell();
}

setUpTheme(() => { drawCharts(); });
setUpRules();
setUpBrowser();
setUpDetail();
setUpCharts();
drawCards();
drawExamples();
followAddress();
