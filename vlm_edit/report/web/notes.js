// What the reader notes of features: kept by the browser for this run where it allows that, and
// written to files and read from them.

const NOTES = `vlm-edit-notes-${data.run}`;
const LONGEST_NOTE = 10000;
const notes = { texts: new Map(), kept: true };

// Whatever stands there, in storage or a file, comes from elsewhere.
function notesIn(document) {
  const listed = document && typeof document === "object" && typeof document.notes === "object" ? document.notes : null;
  if (!listed) return null;
  return new Map(Object.entries(listed)
    .map(([k, text]) => [Number(k), text])
    .filter(([k, text]) => Number.isInteger(k) && k >= 0 && k < data.features && typeof text === "string" && text.trim() !== "")
    .map(([k, text]) => [k, text.slice(0, LONGEST_NOTE)]));
}

const asDocument = () => JSON.stringify({ run: data.run, notes: Object.fromEntries([...notes.texts].sort(([a], [b]) => a - b)) }, null, 1);

function loadNotes() {
  try {
    notes.texts = notesIn(JSON.parse(localStorage.getItem(NOTES))) ?? new Map();
  } catch { notes.kept = false; }
}

function keepNotes() {
  try {
    localStorage.setItem(NOTES, asDocument());
    notes.kept = true;
  } catch { notes.kept = false; }
  tellNotes();
}

function note(feature, text) {
  if (text.trim()) notes.texts.set(feature, text.slice(0, LONGEST_NOTE));
  else notes.texts.delete(feature);
  keepNotes();
}

function tellNotes() {
  $("notes-told").textContent = several(notes.texts.size, "note");
  $("save-notes").setAttribute("aria-disabled", notes.texts.size === 0);
  $("notes-kept").hidden = notes.kept;
}

function noteOn(feature) {
  const field = el("textarea", { id: "note", rows: 2, maxlength: LONGEST_NOTE, dir: "auto" });
  field.value = notes.texts.get(feature) ?? "";
  field.addEventListener("input", () => note(feature, field.value));
  field.addEventListener("change", () => { select(); render(); });
  // Arrows move in the text, and not to the next feature.
  field.addEventListener("keydown", (event) => { if (event.key !== "Escape") event.stopPropagation(); });
  return el("p", { class: "own-note" }, el("label", { for: "note" }, notes.kept ? "Your note, kept by this browser" : "Your note: this browser keeps none, so save it to a file"), field);
}

async function readNotes(file) {
  let document = null;
  try { document = JSON.parse(await file.text()); } catch { /* told below */ }
  const read = notesIn(document);
  if (!read) { say(`${file.name} holds no notes of this page`); return; }
  if (document.run !== data.run) { say(`${file.name} holds notes of another run, and none was read`); return; }
  const clash = [...read].filter(([k, text]) => notes.texts.has(k) && notes.texts.get(k) !== text);
  for (const [k, text] of read) notes.texts.set(k, text);
  keepNotes();
  select();
  render();
  say(`${several(read.size, "note")} read${clash.length ? `, ${clash.length} in the place of another` : ""}`);
}

function setUpNotes() {
  loadNotes();
  $("save-notes").addEventListener("click", () => { if (notes.texts.size) save("notes.json", asDocument(), "application/json"); });
  $("read-notes").addEventListener("change", () => {
    const [file] = $("read-notes").files;
    if (file) readNotes(file).finally(() => { $("read-notes").value = ""; });
  });
  tellNotes();
}
