// What is shown stands in the address, as in #feature-12?q=cat&class=vision&sort=-mds: it survives
// a reload, "back" and being sent to somebody else. Before the question mark stands the place.

const FIRST_COLUMNS = data.columns.filter((c) => c.shown).map((c) => c.name);
const FIRST_RULE = state.rule.name;
const firstView = () => ({ q: "", class: "", least: 0, low: "", high: "", recurring: false, noted: false, sort: "feature", falling: false, page: 0, shown: new Set(FIRST_COLUMNS) });
const view = { ...firstView(), order: [] };

// In a frame of a notebook, whose document has no address, nothing can be put into it.
function setAddress(address, made = false) {
  try {
    history[made ? "pushState" : "replaceState"](null, "", address);
  } catch {
    return;
  }
}

function inAddress() {
  const asked = new URLSearchParams();
  for (const name of ["q", "class", "low", "high"]) if (view[name] !== "") asked.set(name, view[name]);
  if (view.least) asked.set("least", view.least);
  for (const name of ["recurring", "noted"]) if (view[name]) asked.set(name, 1);
  if (state.rule.name !== FIRST_RULE) asked.set("rule", state.rule.name);
  if (view.sort !== "feature" || view.falling) asked.set("sort", `${view.falling ? "-" : ""}${view.sort}`);
  if (view.page) asked.set("page", view.page + 1);
  const shown = data.columns.map((c) => c.name).filter((name) => view.shown.has(name));
  if (shown.join() !== FIRST_COLUMNS.join()) asked.set("columns", shown.join());
  return asked.toString();
}

function addressOf(place) {
  const asked = inAddress();
  return `#${place}${asked ? `?${asked}` : ""}`;
}

function placeAndQuery() {
  const text = location.hash.slice(1);
  const at = text.indexOf("?");
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}

const number = (text) => (text !== null && text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : null);

// Take what the address asks for; what it asks for and is not there is left out.
function adopt(query) {
  const asked = new URLSearchParams(query);
  const sort = asked.get("sort") ?? "feature";
  const name = sort.replace(/^-/, "");
  const sortable = ["feature", "class"].includes(name) || Object.hasOwn(column, name);
  const listed = asked.get("columns");
  Object.assign(view, firstView(), {
    q: asked.get("q") ?? "",
    class: data.classes.some((c) => c.name === asked.get("class")) ? asked.get("class") : "",
    least: Math.max(0, number(asked.get("least")) ?? 0),
    low: number(asked.get("low")) ?? "",
    high: number(asked.get("high")) ?? "",
    recurring: asked.get("recurring") === "1" && data.recurring !== null,
    noted: asked.get("noted") === "1",
    sort: sortable ? name : "feature",
    falling: sortable && sort.startsWith("-"),
    page: Math.max(0, Math.floor(number(asked.get("page")) ?? 1) - 1),
  });
  if (listed !== null) view.shown = new Set(listed.split(",").filter((one) => Object.hasOwn(column, one)));
  state.rule = data.rules.find((r) => r.name === (asked.get("rule") ?? FIRST_RULE)) ?? state.rule;
}

let later = 0;

// Typing rewrites the entry of the history that is there; a choice makes a new one.
function writeAddress(made = false) {
  clearTimeout(later);
  const write = () => {
    const address = addressOf(placeAndQuery()[0]);
    if (address === (location.hash || "#")) return;
    setAddress(address === "#" ? location.pathname + location.search : address, made);
    tellRuns();
  };
  if (made) write();
  else later = setTimeout(write, 200);
}

// Other runs are opened with the same search, filters and sorting.
function tellRuns() {
  for (const link of document.querySelectorAll("a.run")) link.href = link.getAttribute("data-page") + addressOf("");
}

function followAddress() {
  const [place, query] = placeAndQuery();
  if (query !== inAddress()) {
    adopt(query);
    drawFilters();
    const page = view.page;
    ruleChanged();
    view.page = page;
    render();
  }
  const feature = /^feature-(\d+)$/.exec(place)?.[1];
  if (feature !== undefined && Number(feature) < data.features) { show(Number(feature)); return; }
  if ($("detail").open) $("detail").close();
  const section = place && document.querySelector(`section[id="${CSS.escape(place)}"]`);
  if (section) { section.scrollIntoView(); section.focus({ preventScroll: true }); }
}

function setUpAddress() {
  for (const link of document.querySelectorAll('nav a[href^="#"], a.skip')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const address = addressOf(link.getAttribute("href").slice(1));
      if (location.hash === address) followAddress();
      else location.hash = address;
    });
  }
  addEventListener("hashchange", followAddress);
  tellRuns();
}
