// The tab in which suggested texts are labelled. Everything that comes from the server is shown as text, never as HTML.
const root = element.querySelector(".hl");
const find = (selector) => root.querySelector(selector);
const several = root.dataset.several === "true";
const search = find(".hl-search input");
let text = null; // the present document, as the server describes it
let chosen = new Map(); // node -> label
let visited = []; // indices of the documents before the present one
let again = false; // whether the skipped documents are asked
let busy = false;
let searches = 0;

function make(tag, options = {}, ...children) {
    const made = document.createElement(tag);
    const { className, label, ...properties } = options;
    if (className) made.className = className;
    if (label) made.setAttribute("aria-label", label);
    for (const [name, value] of Object.entries(properties)) {
        if (name.startsWith("aria-") || name.startsWith("data-")) made.setAttribute(name, value);
        else made[name] = value;
    }
    made.append(...children);
    return made;
}

function percent(probability) {
    if (probability > 0 && probability < 0.0005) return "<0.001";
    if (probability < 1 && probability >= 0.9995) return ">0.999";
    return probability.toFixed(3);
}

function bar(label) {
    const filled = make("span");
    filled.style.width = `${(100 * label.probability).toFixed(1)}%`;
    const bar = make("span", { className: "hl-bar", "aria-hidden": "true" }, filled);
    return [bar, make("span", { className: "hl-number" }, percent(label.probability))];
}

function pathOf(label) {
    const above = label.path.slice(0, -1).map((name) => `${name} › `).join("");
    const path = make("span", { className: "hl-path" });
    if (above) path.append(make("span", { className: "hl-above" }, above));
    path.append(make("span", { className: "hl-end" }, label.path[label.path.length - 1]));
    return path;
}

function say(message) {
    find(".hl-message").textContent = message;
}

function complain(message) {
    const place = find(".hl-error");
    place.textContent = message;
    place.hidden = !message;
}

async function ask(name, values) {
    let answer;
    try {
        answer = await server[name]({ ...values, token: root.dataset.token });
    } catch {
        answer = { error: "The server does not answer. Is hcal demo still running? Nothing was saved." };
    }
    if (answer && !answer.error) return answer;
    complain((answer && answer.error) || "The server gave no answer. Nothing was saved.");
    return null;
}

// Runs one action at a time, so that a key that is pressed twice decides about one text only.
async function alone(action) {
    if (busy) return;
    busy = true;
    root.setAttribute("aria-busy", "true");
    try {
        await action();
    } finally {
        busy = false;
        root.removeAttribute("aria-busy");
    }
}

// ---- The present text ----

function show(answer, focus = true) {
    const { counts } = answer;
    complain(answer.conflict || "");
    const skipped = counts.skipped ? `, ${counts.skipped} skipped` : "";
    find(".hl-counts").textContent = `${counts.labelled} of ${counts.total} labelled${skipped}, ${counts.open} to go`;
    find(".hl-labelled").style.width = `${(100 * counts.labelled) / counts.total}%`;
    find(".hl-skipped").style.width = `${(100 * counts.skipped) / counts.total}%`;
    closeTree(false);
    find(".hl-work").hidden = answer.finished;
    find(".hl-done").hidden = !answer.finished;
    text = answer.finished ? null : answer;
    for (const button of root.querySelectorAll("[data-action=back]")) button.disabled = !previous().possible;
    if (answer.finished) showEnd(answer);
    else showText(answer);
    if (focus) find(answer.finished ? ".hl-done h2" : ".hl-work h2").focus({ preventScroll: true });
    if (root.getBoundingClientRect().top < 0) root.scrollIntoView();
}

function showEnd({ counts, file }) {
    again = false;
    find(".hl-summary").textContent = `${counts.labelled} labelled and ${counts.skipped} skipped. Saved in ${file}.`;
    find(".hl-command").textContent = `hcal train ${quoted(file)} --from ${quoted(root.dataset.model)}`;
    find("[data-action=skipped]").hidden = !counts.skipped;
}

function quoted(word) {
    return /^[-\w./:=@+]+$/.test(word) ? word : `"${word}"`;
}

function showText(answer) {
    find(".hl-work h2").textContent = `Text ${answer.index + 1} of ${answer.counts.total}`;
    const fields = answer.fields.map((field) => {
        const words = make("p", {}, field.text);
        return answer.fields.length > 1 ? make("div", {}, make("h4", {}, field.name), words) : words;
    });
    find(".hl-text").replaceChildren(...fields);
    find(".hl-text").scrollTop = 0;
    const rows = answer.suggestion.map((label) => make("li", {}, pathOf(label), ...bar(label)));
    if (!rows.length) rows.push(make("li", { className: "hl-help" }, "No label"));
    if (answer.more) rows.push(make("li", { className: "hl-help" }, `and ${answer.more} more`));
    find(".hl-suggestion").replaceChildren(...rows);
    const notes = [answer.problem, answer.reason, answer.note].filter(Boolean);
    find(".hl-notes").replaceChildren(...notes.map((note) => make("p", {}, note)));
    find("[data-action=accept]").disabled = Boolean(answer.problem);
    const { decision } = answer;
    const state = find(".hl-state");
    state.className = `hl-state ${decision ? `hl-is-${decision.state}` : ""}`;
    const names = decision ? decision.labels.map((label) => label.path.join(" › ")).join("; ") : "";
    state.textContent = decision ? decision.text + (names ? `: ${names}` : "") : "";
    find("[data-action=keep]").hidden = !decision;
}

function previous() {
    if (visited.length) return { possible: true, index: visited[visited.length - 1] };
    const index = text ? text.index - 1 : -1;
    return { possible: index >= 0, index };
}

async function decide(action, labels = []) {
    const { index, version, counts } = text;
    const nodes = labels.map((label) => label.node);
    const answer = await ask("decide", { index, version, action, nodes, skipped: again });
    if (!answer) return;
    if (!answer.conflict) {
        visited.push(index);
        const names = labels.map((label) => label.path.join(" › ")).join("; ") || "no label";
        say(`Text ${index + 1} of ${counts.total}: ${action === "skip" ? "skipped" : names}.`);
    }
    show(answer);
}

const actions = {
    accept: () => (text.problem ? complain(text.problem) : decide("label", text.suggestion)),
    correct: () => (find(".hl-correct").hidden ? openTree() : closeTree()),
    skip: () => decide("skip"),
    back: async () => {
        const { possible, index } = previous();
        if (!possible) return;
        const answer = await ask("show_text", { index });
        if (!answer) return;
        visited.pop();
        say("");
        show(answer);
    },
    keep: async () => {
        const answer = await ask("next_text", { after: text.index, skipped: again });
        if (!answer) return;
        visited.push(text.index);
        say("");
        show(answer);
    },
    skipped: async () => {
        const answer = await ask("next_text", { after: -1, skipped: true });
        if (!answer) return;
        again = !answer.finished;
        say("");
        show(answer);
    },
    save: () => (chosen.size ? decide("label", [...chosen.values()]) : complain("Choose a label first.")),
    none: () => decide("label", []),
    close: () => closeTree(),
};

// ---- Correcting ----

async function openTree() {
    chosen = new Map();
    const start = text.decision && text.decision.state === "labelled" ? text.decision.labels : text.suggestion;
    if (several) for (const label of start) if (label.choosable) chosen.set(label.node, label);
    search.value = "";
    find(".hl-browse").open = false;
    find(".hl-tree").replaceChildren();
    find("[data-action=none]").hidden = !several;
    find("[data-action=correct]").setAttribute("aria-expanded", "true");
    find(".hl-correct").hidden = false;
    showChosen();
    search.focus();
    await searchLabels();
}

function closeTree(focus = true) {
    if (find(".hl-correct").hidden) return;
    find(".hl-correct").hidden = true;
    find("[data-action=correct]").setAttribute("aria-expanded", "false");
    complain("");
    if (focus) find("[data-action=correct]").focus();
}

function showChosen() {
    find(".hl-chosen-title").textContent = several ? "Chosen labels" : "Chosen label";
    const items = [...chosen.values()].map((label) => {
        const remove = make("button", { type: "button", label: `Remove ${label.path.join(" > ")}` }, "×");
        remove.addEventListener("click", () => {
            choose(label);
            search.focus();
        });
        return make("li", {}, pathOf(label), remove);
    });
    if (!items.length) items.push(make("li", { className: "hl-help" }, "None yet"));
    find(".hl-chosen").replaceChildren(...items);
    find("[data-action=save]").disabled = !chosen.size;
    for (const button of root.querySelectorAll(".hl-correct [data-node]")) {
        button.setAttribute("aria-pressed", String(chosen.has(Number(button.dataset.node))));
    }
}

function choose(label) {
    const isNew = !chosen.has(label.node);
    if (!several) chosen.clear();
    if (isNew) chosen.set(label.node, label);
    else chosen.delete(label.node);
    complain("");
    showChosen();
    return isNew;
}

// With one path per text, the choice is complete, so that Enter saves it.
function chooseAndMove(label) {
    const isNew = choose(label);
    if (isNew && !several) find("[data-action=save]").focus();
}

function chooser(label, ...content) {
    const button = make("button", { type: "button", className: "hl-choose", "data-node": label.node }, ...content);
    button.setAttribute("aria-pressed", String(chosen.has(label.node)));
    button.addEventListener("click", () => chooseAndMove(label));
    return button;
}

async function searchLabels() {
    searches += 1;
    const present = searches;
    const query = search.value.trim();
    const answer = await ask("search_labels", { index: text.index, query });
    if (!answer || present !== searches || !text) return; // a later search has been started
    const rows = answer.items.map((label) => make("li", {}, chooser(label, pathOf(label), ...bar(label))));
    find(".hl-hits").replaceChildren(...rows);
    const shown = answer.items.length;
    let found = query ? `${answer.total.toLocaleString("en")} found` : "Most probable labels";
    if (query && shown < answer.total) found += `, ${shown} shown. Write more to find others.`;
    if (!answer.total) found = "No label found. Try another word, or open all labels.";
    find(".hl-found").textContent = found;
}

let waiting = null;
search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(searchLabels, 120);
});

async function loadChildren(list, parent) {
    const offset = list.querySelectorAll(":scope > li:not(.hl-more)").length;
    const answer = await ask("list_children", { index: text.index, parent, offset });
    if (!answer) return;
    const more = list.querySelector(":scope > .hl-more");
    const hadFocus = more && more.contains(document.activeElement);
    if (more) more.remove();
    const rows = answer.items.map(branch);
    list.append(...rows);
    const rest = answer.total - offset - rows.length;
    if (rest > 0) {
        const button = make("button", { type: "button" }, `Show more (${rest.toLocaleString("en")} left)`);
        button.addEventListener("click", () => loadChildren(list, parent));
        list.append(make("li", { className: "hl-more" }, button));
    }
    if (hadFocus && rows.length) rows[0].querySelector("button").focus();
}

function branch(label) {
    const row = make("div", { className: "hl-row" });
    const item = make("li", {}, row);
    const content = [make("span", { className: "hl-path" }, label.name), ...bar(label)];
    if (!label.children) {
        row.append(make("span", { className: "hl-fold" }), chooser(label, ...content));
        return item;
    }
    const below = make("ul", { role: "list", hidden: true });
    // Only labels that can be chosen need a second button to open their branch.
    const fold = make("button", { type: "button", className: label.choosable ? "hl-fold" : "hl-fold hl-wide" });
    fold.setAttribute("aria-expanded", "false");
    if (label.choosable) fold.setAttribute("aria-label", `Labels below ${label.name}`);
    else fold.append(...content);
    fold.addEventListener("click", async () => {
        below.hidden = !below.hidden;
        fold.setAttribute("aria-expanded", String(!below.hidden));
        if (!below.hidden && !below.childElementCount) await loadChildren(below, label.node);
    });
    row.append(fold);
    if (label.choosable) row.append(chooser(label, ...content));
    item.append(below);
    return item;
}

find(".hl-browse").addEventListener("toggle", () => {
    if (find(".hl-browse").open && !find(".hl-tree").childElementCount) loadChildren(find(".hl-tree"), null);
});

// ---- Keys ----

function isVisible(part) {
    return part.getClientRects().length > 0 && !part.disabled;
}

function moveFocus(step) {
    const stops = [search, ...root.querySelectorAll(".hl-hits button, .hl-browse summary, .hl-tree button")].filter(isVisible);
    const place = stops.indexOf(document.activeElement);
    if (place < 0) return false;
    const next = stops[Math.min(Math.max(place + step, 0), stops.length - 1)];
    next.focus();
    return true;
}

function openOrFold(open) {
    const item = document.activeElement.closest(".hl-tree li");
    const fold = item && item.querySelector(":scope > .hl-row > button.hl-fold");
    if (!item) return false;
    const isOpen = Boolean(fold) && fold.getAttribute("aria-expanded") === "true";
    if (fold && isOpen !== open) fold.click();
    else if (!open) {
        const above = item.parentElement.closest("li");
        if (above) above.querySelector(":scope > .hl-row > button").focus();
    }
    return true;
}

root.addEventListener("keydown", (event) => {
    const inTree = !find(".hl-correct").hidden;
    const isTyping = event.target === search;
    if (inTree && event.key === "Escape") alone(actions.close);
    else if (inTree && event.key === "Enter" && (event.ctrlKey || event.metaKey)) alone(actions.save);
    else if (isTyping && event.key === "Enter") enterSearch();
    else if (inTree && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
        if (!moveFocus(event.key === "ArrowDown" ? 1 : -1)) return;
    } else if (inTree && !isTyping && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
        if (!openOrFold(event.key === "ArrowRight")) return;
    } else {
        if (isTyping || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
        const letter = event.key.toLowerCase();
        const button = [...root.querySelectorAll("button[aria-keyshortcuts]")].find(
            (one) => isVisible(one) && one.getAttribute("aria-keyshortcuts").toLowerCase() === letter,
        );
        if (!button) return;
        button.click();
    }
    event.preventDefault();
});

async function enterSearch() {
    clearTimeout(waiting);
    await searchLabels();
    const first = find(".hl-hits button");
    if (!first) return;
    first.click();
    if (several) search.select();
}

root.addEventListener("click", (event) => {
    const button = event.target.closest("[data-action]");
    if (button && !button.disabled) alone(actions[button.dataset.action]);
});

alone(async () => {
    const answer = await ask("next_text", { after: -1 });
    if (answer) show(answer, document.activeElement === document.body);
});
