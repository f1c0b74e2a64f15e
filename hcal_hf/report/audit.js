"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent).suspicions;
  const FIRST = 50;
  const find = (id) => document.getElementById(id);
  const list = find("suspicions");
  const decisions = new Map();
  const number = new Intl.NumberFormat("en");
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const folded = (text) => text.toLocaleLowerCase();
  for (const row of data) row.search = folded([row.text ?? "", row.path, ...row.present].join("\n"));
  let shown = FIRST;

  // ---- Labels to choose from, with their numbers of suspicions ----

  const counts = new Map();
  for (const row of data) counts.set(row.path, (counts.get(row.path) ?? 0) + 1);
  for (const [path, count] of [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))) {
    const option = document.createElement("option");
    option.value = path;
    option.textContent = `${path} (${number.format(count)})`;
    find("label").append(option);
  }

  // ---- The list ----

  const orders = {
    rank: (a, b) => a.rank - b.rank,
    missing: (a, b) => b.p_missing - a.p_missing || a.rank - b.rank,
    document: (a, b) => b.p_any - a.p_any || a.row - b.row || a.rank - b.rank,
    label: (a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : a.rank - b.rank),
  };

  function chosen() {
    const words = folded(find("search").value).split(/\s+/).filter(Boolean);
    const path = find("label").value;
    const document_ = find("row").value.trim();
    const lowest = Number(find("lowest").value) / 100 || 0;
    const state = find("state").value;
    return data.filter((row) =>
      row.p_missing >= lowest && (!path || row.path === path) && (document_ === "" || row.row === Number(document_))
      && (state === "all" || (decisions.get(row.rank) ?? "open") === state)
      && words.every((word) => row.search.includes(word))).sort(orders[find("order").value]);
  }

  function element(kind, text, name) {
    const made = document.createElement(kind);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  }

  function choice(row, value, text, item) {
    const button = element("button", text);
    button.type = "button";
    const mark = () => button.setAttribute("aria-pressed", String(decisions.get(row.rank) === value));
    button.addEventListener("click", () => {
      if (decisions.get(row.rank) === value) decisions.delete(row.rank);
      else decisions.set(row.rank, value);
      item.dispatchEvent(new Event("decided"));
      count();
    });
    item.addEventListener("decided", mark);
    mark();
    return button;
  }

  function entry(row) {
    const item = element("li");
    const head = element("p", undefined, "row");
    head.textContent = `${number.format(row.rank)}. row ${number.format(row.row)}`;
    const facts = element("dl");
    const suggested = element("dd");
    const steps = row.path.split(" > ");
    steps.forEach((step, index) => {
      if (index) suggested.append(" › ");
      // On a forest, the missing steps are the last ones.
      suggested.append(element("span", step, index >= steps.length - row.missing.length ? "new" : ""));
    });
    const present = element("dd");
    if (!row.present.length) present.textContent = "(nothing)";
    for (const path of row.present) present.append(element("span", path, "one"));
    const probabilities = `${percent(row.p_missing)} (given the other labels ${percent(row.conditional)}, from the text alone ${percent(row.probability)})`;
    facts.append(element("dt", "suggested"), suggested, element("dt", "has"), present);
    facts.append(element("dt", "P(missing)"), element("dd", probabilities), element("dt", "P(any missing)"), element("dd", percent(row.p_any)));
    const choices = element("p", undefined, "choices");
    choices.append(choice(row, "accept", "Accept", item), choice(row, "reject", "Reject", item));
    item.append(head);
    if (row.text !== undefined) {
      const text = element("p", row.text, "text");
      text.dir = "auto";
      text.tabIndex = 0;
      item.append(text);
    }
    item.append(facts, choices);
    return item;
  }

  function count() {
    const accepted = [...decisions.values()].filter((value) => value === "accept").length;
    find("decided").textContent = `${number.format(accepted)} accepted, ${number.format(decisions.size - accepted)} rejected`;
    find("save").hidden = !decisions.size;
  }

  function show() {
    const rows = chosen();
    list.replaceChildren(...rows.slice(0, shown).map(entry));
    find("found").textContent = rows.length ? `${number.format(Math.min(shown, rows.length))} of ${number.format(rows.length)} suspicions` : "No suspicion fits the filters.";
    find("more").hidden = shown >= rows.length;
  }

  for (const id of ["search", "label", "row", "lowest", "order", "state"]) {
    find(id).addEventListener("input", () => {
      shown = FIRST;
      show();
    });
  }
  find("more").addEventListener("click", () => {
    shown += FIRST;
    show();
  });
  for (const button of document.querySelectorAll("[data-path]")) {
    button.addEventListener("click", () => {
      find("label").value = counts.has(button.dataset.path) ? button.dataset.path : "";
      shown = FIRST;
      show();
      find("missing").scrollIntoView();
    });
  }

  // ---- Decisions as a file for `hcal audit --apply` ----

  const quoted = (value) => `"${String(value).replaceAll('"', '""')}"`;

  find("save").addEventListener("click", () => {
    const rows = data.filter((row) => decisions.has(row.rank));
    const lines = rows.map((row) => [row.row, quoted(row.path), decisions.get(row.rank)].join(","));
    const file = new Blob(["\ufeff" + ["row,path,decision", ...lines].join("\r\n") + "\r\n"], {type: "text/csv"});
    const link = element("a");
    link.href = URL.createObjectURL(file);
    link.download = "decisions.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  window.addEventListener("beforeunload", (event) => {
    if (decisions.size) event.preventDefault();
  });

  find("browser").hidden = false;
  count();
  show();
})();
