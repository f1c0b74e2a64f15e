"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tree = data.tree;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const ROOT = "root";
  const FIRST_ROWS = 25;
  const below = new Map([[-1, []]]);
  tree.parents.forEach((parent, node) => {
    if (!below.has(parent)) below.set(parent, []);
    below.get(parent).push(node);
  });
  for (const nodes of below.values()) nodes.sort((a, b) => tree.documents[b] - tree.documents[a] || a - b);
  const number = new Intl.NumberFormat("en");
  const percent = (value) => (100 * value).toFixed(1);
  const f1 = (node) => 2 * tree.hits[node] / Math.max(tree.documents[node] + tree.predicted[node], 1);

  // ---- Plots ----

  const plots = [...document.querySelectorAll(".figure")];

  function theme(name) {
    const style = getComputedStyle(document.documentElement);
    const [text, line] = ["--text", "--line"].map((variable) => style.getPropertyValue(variable).trim());
    const layout = {"font.color": text, "font.family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif"};
    for (const axis of name === "tree" ? [] : ["xaxis", "yaxis"]) {
      layout[`${axis}.gridcolor`] = line;
      layout[`${axis}.linecolor`] = line;
      layout[`${axis}.zerolinecolor`] = line;
      layout[`${axis}.automargin`] = true;
    }
    return layout;
  }

  function draw(place) {
    const name = place.dataset.figure;
    const figure = data.figures[name];
    if (name === "tree") fillTree(figure.data[0]);
    const config = {responsive: true, displaylogo: false, displayModeBar: false};
    return Plotly.newPlot(place, figure.data, figure.layout, config).then(() => Plotly.relayout(place, theme(name)));
  }

  function fillTree(trace) {
    trace.ids = [ROOT, ...tree.names.map((_, node) => String(node))];
    // plotly reads a few tags in its texts as HTML.
    trace.labels = ["all labels", ...tree.names].map((name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;"));
    trace.parents = ["", ...tree.parents.map((parent) => parent < 0 ? ROOT : String(parent))];
    trace.values = [0, ...tree.ends];
    trace.marker.colors = [null, ...tree.names.map((_, node) => tree.documents[node] ? f1(node) : null)];
    const details = tree.names.map((_, node) => [`${percent(f1(node))} %`, tree.documents[node]]);
    trace.customdata = [["", data.documents], ...details];
  }

  if (window.Plotly) {
    for (const place of plots) draw(place).then(() => {
      if (place.dataset.figure !== "tree") return;
      place.on("plotly_treemapclick", (event) => {
        const id = event.nextLevel ?? event.points[0].id;
        show(!id || id === ROOT ? -1 : Number(id));
      });
    });
    dark.addEventListener("change", () => plots.forEach((place) => Plotly.relayout(place, theme(place.dataset.figure))));
  }

  // ---- Table of the tree, also for the keyboard ----

  const crumbs = document.getElementById("crumbs");
  const children = document.getElementById("children");
  const caption = document.getElementById("explorer-caption");
  const more = document.getElementById("more");
  let opened = -1;

  function open(node) {
    show(node);
    const place = plots.find((plot) => plot.dataset.figure === "tree");
    if (window.Plotly && place) Plotly.restyle(place, {level: node < 0 ? ROOT : String(node)});
  }

  function link(text, node) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => {
      open(node);
      crumbs.lastElementChild.focus();
    });
    return button;
  }

  function cell(text, kind = "td") {
    const element = document.createElement(kind);
    element.textContent = text;
    if (kind === "td") element.className = "number";
    return element;
  }

  function row(node) {
    const line = document.createElement("tr");
    const name = cell("", "th");
    name.scope = "row";
    name.className = "path";
    name.append(below.has(node) ? link(tree.names[node], node) : tree.names[node]);
    const precision = tree.predicted[node] ? percent(tree.hits[node] / tree.predicted[node]) : "–";
    const recall = tree.documents[node] ? percent(tree.hits[node] / tree.documents[node]) : "–";
    const score = cell(percent(f1(node)));
    score.classList.add("score");
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.ariaHidden = "true";
    const filled = document.createElement("span");
    filled.style.width = `${percent(f1(node))}%`;
    bar.append(filled);
    score.prepend(bar);
    const counts = [tree.documents[node], tree.predicted[node]].map((value) => cell(number.format(value)));
    line.append(name, score, ...counts, cell(precision), cell(recall));
    return line;
  }

  function show(node, all = false) {
    opened = node;
    const path = [];
    for (let step = node; step >= 0; step = tree.parents[step]) path.unshift(step);
    crumbs.replaceChildren(link("all labels", -1), ...path.map((step) => link(tree.names[step], step)));
    crumbs.lastElementChild.setAttribute("aria-current", "true");
    const nodes = below.get(node) ?? [node];
    const shown = all ? nodes : nodes.slice(0, FIRST_ROWS);
    children.replaceChildren(...shown.map(row));
    const where = !below.has(node) ? "The opened label" : node < 0 ? "Labels of the top level" : `Labels below ${tree.names[node]}`;
    caption.textContent = shown.length < nodes.length
      ? `${where}: the ${shown.length} most frequent of ${number.format(nodes.length)}` : where;
    more.hidden = shown.length === nodes.length;
    more.textContent = `Show all ${number.format(nodes.length)}`;
  }

  more.addEventListener("click", () => show(opened, true));
  document.getElementById("explorer").hidden = false;
  show(-1);
})();
