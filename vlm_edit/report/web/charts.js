// Charts, drawn by plotly.js: transparent, in the page's colours, without a tool bar.

const SYMBOLS = { vision: "circle", language: "square", cross: "diamond", undecided: "x-thin-open", dead: "cross-thin-open" };
const still = matchMedia("(prefers-reduced-motion: reduce)");

const canWebGL = (() => {
  try {
    const context = document.createElement("canvas").getContext("webgl");
    context?.getExtension("WEBGL_lose_context")?.loseContext();
    return context !== null;
  } catch { return false; }
})();

function layout(more) {
  const axis = { gridcolor: colour("grid"), zerolinecolor: colour("grid"), linecolor: colour("line"), tickfont: { color: colour("soft") }, title: { font: { color: colour("soft") } } };
  return {
    paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { family: "system-ui, sans-serif", size: 13, color: colour("ink") },
    margin: { l: 56, r: 16, t: 24, b: 48 }, hovermode: "closest", bargap: 0.08,
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    legend: { orientation: "h", traceorder: "normal", x: 0, y: 1.02, yanchor: "bottom", font: { color: colour("ink") } },
    ...more,
    xaxis: { ...axis, ...more.xaxis, title: { ...axis.title, text: more.xaxis?.title } },
    yaxis: { ...axis, ...more.yaxis, title: { ...axis.title, text: more.yaxis?.title } },
  };
}

const settings = { displayModeBar: false, responsive: true };

function drawHistogram() {
  const bins = state.rule.bars[0].length;
  const middles = Array.from({ length: bins }, (_, i) => (i + 0.5) / bins);
  const traces = state.rule.bars.map((counts, i) => ({
    type: "bar", name: data.classes[i].title, x: middles, y: counts, width: 0.92 / bins,
    marker: { color: colour(data.classes[i].name) },
    hovertemplate: `%{y} ${data.classes[i].title}, MDS around %{x:.3f}<extra></extra>`,
  })).filter((trace) => trace.y.some((count) => count > 0));
  const bars = Math.max(1, ...middles.map((_, i) => state.rule.bars.reduce((sum, counts) => sum + counts[i], 0)));
  let top = bars;
  if (data.null) {
    top = Math.min(Math.max(bars, ...data.null), 5 * bars);
    traces.push({
      type: "scatter", mode: "lines", name: "expected by chance", x: middles, y: data.null,
      line: { shape: "hvh", color: colour("ink"), width: 1.5 }, hovertemplate: "%{y:.1f} expected, MDS around %{x:.3f}<extra></extra>",
    });
  }
  const cuts = state.rule.cuts.filter((cut) => cut !== null && cut >= 0 && cut <= 1);
  Plotly.react("histogram", traces, layout({
    barmode: "stack", height: 340,
    xaxis: { range: [0, 1], title: "MDS: text only 0, image only 1", tickvals: [0, 0.2, 0.4, 0.6, 0.8, 1] },
    yaxis: { title: "features", range: [0, 1.12 * top] },
    shapes: cuts.map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: colour("soft"), width: 1, dash: "dash" } })),
    annotations: cuts.map((x) => ({ x, y: 1, yref: "paper", text: x.toFixed(2), showarrow: false, xanchor: "left", xshift: 3, yanchor: "top", font: { color: colour("soft"), size: 12 } })),
  }), settings);
  $("histogram").setAttribute("aria-label", `Histogram of the scores: ${state.rule.counts.map((n, i) => `${n} ${data.classes[i].title}`).join(", ")}.`);
  const most = data.null ? Math.max(...data.null) : 0;
  $("null-note").textContent = !data.null ? "" : ` The line is what to expect if image and text are swapped at random inside each pair, that is without any effect of modality${most > top ? `; its peak of ${Math.round(most)} features is cut off` : ""}.`;
}

// A logarithmic axis has no place for 0: such features lie on a line of their own below the rest.
function axisOf(name) {
  const { values, format, title } = column[name];
  if (format !== "times" && format !== "p") return { values, axis: { title } };
  const positive = values.filter((v) => v > 0); // NaN, which is undefined, is left out
  const least = Math.min(1, positive.reduce((a, b) => Math.min(a, b), Infinity));
  const most = Math.max(1, positive.reduce((a, b) => Math.max(a, b), 0));
  const floor = Math.max(least, format === "p" ? 1e-12 : 0) / 2;
  const ticks = [];
  for (let power = Math.ceil(Math.log10(floor)); power <= Math.log10(most) + 1e-9; power += 1) ticks.push(10 ** power);
  const step = Math.ceil(ticks.length / 6);
  const kept = ticks.filter((_, i) => i % step === 0);
  const zeros = values.some((v) => v === 0);
  return {
    values: values.map((v) => Math.max(v, floor)),
    axis: {
      title, type: "log", range: [Math.log10(floor) - 0.15, Math.log10(most) + 0.15],
      tickvals: zeros ? [floor, ...kept.filter((t) => t > floor * 1.5)] : kept,
      ticktext: (zeros ? [format === "p" ? "≤" + floor.toExponential(0) : "0"] : []).concat(kept.filter((t) => !zeros || t > floor * 1.5).map((t) => (format === "times" ? `${t}×` : String(t)))),
    },
  };
}

function drawScatter() {
  const x = axisOf($("across").value);
  const y = axisOf($("up").value);
  const missing = x.values.filter((v, k) => Number.isNaN(v) || Number.isNaN(y.values[k])).length;
  const traces = data.classes.map((kind, code) => {
    const features = [];
    for (let k = 0; k < data.features; k += 1) {
      if (Number(state.rule.member[k]) === code && !Number.isNaN(x.values[k]) && !Number.isNaN(y.values[k])) features.push(k);
    }
    return {
      type: canWebGL ? "scattergl" : "scatter", mode: "markers", name: kind.title, customdata: features,
      x: features.map((k) => x.values[k]), y: features.map((k) => y.values[k]), hoverinfo: "none",
      marker: { color: colour(kind.name), size: data.features > 4000 ? 5 : 7, opacity: data.features > 4000 ? 0.55 : 0.75, symbol: SYMBOLS[kind.name], line: { width: kind.name === "undecided" || kind.name === "dead" ? 1 : 0, color: colour(kind.name) } },
    };
  }).filter((trace) => trace.x.length);
  const chart = $("scatter");
  Plotly.react(chart, traces, layout({ height: 460, dragmode: "zoom", xaxis: x.axis, yaxis: y.axis }), settings);
  chart.setAttribute("aria-label", `Scatter plot of ${data.features - missing} features, ${column[$("across").value].title} against ${column[$("up").value].title}.`);
  $("plane-note").textContent = missing ? `${whole.format(missing)} features without one of the two figures are not drawn.` : "";
  if (!chart.dataset.listening) {
    chart.dataset.listening = "yes";
    chart.on("plotly_hover", ({ points: [point], event }) => showHover(point.customdata, event));
    chart.on("plotly_unhover", hideHover);
    chart.on("plotly_click", ({ points: [point] }) => { hideHover(); go(point.customdata); });
  }
}

function showHover(feature, event) {
  const card = $("hover");
  card.replaceChildren(summary(feature));
  card.hidden = false;
  const { clientX = 0, clientY = 0 } = event ?? {};
  card.style.left = `${Math.max(8, Math.min(clientX + 16, innerWidth - card.offsetWidth - 8))}px`;
  card.style.top = `${Math.max(8, clientY + 16 + card.offsetHeight > innerHeight ? clientY - card.offsetHeight - 16 : clientY + 16)}px`;
}

function hideHover() { $("hover").hidden = true; }

function setUpCharts() {
  for (const [id, first] of [["across", "mds"], ["up", "lift"]]) {
    for (const { name, title } of data.columns) $(id).append(el("option", { value: name }, title));
    $(id).value = first;
    $(id).addEventListener("change", drawScatter);
  }
  $("reset").addEventListener("click", () => { drawScatter(); Plotly.relayout("scatter", { "xaxis.autorange": column[$("across").value].format === "score" || column[$("across").value].format === "count" }); drawScatter(); });
}

// Called once plotly.js, the last and largest script, is there.
function drawCharts() {
  if (typeof Plotly === "undefined" || !state.ready) return;
  drawHistogram();
  drawScatter();
  if ($("detail").open) drawRatios();
}
