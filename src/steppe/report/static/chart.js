const LEFT = 46, RIGHT = 8, TOP = 28, BOTTOM = 44;

function ticks(low, high, count, whole) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.8);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) found.push(t);
  const digits = whole ? 0 : Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / power === 2.5 ? 1 : 0));
  return { found, show: (t) => (Math.abs(t) >= 10000 ? t.toLocaleString("en") : t.toFixed(Math.min(digits, 8))) };
}

// The points of every line that the figure can show, by what is on its axes.
function pointsOf(lines, xName, yName, late) {
  return lines
    .map((line, i) => {
      const band = line.y[yName];
      const from = late ? Math.floor(line.x.epochs.length / 2) : 0;
      const points = line.x[xName]
        .map((x, k) => ({ x, k, m: band.mean[k], lo: band.low[k], hi: band.high[k] }))
        .filter((p) => p.k >= from && p.x !== null && p.m !== null);
      return { i, line, points };
    })
    .filter((row) => row.points.length);
}

// Where numbers lie on a chart of W by H pixels that shows all of `points`.
function scales(points, W, H) {
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const p of points) {
    x0 = Math.min(x0, p.x); x1 = Math.max(x1, p.x);
    y0 = Math.min(y0, p.lo); y1 = Math.max(y1, p.hi);
  }
  if (x1 === x0) { x0 -= 1; x1 += 1; }
  const margin = (y1 - y0) * 0.04 || 1;
  y0 -= margin; y1 += margin;
  const X = (v) => +(LEFT + ((v - x0) / (x1 - x0)) * (W - LEFT - RIGHT)).toFixed(1);
  const Y = (v) => +(H - BOTTOM - ((v - y0) / (y1 - y0)) * (H - TOP - BOTTOM)).toFixed(1);
  return { x0, x1, y0, y1, X, Y, W, H };
}

function drawAxes(svg, s, titles, whole) {
  const ys = ticks(s.y0, s.y1, 6), xs = ticks(s.x0, s.x1, s.W < 520 ? 5 : 8, whole);
  for (const t of ys.found) {
    draw(svg, "line", { class: "grid", x1: LEFT, x2: s.W - RIGHT, y1: s.Y(t), y2: s.Y(t) });
    draw(svg, "text", { x: LEFT - 9, y: s.Y(t) + 4, "text-anchor": "end" }, ys.show(t));
  }
  for (const t of xs.found) {
    draw(svg, "text", { x: s.X(t), y: s.H - BOTTOM + 19, "text-anchor": "middle" }, xs.show(t));
  }
  draw(svg, "line", { class: "axis", x1: LEFT, x2: s.W - RIGHT, y1: s.H - BOTTOM, y2: s.H - BOTTOM });
  draw(svg, "text", { x: (LEFT + s.W - RIGHT) / 2, y: s.H - 5, "text-anchor": "middle" }, titles.x);
  draw(svg, "text", { x: LEFT, y: 14 }, titles.y);
}

function drawLine(svg, s, { i, line, points }, strong) {
  const style = data.styles[line.style];
  const group = draw(svg, "g", { class: `s${line.style}` });
  if (strong !== null && strong !== i) group.classList.add("dim");
  const path = (list, key) => list.map((p) => `${s.X(p.x)} ${s.Y(p[key])}`).join("L");
  if (line.n > 1) {
    draw(group, "path", { class: "band", d: `M${path(points, "hi")}L${path([...points].reverse(), "lo")}z` });
  }
  draw(group, "path", {
    class: "curve",
    d: `M${path(points, "m")}`,
    "stroke-width": strong === i ? style.width + 0.9 : style.width,
    "stroke-dasharray": style.dash.join(" "),
  });
  const step = Math.max(1, Math.floor(points.length / 6));
  if (!style.mark) return;
  for (const p of points.filter((_, k) => k % step === i % step)) {
    draw(group, "path", { class: "mark", d: style.mark, transform: `translate(${s.X(p.x)} ${s.Y(p.m)}) scale(7.5)` });
  }
}

// The budget that the table beside the chart is read at.
function drawBudget(svg, s, amount) {
  if (amount === undefined || amount < s.x0 || amount > s.x1) return;
  const x = s.X(amount);
  const end = x > (s.W - RIGHT) * 0.8;
  draw(svg, "line", { class: "budget", x1: x, x2: x, y1: TOP, y2: s.H - BOTTOM });
  draw(svg, "text", { x: x + (end ? -6 : 6), y: TOP + 9, "text-anchor": end ? "end" : "start" }, "the table's budget");
}
