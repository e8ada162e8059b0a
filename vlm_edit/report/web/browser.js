// The table of features: search, filters, sorting, pages.

const PER_PAGE = 50;
const view = { sort: "feature", falling: false, page: 0, order: [], shown: new Set(data.columns.filter((c) => c.shown).map((c) => c.name)) };
const plain = (text) => text.normalize("NFKC").toLowerCase();
const folded = data.captions.map(plain);

// Features whose number is the query, or of whose top examples one caption holds all its words.
function matching(query) {
  const words = plain(query).split(/\s+/).filter(Boolean);
  if (!words.length) return () => true;
  const number = /^#?(\d+)$/.exec(query.trim())?.[1];
  const hit = folded.map((text) => words.every((word) => text.includes(word)));
  return (k) => String(k) === number || data.top.image[k].some((i) => hit[i]) || data.top.text[k].some((i) => hit[i]);
}

function select() {
  const matches = matching($("query").value);
  const kind = $("class").value;
  const least = Number($("least").value) || 0;
  const active = column.active.values;
  const recurring = $("recurs")?.checked ? new Set(data.recurring) : null;
  view.order = [];
  for (let k = 0; k < data.features; k += 1) {
    if (active[k] >= least && (!recurring || recurring.has(k)) && (!kind || classOf(k).name === kind) && matches(k)) view.order.push(k);
  }
  sort();
  view.page = 0;
}

// Features without the figure come last either way; equals by their number.
function sort() {
  const sign = view.falling ? -1 : 1;
  const key = view.sort === "feature" ? (k) => k : view.sort === "class" ? (k) => Number(state.rule.member[k]) : (k) => column[view.sort].values[k];
  view.order.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === y) return a - b;
    if (x === null) return 1;
    if (y === null) return -1;
    return x < y ? -sign : sign;
  });
}

function heading(name, title, sortable = true) {
  const cell = el("th", { scope: "col", "data-name": name });
  if (!sortable) { cell.append(title); return cell; }
  const active = view.sort === name;
  cell.setAttribute("aria-sort", active ? (view.falling ? "descending" : "ascending") : "none");
  const button = el("button", { type: "button", title: column[name]?.explanation }, title, el("span", { class: "arrow", "aria-hidden": "true" }, active ? (view.falling ? "▼" : "▲") : ""));
  button.addEventListener("click", () => {
    // Numbers are first sorted with the largest on top, p-values with the smallest.
    view.falling = active ? !view.falling : Boolean(column[name]) && column[name].format !== "p";
    view.sort = name;
    sort();
    view.page = 0;
    render();
    $("features").querySelector(`th[data-name="${name}"] button`).focus();
  });
  cell.append(button);
  return cell;
}

function row(feature) {
  const node = el("tr", { "data-feature": feature });
  node.append(
    el("th", { scope: "row" }, el("a", { href: `#feature-${feature}` }, String(feature))),
    el("td", {}, pill(classOf(feature))),
    el("td", {}, el("div", { class: "strip" }, ...data.top.image[feature].slice(0, 4).map((pair) => picture(pair)))),
  );
  for (const c of data.columns.filter((c) => view.shown.has(c.name))) {
    const cell = el("td", { class: "number" });
    if (c.name === "mds") cell.append(track(feature), " ");
    cell.append(c.name === "mds_width" ? intervalText(feature) : figure(c.values[feature], c.format));
    node.append(cell);
  }
  const texts = distinct(data.top.text[feature].length ? data.top.text[feature] : data.top.image[feature]).slice(0, 2);
  node.append(el("td", { class: "captions" }, ...texts.map((pair) => caption(pair, "div"))));
  return node;
}

function render() {
  const pages = Math.max(1, Math.ceil(view.order.length / PER_PAGE));
  view.page = Math.min(Math.max(0, view.page), pages - 1);
  const start = view.page * PER_PAGE;
  const shown = view.order.slice(start, start + PER_PAGE);
  const columns = data.columns.filter((c) => view.shown.has(c.name));
  $("features").tHead.replaceChildren(el("tr", {}, heading("feature", "Feature"), heading("class", "Class"), heading("images", "Top images", false), ...columns.map((c) => heading(c.name, c.title)), heading("texts", "Top texts", false)));
  $("features").tBodies[0].replaceChildren(...shown.map(row));
  $("count").textContent = shown.length ? `${whole.format(view.order.length)} features, ${whole.format(start + 1)} to ${whole.format(start + shown.length)} shown` : "No feature matches.";
  $("place").textContent = `page ${whole.format(view.page + 1)} of ${whole.format(pages)}`;
  for (const id of ["first", "previous"]) $(id).setAttribute("aria-disabled", view.page === 0);
  for (const id of ["next", "last"]) $(id).setAttribute("aria-disabled", view.page === pages - 1);
}

function turn(page, focus = false) {
  const before = view.page;
  view.page = page;
  render();
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

function setUpBrowser() {
  const again = () => { select(); render(); };
  for (const { name, title } of data.classes) $("class").append(el("option", { value: name }, title));
  for (const id of ["query", "least"]) $(id).addEventListener("input", again);
  $("class").addEventListener("change", again);
  $("recurs")?.addEventListener("change", again);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("first").addEventListener("click", () => turn(0));
  $("previous").addEventListener("click", () => turn(view.page - 1));
  $("next").addEventListener("click", () => turn(view.page + 1));
  $("last").addEventListener("click", () => turn(Infinity));
  $("features").tBodies[0].addEventListener("keydown", onKey);
  $("features").tBodies[0].addEventListener("click", (event) => {
    const feature = event.target.closest("tr")?.dataset.feature;
    if (feature && event.target.tagName !== "A" && !String(getSelection())) go(Number(feature));
  });
  for (const { name, title, explanation } of data.columns) {
    const box = el("input", { type: "checkbox" });
    box.checked = view.shown.has(name);
    box.addEventListener("change", () => { view.shown[box.checked ? "add" : "delete"](name); render(); });
    $("columns").append(el("label", {}, box, ` ${title}`));
    $("explained").append(el("dt", {}, title), el("dd", {}, explanation));
  }
  again();
}
