"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tree = data.tree;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const ROOT = "root";
  const FIRST_ROWS = 25;
  // plotly makes several elements for each box, so only the largest boxes of two levels are drawn at a time.
  const MOST_BOXES = 700;
  const below = new Map([[-1, []]]);
  tree.parents.forEach((parent, node) => {
    if (!below.has(parent)) below.set(parent, []);
    below.get(parent).push(node);
  });
  for (const nodes of below.values()) nodes.sort((a, b) => tree.documents[b] - tree.documents[a] || a - b);
  const number = new Intl.NumberFormat("en");
  const percent = (value) => (100 * value).toFixed(1);
  // The number of documents below each label. Every label comes after its parent.
  const areas = [...tree.ends];
  for (let node = areas.length - 1; node >= 0; node--) if (tree.parents[node] >= 0) areas[tree.parents[node]] += areas[node];
  const f1 = (node) => 2 * tree.hits[node] / Math.max(tree.documents[node] + tree.predicted[node], 1);

  // ---- Plots ----

  let opened = -1;
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
    if (name === "tree") fillTree(figure.data[0], opened);
    const config = {responsive: true, displaylogo: false, displayModeBar: false};
    return Plotly.newPlot(place, figure.data, figure.layout, config).then(() => Plotly.relayout(place, theme(name)));
  }

  function boxes(node) {
    const children = (below.get(node) ?? []).filter((child) => areas[child]).slice(0, MOST_BOXES);
    const next = children.flatMap((child) => below.get(child) ?? []).filter((child) => areas[child]);
    next.sort((a, b) => areas[b] - areas[a]);
    return [...children, ...next.slice(0, MOST_BOXES - children.length)];
  }

  function fillTree(trace, node) {
    const drawn = boxes(node);
    // A box has room for what its drawn boxes leave.
    const rest = new Map(drawn.map((child) => [child, areas[child]]));
    for (const child of drawn) {
      const parent = tree.parents[child];
      if (parent !== node) rest.set(parent, rest.get(parent) - areas[child]);
    }
    const inside = drawn.filter((child) => tree.parents[child] === node).reduce((sum, child) => sum + areas[child], 0);
    const name = node < 0 ? "all labels" : tree.names[node];
    const own = node < 0 ? 0 : areas[node] - inside;
    trace.ids = [ROOT, ...drawn.map(String)];
    // plotly reads a few tags in its texts as HTML.
    const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    trace.labels = [name, ...drawn.map((child) => tree.names[child])].map(plain);
    trace.parents = ["", ...drawn.map((child) => tree.parents[child] === node ? ROOT : String(tree.parents[child]))];
    trace.values = [own, ...drawn.map((child) => rest.get(child))];
    const score = (child) => tree.documents[child] ? f1(child) : null;
    // All labels together have the micro-F1 of the top level.
    const sum = (counts) => (below.get(-1) ?? []).reduce((total, child) => total + counts[child], 0);
    const overall = 2 * sum(tree.hits) / Math.max(sum(tree.documents) + sum(tree.predicted), 1);
    trace.marker.colors = [node < 0 ? overall : score(node), ...drawn.map(score)];
    const details = (child) => [`${percent(f1(child))} %`, tree.documents[child]];
    const top = [`${percent(overall)} % (micro-F1 of level 0)`, data.documents];
    trace.customdata = [node < 0 ? top : details(node), ...drawn.map(details)];
  }

  function redrawTree(place) {
    const figure = data.figures.tree;
    fillTree(figure.data[0], opened);
    Plotly.react(place, figure.data, figure.layout).then(() => Plotly.relayout(place, theme("tree")));
  }

  function onClick(event) {
    const id = event.points[0].id;
    const node = id === ROOT ? (opened < 0 ? -1 : tree.parents[opened]) : Number(id);
    // The plot may not be redrawn while it handles the click.
    setTimeout(() => open(node));
    return false;
  }

  // ---- Table of the tree, also for the keyboard ----

  const crumbs = document.getElementById("crumbs");
  const children = document.getElementById("children");
  const caption = document.getElementById("explorer-caption");
  const more = document.getElementById("more");

  function open(node) {
    show(node);
    const place = plots.find((plot) => plot.dataset.figure === "tree");
    if (window.Plotly && place) redrawTree(place);
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

  if (window.Plotly) {
    for (const place of plots) {
      const drawn = draw(place);
      if (place.dataset.figure === "tree") drawn.then(() => place.on("plotly_treemapclick", onClick));
    }
    dark.addEventListener("change", () => plots.forEach((place) => Plotly.relayout(place, theme(place.dataset.figure))));
  }
})();
