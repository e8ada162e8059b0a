// The table of features: search, filters, sorting, pages, selection.

const PER_PAGE = 50;
const plain = (text) => text.normalize("NFKC").toLowerCase();
const folded = data.captions.map(plain);
const selected = new Set();
const orders = new Map();

// Features whose number is the query, or of whose top examples one caption holds all its words;
// or their name, or what the reader noted of them.
function matching(query) {
  const words = plain(query).split(/\s+/).filter(Boolean);
  if (!words.length) return null;
  const own = /^#?(\d+)$/.exec(query.trim())?.[1];
  const all = (text) => words.every((word) => text.includes(word));
  const hit = Uint8Array.from(folded, (text) => (all(text) ? 1 : 0));
  const told = new Set([...names].filter(([, one]) => all(plain(one.name))).map(([k]) => k));
  for (const [k, text] of notes.texts) if (all(plain(text))) told.add(k);
  const { image: { top: image }, text: { top: text } } = lists;
  const width = data.listed;
  return (k) => {
    for (let i = k * width; i < (k + 1) * width; i += 1) {
      if ((image[i] >= 0 && hit[image[i]]) || (text[i] >= 0 && hit[text[i]])) return true;
    }
    return told.has(k) || String(k) === own;
  };
}

function select() {
  const matches = matching(view.q);
  const code = data.classes.findIndex((c) => c.name === view.class);
  const member = state.rule.member;
  const recurring = view.recurring ? new Set(data.recurring) : null;
  const [active, scores] = [column.active.values, column.mds.values];
  const [low, high] = [view.low, view.high];
  view.order = ranked().filter((k) => active[k] >= view.least
    && (code < 0 || Number(member[k]) === code)
    && (low === "" || scores[k] >= low) && (high === "" || scores[k] <= high)
    && (!recurring || recurring.has(k)) && (!view.noted || notes.texts.has(k))
    && (!matches || matches(k)));
  view.page = 0;
}

// All features in the chosen order, kept. Those without the figure come last either way; equals
// go by their number.
function ranked() {
  const kept = `${view.sort} ${view.falling} ${view.sort === "class" ? state.rule.name : ""}`;
  if (!orders.has(kept)) {
    const keys = view.sort === "feature" ? null : view.sort === "class" ? Uint8Array.from(state.rule.member, Number) : column[view.sort].values;
    const order = Int32Array.from({ length: data.features }, (_, k) => k);
    const sign = view.falling ? -1 : 1;
    if (keys === null && view.falling) order.reverse();
    if (keys !== null) {
      const known = order.filter((k) => !Number.isNaN(keys[k])).sort((a, b) => sign * (keys[a] - keys[b]) || a - b);
      order.set([...known.values(), ...order.filter((k) => Number.isNaN(keys[k]))]);
    }
    if (orders.size > 8) orders.clear();
    orders.set(kept, order);
  }
  return orders.get(kept);
}

function heading(name, title, sortable = true) {
  const cell = el("th", { scope: "col", "data-name": name, class: name === "class" ? "class-cell" : null });
  if (!sortable) { cell.append(title); return cell; }
  const active = view.sort === name;
  cell.setAttribute("aria-sort", active ? (view.falling ? "descending" : "ascending") : "none");
  const button = el("button", { type: "button", title: column[name]?.explanation }, title, el("span", { class: "arrow", "aria-hidden": "true" }, active ? (view.falling ? "▼" : "▲") : ""));
  button.addEventListener("click", () => {
    // Numbers are first sorted with the largest on top, p-values with the smallest.
    view.falling = active ? !view.falling : Boolean(column[name]) && column[name].format !== "p";
    view.sort = name;
    select();
    render();
    writeAddress(true);
    $("features").querySelector(`th[data-name="${name}"] button`).focus();
  });
  cell.append(button);
  return cell;
}

function box(feature) {
  const node = el("input", { type: "checkbox", class: "chosen", "aria-label": `Select feature ${feature}` });
  node.checked = selected.has(feature);
  return node;
}

function row(feature) {
  const node = el("tr", { "data-feature": feature });
  const kind = classOf(feature);
  const texts = topOf("text", feature);
  const images = topOf("image", feature);
  const captions = distinct(texts.length ? texts : images).slice(0, 2);
  const name = names.get(feature);
  node.append(
    el("th", { scope: "row" }, box(feature), el("a", { href: `#feature-${feature}` }, String(feature)),
      el("span", { class: `dot ${kind.name}`, title: kind.title }), notes.texts.has(feature) ? el("span", { class: "noted", title: notes.texts.get(feature), role: "img", "aria-label": "noted" }, "✎") : null),
    el("td", { class: "class-cell" }, pill(kind)),
    el("td", {}, el("div", { class: "top-examples" },
      el("div", { class: "strip" }, ...images.slice(0, 4).map((pair) => picture(pair))),
      el("div", { class: "captions" }, name ? el("strong", { dir: "auto" }, name.name) : null, ...captions.map((pair) => caption(pair, "div", { title: data.captions[pair] }))))),
  );
  for (const c of data.columns.filter((c) => view.shown.has(c.name))) {
    const cell = el("td", { class: "number" });
    if (c.name === "mds") cell.append(track(feature), " ");
    cell.append(c.name === "mds_width" ? intervalText(feature) : figure(c.values[feature], c.format));
    node.append(cell);
  }
  return node;
}

function render() {
  const pages = Math.max(1, Math.ceil(view.order.length / PER_PAGE));
  view.page = Math.min(Math.max(0, view.page), pages - 1);
  const start = view.page * PER_PAGE;
  const shown = [...view.order.subarray(start, start + PER_PAGE)];
  const columns = data.columns.filter((c) => view.shown.has(c.name));
  $("features").tHead.replaceChildren(el("tr", {}, heading("feature", "Feature"), heading("class", "Class"), heading("examples", "Top images and texts", false), ...columns.map((c) => heading(c.name, c.title))));
  $("features").tBodies[0].replaceChildren(...shown.map(row));
  $("count").textContent = shown.length ? `${several(view.order.length, "feature")}, ${whole.format(start + 1)} to ${whole.format(start + shown.length)} shown` : "No feature matches.";
  $("place").textContent = `page ${whole.format(view.page + 1)} of ${whole.format(pages)}`;
  for (const id of ["first", "previous"]) $(id).setAttribute("aria-disabled", view.page === 0);
  for (const id of ["next", "last"]) $(id).setAttribute("aria-disabled", view.page === pages - 1);
  tellChosen();
}

function turn(page, focus = false) {
  const before = view.page;
  view.page = page;
  render();
  writeAddress(true);
  if (focus) $("features").querySelector(view.page < before ? "tbody tr:last-child a" : "tbody a")?.focus();
}

function onKey(event) {
  const here = event.target.closest("tr");
  if (event.target.tagName !== "A" || event.ctrlKey || event.altKey || event.metaKey) return;
  const moves = {
    ArrowDown: () => (here.nextElementSibling ? here.nextElementSibling.querySelector("a").focus() : turn(view.page + 1, true)),
    ArrowUp: () => (here.previousElementSibling ? here.previousElementSibling.querySelector("a").focus() : turn(view.page - 1, true)),
    PageDown: () => turn(view.page + 1, true),
    PageUp: () => turn(view.page - 1, true),
  };
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
}

function onRow(event) {
  const feature = Number(event.target.closest("tr")?.dataset.feature);
  if (Number.isNaN(feature) || event.target.closest(".picture[data-pair]")) return;
  if (event.target.classList.contains("chosen")) {
    selected[event.target.checked ? "add" : "delete"](feature);
    tellChosen();
  } else if (!String(getSelection())) {
    event.preventDefault();
    go(feature);
  }
}

const FIELDS = { query: "q", least: "least", low: "low", high: "high", class: "class", recurs: "recurring", noted: "noted" };

// The controls show what is asked for, wherever that came from.
function drawFilters() {
  for (const [id, name] of Object.entries(FIELDS)) {
    const control = $(id);
    if (control?.type === "checkbox") control.checked = view[name];
    else if (control) control.value = view[name];
  }
  $("rule").value = state.rule.name;
  for (const control of $("columns").querySelectorAll("input")) control.checked = view.shown.has(control.name);
}

function onFilter(event) {
  const name = FIELDS[event.target.id];
  if (!name) return;
  const { type, checked, value } = event.target;
  view[name] = type === "checkbox" ? checked : type === "number" ? (number(value) ?? (name === "least" ? 0 : "")) : value;
  select();
  render();
  writeAddress(type !== "search" && type !== "number");
}

function ruleChanged() {
  $("rule-note").textContent = state.rule.note ?? "";
  select();
  render();
  drawCards();
  drawCharts();
}

function setUpColumns() {
  for (const { name, title, explanation } of data.columns) {
    const control = el("input", { type: "checkbox", name });
    control.addEventListener("change", () => { view.shown[control.checked ? "add" : "delete"](name); render(); writeAddress(true); });
    $("columns").append(el("label", {}, control, ` ${title}`));
    $("explained").append(el("dt", {}, title), el("dd", {}, explanation));
  }
}

function setUpBrowser() {
  for (const { name, title } of data.classes) $("class").append(el("option", { value: name }, title));
  for (const { name, title } of data.rules) $("rule").append(el("option", { value: name }, title));
  setUpColumns();
  $("filters").addEventListener("input", onFilter);
  $("rule").addEventListener("change", () => {
    state.rule = data.rules.find((rule) => rule.name === $("rule").value);
    ruleChanged();
    writeAddress(true);
  });
  $("clear").addEventListener("click", () => {
    adopt("");
    drawFilters();
    ruleChanged();
    writeAddress(true);
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("first").addEventListener("click", () => turn(0));
  $("previous").addEventListener("click", () => turn(view.page - 1));
  $("next").addEventListener("click", () => turn(view.page + 1));
  $("last").addEventListener("click", () => turn(Infinity));
  $("features").tBodies[0].addEventListener("keydown", onKey);
  $("features").tBodies[0].addEventListener("click", onRow);
  // On small screens the filters stand behind a line of their own.
  if (innerWidth < 640) $("more").open = false;
}
