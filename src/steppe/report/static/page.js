const redraws = [];

function startCurves() {
  redraws.length = 0;
  for (const figure of all(document, ".curves")) startFigure(figure, figure.dataset.group);
}

function startFigure(figure, group) {
  const lines = data.groups[group];
  const svg = figure.querySelector(".chart");
  const readout = figure.querySelector(".readout");
  const keys = all(figure, ".key li button");
  const hidden = (state.hidden[group] ??= new Set());
  let view = null;
  state.at[group] ??= null;
  state.read[group] ??= null;
  state.strong[group] ??= null;

  const late = figure.querySelector("[data-late]");
  late.checked = state.late[group] ?? false;
  for (const input of all(figure, 'input[data-name="y"]')) {
    if (state.metric[group]) input.checked = input.value === state.metric[group];
  }

  const metric = () => figure.querySelector('input[data-name="y"]:checked').value;
  const axis = () => (state.compare in data.axes ? state.compare : data.axis);
  const unit = () => (metric().endsWith("accuracy") ? " %" : "");
  const number = (v) => v.toFixed(unit() ? 1 : 3);

  function render() {
    const rows = pointsOf(lines, axis(), metric(), late.checked);
    const shown = rows.filter((row) => !hidden.has(row.i));
    const points = (shown.length ? shown : rows).flatMap((row) => row.points);
    svg.replaceChildren();
    // One unit is one pixel, so that text keeps its size on a narrow screen.
    const W = Math.max(300, Math.round(figure.querySelector(".stage").clientWidth) || 760);
    const H = W < 520 ? 310 : 430;
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    view = points.length ? { ...scales(points, W, H), shown } : null;
    keys.forEach((key, i) => key.setAttribute("aria-pressed", String(!hidden.has(i))));
    if (!view) return;
    const titles = { x: data.axes[axis()], y: data.metrics[metric()] + (unit() && ", %") };
    drawAxes(svg, view, titles, axis() !== "seconds");
    for (const row of [...shown].reverse()) drawLine(svg, view, row, state.strong[group]);
    drawBudget(svg, view, data.budgets[group][state.compare]);
    point(state.at[group], state.read[group]);
  }

  // Each shown line's point at x; a method whose curve has ended before it has none.
  function nearest(x) {
    const found = new Map();
    for (const row of view.shown) {
      const p = row.points.reduce((a, b) => (Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a));
      const ends = [row.points[0].x, row.points[row.points.length - 1].x];
      const step = (ends[1] - ends[0]) / Math.max(1, row.points.length - 1);
      if (Math.abs(p.x - x) <= 0.75 * step + 0.02 * (view.x1 - view.x0)) found.set(row.i, p);
    }
    return found;
  }

  function point(x, read = null) {
    state.at[group] = x;
    all(svg, ".hover").forEach((node) => node.remove());
    const found = view && x !== null ? nearest(x) : new Map();
    keys.forEach((key, i) => {
      key.querySelector(".value").textContent = found.has(i) ? number(found.get(i).m) : "";
    });
    if (!view || x === null) {
      readout.textContent = "Point at the chart, or focus it and use the arrow keys, to read values.";
      return;
    }
    const layer = draw(svg, "g", { class: "hover" });
    draw(layer, "line", { class: "cursor", x1: view.X(x), x2: view.X(x), y1: TOP, y2: view.H - BOTTOM });
    for (const [i, p] of found) {
      const dot = draw(layer, "g", { class: `s${lines[i].style}` });
      draw(dot, "circle", { class: "mark", cx: view.X(p.x), cy: view.Y(p.m), r: i === read ? 5.5 : 3.5 });
    }
    const at = `${data.axes[axis()]}: ${axis() === "seconds" ? x.toFixed(1) : Math.round(x).toLocaleString("en")}`;
    readout.textContent = found.has(read) ? `${at}. ${said(read, found.get(read))}` : `${at}.`;
  }

  function said(i, p) {
    const name = keys[i].querySelector(".label").textContent;
    const band = lines[i].n > 1 ? `, seeds ${number(p.lo)} to ${number(p.hi)}, n=${lines[i].n}` : ", one seed";
    return `${name}: ${number(p.m)}${unit()}${band}.`;
  }

  const steps = () => [...new Set(view.shown.flatMap((row) => row.points.map((p) => p.x)))].sort((a, b) => a - b);
  const closest = (list, value, of) => list.reduce((a, b) => (Math.abs(of(b) - value) < Math.abs(of(a) - value) ? b : a));

  svg.addEventListener("pointermove", (event) => {
    if (!view || !view.shown.length) return;
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * view.W;
    const value = view.x0 + ((x - LEFT) / (view.W - LEFT - RIGHT)) * (view.x1 - view.x0);
    const at = closest(steps(), value, (v) => v);
    const found = [...nearest(at)];
    const y = ((event.clientY - box.top) / box.height) * view.H;
    point(at, found.length ? closest(found, y, ([, p]) => view.Y(p.m))[0] : null);
  });
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("blur", () => point(null));

  svg.addEventListener("keydown", (event) => {
    if (!view || !view.shown.length) return;
    const list = steps();
    const x = state.at[group];
    const here = x === null ? -1 : list.indexOf(x);
    const along = { ArrowRight: here + 1, ArrowLeft: here < 0 ? list.length - 1 : here - 1, Home: 0, End: list.length - 1 };
    const across = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key === "Escape") point(null);
    if (!(event.key in along) && across === undefined) return;
    event.preventDefault();
    const to = across === undefined ? along[event.key] : here < 0 ? list.length - 1 : here;
    const at = list[Math.max(0, Math.min(list.length - 1, to))];
    const ranked = [...nearest(at)].sort(([, a], [, b]) => b.m - a.m).map(([i]) => i);
    const rank = ranked.indexOf(state.read[group]);
    const next = across === undefined || rank < 0 ? Math.max(0, rank) : rank + across;
    state.read[group] = ranked[Math.max(0, Math.min(ranked.length - 1, next))] ?? null;
    point(at, state.read[group]);
  });

  keys.forEach((key, i) => {
    key.addEventListener("click", () => {
      hidden.has(i) ? hidden.delete(i) : hidden.add(i);
      render();
    });
    const emphasise = (value) => () => { state.strong[group] = value; render(); };
    key.addEventListener("pointerenter", emphasise(i));
    key.addEventListener("pointerleave", emphasise(null));
  });
  for (const button of all(figure, "[data-show]")) {
    button.addEventListener("click", () => {
      keys.forEach((_, i) => (button.dataset.show === "all" ? hidden.delete(i) : hidden.add(i)));
      render();
    });
  }
  const changed = () => {
    state.metric[group] = metric();
    state.late[group] = late.checked;
    state.at[group] = null;
    render();
  };
  all(figure, 'input[data-name="y"]').forEach((input) => input.addEventListener("change", changed));
  late.addEventListener("change", changed);
  redraws.push((same) => {
    if (!same) state.at[group] = null;
    render();
  });

  render();
  let seen = figure.querySelector(".stage").clientWidth;
  new ResizeObserver(() => {
    const now = figure.querySelector(".stage").clientWidth;
    if (now && now !== seen) { seen = now; render(); }
  }).observe(figure);
}
