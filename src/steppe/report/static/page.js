"use strict";
(() => {
const all = (where, selector) => [...where.querySelectorAll(selector)];
const data = JSON.parse(document.getElementById("data").textContent);
const RIGHT = 8, TOP = 28, BOTTOM = 44;

// The reader's choices. A live page keeps them in its history entry when it reloads.
const state = { compare: "run", sort: {}, figures: {}, ...history.state };

function draw(parent, name, attributes, text) {
  const node = document.createElementNS(parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function flash(button, text) {
  const before = button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = before; }, 1600);
}

// ---- tables

function sortTable(table, { key, order }) {
  const heads = all(table, "thead th");
  const column = heads.findIndex((head) => head.dataset.key === key);
  if (column < 0) return;
  heads.forEach((head, i) => (i === column ? head.setAttribute("aria-sort", order) : head.removeAttribute("aria-sort")));
  const sign = order === "ascending" ? 1 : -1;
  const value = (row) => row.cells[column].dataset.sort;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    // A cell without a value stays last in either order.
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  });
  table.tBodies[0].append(...rows);
}

// All tables of one data set and network keep one order, so that a switch changes numbers and not rows.
function sortTables() {
  for (const [group, sort] of Object.entries(state.sort)) {
    for (const table of all(document, `.mode[data-group="${group}"] table`)) sortTable(table, sort);
  }
}

for (const head of all(document, "table.sortable thead th")) {
  head.querySelector("button").addEventListener("click", () => {
    const { key, first } = head.dataset;
    const other = first === "descending" ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    state.sort[head.closest(".mode").dataset.group] = { key, order };
    sortTables();
  });
}

function showMode() {
  for (const input of all(document, 'input[data-name="compare"]')) input.checked = input.value === state.compare;
  const modes = all(document, ".mode");
  for (const mode of modes) {
    // A data set without this table keeps its table as run.
    const has = modes.some((m) => m.dataset.group === mode.dataset.group && m.dataset.mode === state.compare);
    mode.hidden = mode.dataset.mode !== (has ? state.compare : "run");
  }
}

// ---- curves

function ticks(low, high, count, whole) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.8);
  if (whole) step = Math.max(1, Math.round(step));
  const at = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) at.push(t);
  const digits = whole ? 0 : Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / power === 2.5 ? 1 : 0));
  return { at, text: (t) => (Math.abs(t) >= 10000 ? t.toLocaleString("en") : t.toFixed(Math.min(digits, 12))) };
}

// The points of every line, by what is on the axes.
function pointsOf(lines, xName, yName, late) {
  const rows = lines.map((line, i) => {
    const band = line.y[yName];
    const from = late ? Math.floor(line.x.epochs.length / 2) : 0;
    const points = line.x[xName]
      .map((x, k) => ({ x, k, m: band.mean[k], lo: band.low[k], hi: band.high[k] }))
      .filter((p) => p.k >= from && p.x !== null && p.m !== null);
    return { i, line, points };
  });
  return rows.filter((row) => row.points.length);
}

// Where numbers are on a chart of W by H pixels that shows all points.
function scales(points, W, H) {
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const p of points) {
    x0 = Math.min(x0, p.x); x1 = Math.max(x1, p.x);
    y0 = Math.min(y0, p.lo); y1 = Math.max(y1, p.hi);
  }
  if (x1 === x0) { x0 -= 1; x1 += 1; }
  const margin = (y1 - y0) * 0.04 || 1;
  y0 -= margin; y1 += margin;
  const ys = ticks(y0, y1, 6);
  // room for the longest number at the left
  const left = 11 + 7 * Math.max(5, ...ys.at.map((t) => ys.text(t).length));
  const X = (v) => +(left + ((v - x0) / (x1 - x0)) * (W - left - RIGHT)).toFixed(1);
  const Y = (v) => +(H - BOTTOM - ((v - y0) / (y1 - y0)) * (H - TOP - BOTTOM)).toFixed(1);
  return { x0, x1, y0, y1, X, Y, W, H, left, ys };
}

function drawAxes(svg, s, titles, whole) {
  const { left, ys } = s, right = s.W - RIGHT, bottom = s.H - BOTTOM;
  const xs = ticks(s.x0, s.x1, s.W < 520 ? 5 : 8, whole);
  for (const t of ys.at) {
    draw(svg, "line", { class: "grid", x1: left, x2: right, y1: s.Y(t), y2: s.Y(t) });
    draw(svg, "text", { x: left - 9, y: s.Y(t) + 4, "text-anchor": "end" }, ys.text(t));
  }
  for (const t of xs.at) draw(svg, "text", { x: s.X(t), y: bottom + 19, "text-anchor": "middle" }, xs.text(t));
  draw(svg, "line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
  draw(svg, "text", { x: (left + right) / 2, y: s.H - 5, "text-anchor": "middle" }, titles.x);
  draw(svg, "text", { x: left, y: 14 }, titles.y);
}

function drawLine(svg, s, { i, line, points }, strong) {
  const style = data.styles[line.style];
  const group = draw(svg, "g", { class: `s${line.style}${strong !== null && strong !== i ? " dim" : ""}` });
  const path = (list, key) => list.map((p) => `${s.X(p.x)} ${s.Y(p[key])}`).join("L");
  if (line.n > 1) draw(group, "path", { class: "band", d: `M${path(points, "hi")}L${path([...points].reverse(), "lo")}z` });
  const width = style.width + (strong === i ? 0.9 : 0);
  const dashes = style.dash.join(" ");
  draw(group, "path", { class: "curve", d: `M${path(points, "m")}`, "stroke-width": width, "stroke-dasharray": dashes });
  // a line of one point cannot be seen
  if (points.length === 1 && !style.mark) draw(group, "circle", { class: "mark", cx: s.X(points[0].x), cy: s.Y(points[0].m), r: 4 });
  const step = Math.max(1, Math.floor(points.length / 6));
  for (const p of style.mark ? points.filter((_, k) => k % step === i % step) : []) {
    draw(group, "path", { class: "mark", d: style.mark, transform: `translate(${s.X(p.x)} ${s.Y(p.m)}) scale(7.5)` });
  }
}

// The budget of the table.
function drawBudget(svg, s, amount) {
  if (amount === undefined || amount < s.x0 || amount > s.x1) return;
  const x = s.X(amount);
  const end = x > (s.W - RIGHT) * 0.8;
  draw(svg, "line", { class: "budget", x1: x, x2: x, y1: TOP, y2: s.H - BOTTOM });
  draw(svg, "text", { x: x + (end ? -6 : 6), y: TOP + 9, "text-anchor": end ? "end" : "start" }, "the table's budget");
}

// Make a figure of curves interactive. Returns the function that draws it again, on the same axes or on others.
function startFigure(figure) {
  const group = figure.dataset.group, lines = data.groups[group];
  const svg = figure.querySelector(".chart"), stage = figure.querySelector(".stage");
  const readout = figure.querySelector(".readout"), late = figure.querySelector("[data-late]");
  const keys = all(figure, ".key li button"), metrics = all(figure, 'input[data-name="y"]');
  // what is chosen, and what is read: the methods that are hidden, the value on the x axis, the method
  const own = (state.figures[group] ??= { metric: metrics[0].value, late: false, hidden: new Set(), x: null, method: null });
  let view = null, strong = null;

  late.checked = own.late;
  for (const input of metrics) input.checked = input.value === own.metric;

  const axis = () => (state.compare in data.axes ? state.compare : data.axis);
  const about = () => data.metrics[group][own.metric];
  const number = (v) => v.toFixed(about().places);
  const nearest = (list, value, of) => list.reduce((a, b) => (Math.abs(of(b) - value) < Math.abs(of(a) - value) ? b : a));

  function render() {
    const rows = pointsOf(lines, axis(), own.metric, own.late);
    const visible = rows.filter((row) => !own.hidden.has(row.i));
    const points = (visible.length ? visible : rows).flatMap((row) => row.points);
    svg.replaceChildren();
    // One unit is one pixel, so that text keeps its size on a narrow screen.
    const W = Math.max(300, Math.round(stage.clientWidth) || 760), H = W < 520 ? 310 : 430;
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    view = points.length ? { ...scales(points, W, H), rows: visible } : null;
    keys.forEach((key, i) => key.setAttribute("aria-pressed", String(!own.hidden.has(i))));
    if (!view) return;
    drawAxes(svg, view, { x: data.axes[axis()], y: about().axis }, axis() !== "seconds");
    for (const row of [...visible].reverse()) drawLine(svg, view, row, strong);
    drawBudget(svg, view, data.budgets[group][state.compare]);
    read(own.x, own.method);
  }

  // Each line's point at x; a method whose curve has ended before it has none.
  function pointsAt(x) {
    const points = new Map();
    for (const row of view.rows) {
      const p = nearest(row.points, x, (q) => q.x);
      const length = row.points[row.points.length - 1].x - row.points[0].x;
      const step = length / Math.max(1, row.points.length - 1);
      if (Math.abs(p.x - x) <= 0.75 * step + 0.02 * (view.x1 - view.x0)) points.set(row.i, p);
    }
    return points;
  }

  // Show all values at x, and one method's in words.
  function read(x, method = null) {
    [own.x, own.method] = [x, method];
    all(svg, ".hover").forEach((node) => node.remove());
    const points = view && x !== null ? pointsAt(x) : new Map();
    keys.forEach((key, i) => { key.querySelector(".value").textContent = points.has(i) ? number(points.get(i).m) : ""; });
    if (!view || x === null) {
      readout.textContent = "Point at the chart, or focus it and use the arrow keys, to read values.";
      return;
    }
    const layer = draw(svg, "g", { class: "hover" });
    draw(layer, "line", { class: "cursor", x1: view.X(x), x2: view.X(x), y1: TOP, y2: view.H - BOTTOM });
    for (const [i, p] of points) {
      const dot = draw(layer, "g", { class: `s${lines[i].style}` });
      draw(dot, "circle", { class: "mark", cx: view.X(p.x), cy: view.Y(p.m), r: i === method ? 5.5 : 3.5 });
    }
    readout.textContent = `${data.axes[axis()]}: ${axis() === "seconds" ? x.toFixed(1) : Math.round(x).toLocaleString("en")}.`;
    if (!points.has(method)) return;
    const p = points.get(method);
    const seeds = lines[method].n > 1 ? `, seeds ${number(p.lo)} to ${number(p.hi)}, n=${lines[method].n}` : ", one seed";
    readout.textContent += ` ${keys[method].querySelector(".label").textContent}: ${number(p.m)}${about().unit}${seeds}.`;
  }

  const steps = () => [...new Set(view.rows.flatMap((row) => row.points.map((p) => p.x)))].sort((a, b) => a - b);

  svg.addEventListener("pointermove", (event) => {
    if (!view || !view.rows.length) return;
    const box = svg.getBoundingClientRect();
    const [px, py] = [((event.clientX - box.left) / box.width) * view.W, ((event.clientY - box.top) / box.height) * view.H];
    const value = view.x0 + ((px - view.left) / (view.W - view.left - RIGHT)) * (view.x1 - view.x0);
    const x = nearest(steps(), value, (v) => v);
    const points = [...pointsAt(x)];
    read(x, points.length ? nearest(points, py, ([, p]) => view.Y(p.m))[0] : null);
  });
  for (const leave of ["pointerleave", "blur"]) svg.addEventListener(leave, () => read(null));

  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") read(null);
    if (!view || !view.rows.length) return;
    const list = steps(), last = list.length - 1, at = own.x === null ? -1 : list.indexOf(own.x);
    const along = { ArrowRight: at + 1, ArrowLeft: at < 0 ? last : at - 1, Home: 0, End: last }[event.key];
    const across = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (along === undefined && across === undefined) return;
    event.preventDefault();
    const x = list[Math.max(0, Math.min(last, along ?? (at < 0 ? last : at)))];
    const ranked = [...pointsAt(x)].sort(([, a], [, b]) => b.m - a.m).map(([i]) => i);
    const rank = ranked.indexOf(own.method);
    const next = rank < 0 ? 0 : rank + (across ?? 0);
    read(x, ranked[Math.max(0, Math.min(ranked.length - 1, next))] ?? null);
  });

  keys.forEach((key, i) => {
    key.addEventListener("click", () => { own.hidden.delete(i) || own.hidden.add(i); render(); });
    key.addEventListener("pointerenter", () => { strong = i; render(); });
    key.addEventListener("pointerleave", () => { strong = null; render(); });
  });
  for (const button of all(figure, "[data-show]")) {
    button.addEventListener("click", () => {
      own.hidden = new Set(button.dataset.show === "all" ? [] : keys.keys());
      render();
    });
  }
  for (const input of [...metrics, late]) {
    input.addEventListener("change", () => {
      own.metric = metrics.find((metric) => metric.checked).value;
      [own.late, own.x] = [late.checked, null];
      render();
    });
  }
  let width = stage.clientWidth;
  new ResizeObserver(() => {
    if (stage.clientWidth && stage.clientWidth !== width) { width = stage.clientWidth; render(); }
  }).observe(figure);
  return (same) => {
    if (!same) own.x = null;
    render();
  };
}

// ---- saving

const PAINT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "font-size", "font-weight"];

// The chart as a file: the page's styles are written into it, and so is the legend next to it.
function standalone(svg, legend) {
  const copy = svg.cloneNode(true);
  const paint = (node, source) => {
    const style = getComputedStyle(source);
    for (const name of PAINT) node.style.setProperty(name, style.getPropertyValue(name));
  };
  const sources = all(svg, "*");
  all(copy, "*").forEach((node, i) => {
    if (!["g", "defs", "title", "style"].includes(node.localName)) paint(node, sources[i]);
  });
  all(copy, ".hover").forEach((node) => node.remove());
  let [W, H] = svg.getAttribute("viewBox").split(" ").slice(2).map(Number);
  legend.forEach((key, k) => {
    const [swatch, name] = [key.querySelector(".swatch"), key.querySelector(".label")];
    const entry = draw(copy, "g", { transform: `translate(${W + 14} ${TOP + 8 + 21 * k})` });
    for (const node of swatch.children) paint(entry.appendChild(node.cloneNode(true)), node);
    const text = draw(entry, "text", { x: 38, y: 9 }, name.textContent);
    text.setAttribute("style", `font-size: 13px; fill: ${getComputedStyle(name).color}`);
  });
  if (legend.length) {
    W += 74 + Math.max(...legend.map((key) => key.querySelector(".label").offsetWidth));
    H = Math.max(H, TOP + 16 + 21 * legend.length);
  }
  for (const [name, value] of [["viewBox", `0 0 ${Math.ceil(W)} ${H}`], ["width", Math.ceil(W)], ["height", H]]) copy.setAttribute(name, value);
  const ground = getComputedStyle(document.documentElement).getPropertyValue("--card");
  copy.setAttribute("style", `font-family: sans-serif; background: ${ground}`);
  return new XMLSerializer().serializeToString(copy);
}

for (const button of all(document, "[data-svg]")) {
  button.addEventListener("click", () => {
    const card = button.closest(".card");
    const legend = all(card, '.key li button[aria-pressed="true"]');
    const metric = card.querySelector('input[data-name="y"]:checked')?.value ?? "cost";
    const link = document.createElement("a");
    // of a figure in two widths, the visible one
    const text = standalone(all(card, "svg").find((svg) => svg.getBoundingClientRect().width), legend);
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.download = `${metric} ${card.dataset.name}`.replace(/[^\w.-]+/g, "-") + ".svg";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    flash(button, "Saved");
  });
}

for (const button of all(document, "[data-copy]")) {
  const target = document.getElementById(button.dataset.copy);
  const select = () => { getSelection().selectAllChildren(target); flash(button, "Selected"); };
  button.addEventListener("click", () => {
    if (!navigator.clipboard) return select();
    navigator.clipboard.writeText(target.textContent).then(() => flash(button, "Copied"), select);
  });
}

// ---- start

for (const input of all(document, 'input[data-name="compare"]')) {
  input.addEventListener("change", () => {
    state.compare = input.value;
    showMode();
    redraws.forEach((redraw) => redraw(false));
  });
}
document.documentElement.classList.add("js");
sortTables();
showMode();
const redraws = all(document, ".curves").map(startFigure);
redraws.forEach((redraw) => redraw(true));

// A live page reloads when the records have changed; the reader's choices, focus and place are kept.
const live = document.querySelector(".live");
const focusable = () => all(document, "a, button, input, summary, [tabindex]");

async function follow() {
  try {
    const answer = await fetch("version");
    if (answer.ok && (await answer.text()) !== document.documentElement.dataset.version) {
      history.replaceState({ ...state, focus: focusable().indexOf(document.activeElement), top: scrollY }, "");
      return location.reload();
    }
    live.textContent = "";
  } catch {
    live.textContent = "The server no longer answers; this is how far the runs were.";
  }
  setTimeout(follow, 2000);
}

if (live) {
  focusable()[state.focus]?.focus({ preventScroll: true });
  if (state.top) scrollTo({ top: state.top, behavior: "instant" });
  setTimeout(follow, 2000);
}
})();
