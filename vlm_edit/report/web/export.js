// What leaves the page: rows as CSV, features as Python.

function say(text) { $("told").textContent = text; }

function save(name, text, kind) {
  const address = URL.createObjectURL(new Blob([text], { type: `${kind};charset=utf-8` }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  say(`${name} is saved`);
}

// A text that begins as a formula would be run as one by spreadsheets.
function cell(value) {
  if (typeof value === "number") return Number.isNaN(value) ? "" : String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const listed = (stream, k) => topOf(stream, k).map((pair) => data.numbers[pair]).join(" ");
const chosen = () => (selected.size ? [...selected] : [...view.order]).sort((a, b) => a - b);

// Filtered rows stand in the order of the table.
function asCsv() {
  const features = selected.size ? chosen() : [...view.order];
  const head = ["feature", "class", "rule", "name", "note", ...data.columns.map((c) => c.name), "top_images", "top_texts", "first_text"];
  const rows = features.map((k) => [
    k, classOf(k).name, state.rule.name, names.get(k)?.name ?? "", notes.texts.get(k) ?? "",
    ...data.columns.map((c) => c.values[k]), listed("image", k), listed("text", k),
    topOf("text", k).length ? data.captions[topOf("text", k)[0]] : "",
  ]);
  return `${[head, ...rows].map((line) => line.map(cell).join(",")).join("\r\n")}\r\n`;
}

const asRule = () => `Ablate([${chosen().join(", ")}])`;

// Without the browser's leave, the text stands there, selected, to be copied by hand.
async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} is copied`);
  } catch {
    $("by-hand").value = text;
    $("by-hand-box").hidden = false;
    $("by-hand").select();
    say("This browser forbids copying: press Ctrl C");
  }
}

function tellChosen() {
  const whose = selected.size ? `${whole.format(selected.size)} selected` : view.order.length === data.features ? `all ${whole.format(data.features)}` : `${whole.format(view.order.length)} found`;
  for (const node of document.querySelectorAll(".whose")) node.textContent = whose;
  $("unselect").hidden = selected.size === 0;
  $("by-hand-box").hidden = true;
}

function setUpExport() {
  $("csv").addEventListener("click", () => save("features.csv", `\ufeff${asCsv()}`, "text/csv"));
  $("copy-rule").addEventListener("click", () => copy(asRule(), `Ablate of ${several(chosen().length, "feature")}`));
  $("unselect").addEventListener("click", () => { selected.clear(); render(); });
}
