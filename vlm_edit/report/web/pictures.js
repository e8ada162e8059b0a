// Thumbnails, and the same picture large: one sheet holds many, and its address is made when the
// first of its pictures is shown.

const SHEETS = ["small", "large"];
const sheets = Object.fromEntries(SHEETS.map((size) => [size, { nodes: [...document.querySelectorAll(`script.${size}`)], addresses: [] }]));

function addressOfSheet(size, sheet) {
  const { nodes, addresses } = sheets[size];
  addresses[sheet] ??= URL.createObjectURL(new Blob([binary(nodes[sheet].textContent)], { type: "image/webp" }));
  return addresses[sheet];
}

// Where a pair's picture lies in the sheets of a size; null where that size has none of it.
function tileOf(pair, size) {
  const { places, row, per_sheet: many } = data.sheets[size];
  const place = places[pair];
  if (place < 0) return null;
  const tile = place % many;
  return { sheet: Math.floor(place / many), x: tile % row, y: Math.floor(tile / row), row };
}

function picture(pair, tag = "span", attributes = {}) {
  const words = data.captions[pair];
  const label = tag === "span" ? { role: "img", "aria-label": words } : { "aria-label": `Enlarge: ${words}` };
  const tile = tileOf(pair, "small");
  if (!tile) return el("span", { class: "picture none", title: words, dir: "auto", role: "img", "aria-label": words }, words);
  const node = el(tag, { class: "picture", title: words, "data-pair": pair, ...label, ...attributes });
  node.style.backgroundImage = `url("${addressOfSheet("small", tile.sheet)}")`;
  node.style.setProperty("--x", tile.x);
  node.style.setProperty("--y", tile.y);
  return node;
}

// The picture as large as the page holds it, without the margins of its tile.
function enlarged(pair, room) {
  const tile = tileOf(pair, "large") ?? tileOf(pair, "small");
  const ratio = data.ratio[pair] || 1;
  const [across, down] = ratio >= 1 ? [1, 1 / ratio] : [ratio, 1];
  const side = Math.min(room.width / across, room.height / down);
  const node = el("div", { class: "enlarged", role: "img", "aria-label": data.captions[pair] });
  node.style.width = `${side * across}px`;
  node.style.height = `${side * down}px`;
  const size = tileOf(pair, "large") ? "large" : "small";
  node.style.backgroundImage = `url("${addressOfSheet(size, tile.sheet)}")`;
  node.style.backgroundSize = `${tile.row * side}px auto`;
  node.style.backgroundPosition = `${-(tile.x + (1 - across) / 2) * side}px ${-(tile.y + (1 - down) / 2) * side}px`;
  return node;
}

const viewer = { pairs: [], at: 0, opener: null, feature: null };

// Only one at a time: a list of pairs, and which of them is shown first.
function enlarge(pairs, pair, opener, feature = null) {
  Object.assign(viewer, { pairs, at: Math.max(0, pairs.indexOf(pair)), opener, feature });
  drawViewer();
  if (!$("viewer").open) $("viewer").showModal();
}

async function drawViewer() {
  const pair = viewer.pairs[viewer.at];
  const room = { width: Math.max(160, Math.min(innerWidth - 48, 720)), height: Math.max(160, Math.min(innerHeight - 260, 720)) };
  const node = enlarged(pair, room);
  const map = viewer.feature === null ? null : await mapOf(viewer.feature, "image", pair);
  if (viewer.pairs[viewer.at] !== pair) return;
  const held = map ? heatOn(node, map) : [node];
  const strength = viewer.feature === null ? null : strengthOf(viewer.feature, "image", pair);
  $("viewer-body").replaceChildren(...held, caption(pair, "p"));
  $("viewer-title").textContent = `Pair ${whole.format(data.numbers[pair])}`;
  $("viewer-note").textContent = [`${viewer.at + 1} of ${viewer.pairs.length}`, strength === null ? null : `activation ${brief(strength)}`,
    tileOf(pair, "large") ? null : "no larger picture fitted into the page"].filter(Boolean).join(" · ");
  $("viewer-before").setAttribute("aria-disabled", viewer.at === 0);
  $("viewer-after").setAttribute("aria-disabled", viewer.at === viewer.pairs.length - 1);
}

function strengthOf(feature, stream, pair) {
  const at = topOf(stream, feature).indexOf(pair);
  return at < 0 ? null : strengthsOf(stream, feature)[at];
}

function stepViewer(by) {
  const at = viewer.at + by;
  if (at < 0 || at >= viewer.pairs.length) return;
  viewer.at = at;
  drawViewer();
}

function setUpViewer() {
  const dialog = $("viewer");
  document.addEventListener("click", (event) => {
    const shown = event.target.closest(".picture[data-pair]");
    if (!shown) return;
    event.preventDefault();
    const around = shown.closest(".gallery, .strip") ?? shown.parentElement;
    const pairs = [...around.querySelectorAll(".picture[data-pair]")].map((node) => Number(node.dataset.pair));
    const feature = shown.closest("[data-feature]")?.dataset.feature;
    enlarge([...new Set(pairs)], Number(shown.dataset.pair), shown, feature === undefined ? null : Number(feature));
  });
  $("viewer-close").addEventListener("click", () => dialog.close());
  $("viewer-before").addEventListener("click", () => stepViewer(-1));
  $("viewer-after").addEventListener("click", () => stepViewer(1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.defaultPrevented) return;
    if (event.key === "ArrowLeft") stepViewer(-1);
    if (event.key === "ArrowRight") stepViewer(1);
  });
  dialog.addEventListener("close", () => { if (viewer.opener?.isConnected) viewer.opener.focus({ preventScroll: true }); });
  addEventListener("resize", () => { if (dialog.open) drawViewer(); });
}
