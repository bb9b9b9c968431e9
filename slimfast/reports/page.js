"use strict";
(function () {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  // From the first colour to the last by the place in the network.
  const between = (depth) => {
    const [a, b] = [parts(colour("first")), parts(colour("last"))];
    return "rgb(" + a.map((v, i) => Math.round(v + (b[i] - v) * depth)).join(",") + ")";
  };

  function traces(chart) {
    const named = chart.series.some((s) => typeof s.x[0] === "string");
    // Hundreds of curves are a cloud whose parts show through.
    const opacity = chart.series.length > 48 ? 0.5 : 1;
    return chart.series.map((s) => {
      const own = s.role === "depth" ? between(s.depth) : colour(s.role);
      const crowd = s.role === "depth" && s.kind === "line";
      const told = crowd ? "%{fullData.name}<br>%{text}: %{y:.4f}" : named
        ? "%{x}<br>%{text}<br>%{fullData.name}: %{y:.5~g}" : "%{text}<br>%{x:.3f}: %{y:.5~g}";
      const trace = {
        name: escaped(s.name), x: s.x.map((v) => typeof v === "string" ? escaped(v) : v), y: s.y,
        text: s.texts.map(escaped), hovertemplate: told + "<extra></extra>", showlegend: !crowd, opacity: crowd ? opacity : 1,
      };
      if (s.kind === "bars") return Object.assign(trace, { type: "bar", textposition: "none", marker: { color: own } });
      const size = s.role === "accent" ? 8 : 6;
      const mode = s.kind === "points" ? "markers" : crowd || !s.texts.length ? "lines" : "lines+markers";
      const dash = s.role === "yardstick" ? "dash" : "solid";
      return Object.assign(trace, { type: "scatter", mode, marker: { color: own, size }, line: { color: own, width: crowd ? 1.2 : 2, dash } });
    });
  }

  function layout(chart) {
    const named = chart.series.some((s) => typeof s.x[0] === "string");
    const axis = { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true };
    const count = chart.series[0].x.length;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", barmode: "overlay", hovermode: "closest",
      font: { color: colour("ink"), family: "system-ui, sans-serif", size: 12 },
      margin: { l: 60, r: 12, t: 12, b: 40 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("line"), activecolor: colour("soft") },
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("ink") } },
      // Names of more groups than this would lie over each other: the pointer tells them.
      xaxis: Object.assign({}, axis, { title: { text: chart.x_label }, showticklabels: !named || count <= 48,
        showgrid: !named, type: named ? "category" : "linear", tickangle: named ? -60 : 0, tickfont: { size: named ? 9 : 12 } }),
      yaxis: Object.assign({}, axis, { title: { text: chart.y_label }, rangemode: "tozero" }),
    };
  }

  function draw() {
    for (const chart of charts) {
      Plotly.react("chart-" + chart.name, traces(chart), layout(chart), { responsive: true, displaylogo: false });
    }
  }

  function show(theme) {
    root.dataset.theme = theme;
    document.getElementById("theme").textContent = theme === "dark" ? "light" : "dark";
    draw();
  }

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  show(dark.matches ? "dark" : "light");
  dark.addEventListener("change", (event) => show(event.matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => show(root.dataset.theme === "dark" ? "light" : "dark"));

  const filter = document.getElementById("filter");
  if (filter) {
    filter.addEventListener("input", () => {
      const wanted = filter.value.toLowerCase();
      for (const row of document.querySelectorAll("#groups tbody tr")) {
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      }
    });
  }
})();
