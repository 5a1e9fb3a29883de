"use strict";
(() => {
  document.documentElement.classList.add("js");
  const all = (where, what) => [...where.querySelectorAll(what)];
  const data = JSON.parse(document.getElementById("data").textContent);

  for (const table of all(document, "table.sortable")) {
    const heads = all(table, "thead th");
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const first = head.dataset.first || "descending";
        const other = first === "descending" ? "ascending" : "descending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const value = (row) => row.cells[column].dataset.sort;
        const body = table.tBodies[0];
        [...body.rows]
          .sort((a, b) => {
            const [x, y] = [value(a), value(b)];
            // A cell without a value stays last in either order.
            if (x === "" || y === "") return (x === "") - (y === "");
            return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
          })
          .forEach((row) => body.append(row));
      });
    });
  }

  for (const button of all(document, "[data-copy]")) {
    const target = document.getElementById(button.dataset.copy);
    const said = button.textContent;
    const done = (text) => {
      button.textContent = text;
      setTimeout(() => { button.textContent = said; }, 1600);
    };
    button.addEventListener("click", () => {
      const select = () => {
        getSelection().selectAllChildren(target);
        done("Selected");
      };
      if (!navigator.clipboard) return select();
      navigator.clipboard.writeText(target.textContent).then(() => done("Copied"), select);
    });
  }

  const LEFT = 46, RIGHT = 8, TOP = 12, BOTTOM = 44;

  function ticks(low, high, count) {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.8);
    const found = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) found.push(t);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / power === 2.5 ? 1 : 0));
    return { found, show: (t) => (Math.abs(t) >= 10000 ? t.toLocaleString("en") : t.toFixed(Math.min(digits, 8))) };
  }

  function draw(parent, name, attributes, text) {
    const node = document.createElementNS(parent.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  for (const figure of all(document, ".curves")) {
    const lines = data.groups[figure.dataset.group];
    const svg = figure.querySelector(".chart");
    const readout = figure.querySelector(".readout");
    const keys = all(figure, ".key button");
    const hidden = new Set();
    let view = null, at = null, strong = null, W = 760, H = 430;

    const chosen = (name) => figure.querySelector(`input[data-name="${name}"]:checked`).value;
    const unit = () => (chosen("y").endsWith("accuracy") ? " %" : "");
    const number = (v) => (v === null || v === undefined ? "" : v.toFixed(unit() ? 1 : 3));

    function render() {
      const [xName, yName] = [chosen("x"), chosen("y")];
      const late = figure.querySelector("[data-late]").checked;
      const rows = lines
        .map((line, i) => {
          const band = line.y[yName];
          const from = late ? Math.floor(line.x.epochs.length / 2) : 0;
          const points = line.x[xName]
            .map((x, k) => ({ x, k, m: band.mean[k], lo: band.low[k], hi: band.high[k] }))
            .filter((p) => p.k >= from && p.x !== null && p.m !== null);
          return { i, line, points };
        })
        .filter((row) => row.points.length);
      const shown = rows.filter((row) => !hidden.has(row.i));
      const points = (shown.length ? shown : rows).flatMap((row) => row.points);
      svg.replaceChildren();
      // One unit is one pixel, so that text keeps its size on a narrow screen.
      W = Math.max(300, Math.round(figure.querySelector(".stage").clientWidth) || 760);
      H = W < 520 ? 310 : 430;
      svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
      if (!points.length) { view = null; return; }
      let [x0, x1] = [Math.min(...points.map((p) => p.x)), Math.max(...points.map((p) => p.x))];
      if (x1 === x0) { x0 -= 1; x1 += 1; }
      let [y0, y1] = [Math.min(...points.map((p) => p.lo)), Math.max(...points.map((p) => p.hi))];
      const margin = (y1 - y0) * 0.04 || 1;
      y0 -= margin; y1 += margin;
      const X = (v) => +(LEFT + ((v - x0) / (x1 - x0)) * (W - LEFT - RIGHT)).toFixed(1);
      const Y = (v) => +(H - BOTTOM - ((v - y0) / (y1 - y0)) * (H - TOP - BOTTOM)).toFixed(1);
      const ys = ticks(y0, y1, 6), xs = ticks(x0, x1, W < 520 ? 5 : 8);
      for (const t of ys.found) {
        draw(svg, "line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: Y(t), y2: Y(t) });
        draw(svg, "text", { x: LEFT - 9, y: Y(t) + 4, "text-anchor": "end" }, ys.show(t));
      }
      for (const t of xs.found) {
        draw(svg, "text", { x: X(t), y: H - BOTTOM + 19, "text-anchor": "middle" }, xs.show(t));
      }
      draw(svg, "line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: H - BOTTOM, y2: H - BOTTOM });
      draw(svg, "text", { x: (LEFT + W - RIGHT) / 2, y: H - 5, "text-anchor": "middle" }, data.axes[xName]);
      const path = (list, key) => list.map((p) => `${X(p.x)} ${Y(p[key])}`).join("L");
      for (const { i, line, points: list } of [...shown].reverse()) {
        const group = draw(svg, "g", { class: `s${line.style}` });
        if (strong !== null && strong !== i) group.classList.add("dim");
        const back = [...list].reverse();
        if (line.n > 1) draw(group, "path", { class: "band", d: `M${path(list, "hi")}L${path(back, "lo")}z` });
        const style = data.styles[line.style];
        const width = strong === i ? style.width + 0.9 : style.width;
        draw(group, "path", { class: "curve", d: `M${path(list, "m")}`, "stroke-width": width, "stroke-dasharray": style.dash.join(" ") });
        const step = Math.max(1, Math.floor(list.length / 6));
        if (!style.mark) continue;
        for (const p of list.filter((_, k) => k % step === i % step)) {
          draw(group, "path", { class: "mark", d: style.mark, transform: `translate(${X(p.x)} ${Y(p.m)}) scale(7.5)` });
        }
      }
      view = { x0, x1, X, Y, shown };
      point(at);
    }

    function point(value) {
      at = value;
      all(svg, ".hover").forEach((node) => node.remove());
      const nearest = new Map();
      if (view && at !== null) {
        for (const row of view.shown) {
          const p = row.points.reduce((a, b) => (Math.abs(b.x - at) < Math.abs(a.x - at) ? b : a));
          // A method whose curve has ended before this point has no value here.
          const ends = [row.points[0].x, row.points[row.points.length - 1].x];
          const step = (ends[1] - ends[0]) / Math.max(1, row.points.length - 1);
          if (Math.abs(p.x - at) <= 0.75 * step + 0.02 * (view.x1 - view.x0)) nearest.set(row.i, p);
        }
        const x = view.X(at);
        const layer = draw(svg, "g", { class: "hover" });
        draw(layer, "line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: H - BOTTOM });
        for (const row of view.shown.filter((r) => nearest.has(r.i))) {
          const p = nearest.get(row.i);
          const dot = draw(layer, "g", { class: `s${row.line.style}` });
          draw(dot, "circle", { class: "mark", cx: view.X(p.x), cy: view.Y(p.m), r: 4 });
        }
        const axis = data.axes[chosen("x")];
        const shownAt = chosen("x") === "seconds" ? at.toFixed(1) : Math.round(at).toLocaleString("en");
        readout.textContent = `${axis}: ${shownAt}. Beside each name, its mean over seeds${unit() ? ", in percent" : ""}.`;
      } else {
        readout.textContent = "Point at the chart, or focus it and use the arrow keys, to read values. Bands: lowest to highest seed.";
      }
      keys.forEach((key, i) => {
        key.querySelector(".value").textContent = nearest.has(i) ? number(nearest.get(i).m) : "";
      });
    }

    const steps = () => [...new Set(view.shown.flatMap((row) => row.points.map((p) => p.x)))].sort((a, b) => a - b);
    svg.addEventListener("pointermove", (event) => {
      if (!view || !view.shown.length) return;
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * W;
      const value = view.x0 + ((x - LEFT) / (W - LEFT - RIGHT)) * (view.x1 - view.x0);
      point(steps().reduce((a, b) => (Math.abs(b - value) < Math.abs(a - value) ? b : a)));
    });
    svg.addEventListener("pointerleave", () => point(null));
    svg.addEventListener("blur", () => point(null));
    svg.addEventListener("keydown", (event) => {
      if (!view || !view.shown.length) return;
      const list = steps();
      const here = at === null ? -1 : list.indexOf(at);
      const to = { ArrowRight: here + 1, ArrowLeft: here < 0 ? list.length - 1 : here - 1, Home: 0, End: list.length - 1 }[event.key];
      if (event.key === "Escape") point(null);
      if (to === undefined) return;
      event.preventDefault();
      point(list[Math.max(0, Math.min(list.length - 1, to))]);
    });
    keys.forEach((key, i) => {
      key.addEventListener("click", () => {
        hidden.has(i) ? hidden.delete(i) : hidden.add(i);
        key.setAttribute("aria-pressed", String(!hidden.has(i)));
        render();
      });
      const emphasise = (value) => () => { strong = value; render(); };
      key.addEventListener("pointerenter", emphasise(i));
      key.addEventListener("pointerleave", emphasise(null));
    });
    all(figure, "input").forEach((input) => input.addEventListener("change", () => { at = null; render(); }));
    render();
    let seen = W;
    new ResizeObserver(() => {
      const now = figure.querySelector(".stage").clientWidth;
      if (now && now !== seen) { seen = now; render(); }
    }).observe(figure);
  }
})();
