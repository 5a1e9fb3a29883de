"use strict";
(() => {
  document.documentElement.classList.add("js");
  const all = (where, what) => [...where.querySelectorAll(what)];
  const data = JSON.parse(document.getElementById("data").textContent);
  // viridis reversed, as in the contours: dark is high
  const HUES = [
    [253, 231, 37], [160, 218, 57], [74, 193, 109], [31, 161, 135], [39, 127, 142], [54, 92, 141], [70, 50, 127], [68, 1, 84],
  ];

  function hue(share) {
    const at = Math.min(Math.max(share, 0), 1) * (HUES.length - 1);
    const i = Math.min(Math.floor(at), HUES.length - 2);
    const mixed = HUES[i].map((a, k) => Math.round(a + (at - i) * (HUES[i + 1][k] - a)));
    return `rgb(${mixed.join(" ")})`;
  }

  function draw(canvas, surface, scale, turn, tilt) {
    const paper = getComputedStyle(document.documentElement);
    const [ink, soft, faint] = ["--ink", "--soft", "--faint"].map((name) => paper.getPropertyValue(name).trim());
    const W = canvas.clientWidth, H = canvas.clientHeight;
    const dense = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [Math.round(W * dense), Math.round(H * dense)];
    const pen = canvas.getContext("2d");
    pen.scale(dense, dense);
    pen.clearRect(0, 0, W, H);
    pen.font = `11px ${paper.getPropertyValue("--sans")}`;
    pen.lineJoin = "round";
    const unit = Math.min(W / 3.9, H / 3.1), middleX = W / 2 + 16, reach = surface.at[surface.at.length - 1];
    const [c, s] = [Math.cos(turn), Math.sin(turn)], [up, flat] = [Math.cos(tilt), Math.sin(tilt)];
    // x and y are -1 to 1, z is 0 to 1; unturned and from above, y points up as in the contours. The last
    // number is the distance towards the reader.
    const place = (x, y, z) => {
      const depth = x * s - y * c;
      return [middleX + unit * (x * c + y * s), H * 0.6 + unit * (depth * flat - (z - 0.25) * 1.3 * up), depth * up + z * flat];
    };
    const size = scale.log ? (v) => Math.log(Math.max(v, scale.low)) : (v) => v;
    const [low, high] = [size(scale.low), size(scale.high)];
    const height = (v) => (v === null ? 1 : Math.min(Math.max((size(v) - low) / (high - low), 0), 1));
    const line = (points, colour, width) => {
      pen.beginPath();
      points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.stroke();
    };
    // text stays within the canvas
    const write = (text, x, y, share) => {
      const width = pen.measureText(text).width;
      pen.fillStyle = soft;
      pen.fillText(text, Math.min(Math.max(x - share * width, 1), W - width - 1), y);
    };

    const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]];
    line([...corners, corners[0]].map(([x, y]) => place(x, y, 0)), faint, 1);
    // the scale is at the leftmost corner, where the surface hides least of it
    const [px, py] = corners.reduce((a, b) => (place(...b, 0)[0] < place(...a, 0)[0] ? b : a));
    // from above it has no length
    if (up > 0.2) {
      line([place(px, py, 0), place(px, py, 1)], soft, 1);
      for (const z of [0, 0.5, 1]) {
        const [x, y] = place(px, py, z);
        line([[x - 4, y], [x, y]], soft, 1);
        const loss = low + z * (high - low);
        write(String(Number((scale.log ? Math.exp(loss) : loss).toPrecision(3))), x - 7, y + 4, 1);
        if (z === 1) write(scale.title, x - 7, y - 11, 1);
      }
    }

    const n = surface.at.length, faces = [];
    for (let j = 0; j + 1 < n; j++) {
      for (let i = 0; i + 1 < n; i++) {
        const ring = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]].map(([a, b]) => {
          const z = height(surface.loss[b][a]);
          return [...place(surface.at[a] / reach, surface.at[b] / reach, z), z];
        });
        const mean = (k) => ring.reduce((sum, p) => sum + p[k], 0) / 4;
        faces.push({ ring, near: mean(2), share: mean(3) });
      }
    }
    faces.sort((a, b) => a.near - b.near);
    for (const { ring, share } of faces) {
      pen.beginPath();
      ring.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
      pen.closePath();
      pen.fillStyle = hue(share);
      pen.fill();
      pen.strokeStyle = "rgb(255 255 255 / .35)";
      pen.lineWidth = 0.6;
      pen.stroke();
    }

    const middle = (n - 1) / 2;
    const [x, y] = place(0, 0, height(surface.loss[middle][middle]));
    line([[x - 5, y], [x + 5, y]], ink, 1.6);
    line([[x, y - 5], [x, y + 5]], ink, 1.6);
    // each direction is named at its nearest edge
    for (const [name, ends] of [["direction 1", [[0, -1], [0, 1]]], ["direction 2", [[-1, 0], [1, 0]]]]) {
      const edge = ends.reduce((a, b) => (place(...b, 0)[2] > place(...a, 0)[2] ? b : a));
      const [ex, ey] = place(edge[0] * 1.12, edge[1] * 1.12, 0);
      write(`${name}, ±${reach}`, ex, ey + 12, ex < middleX - 4 ? 0.8 : ex > middleX + 4 ? 0.2 : 0.5);
    }
  }

  for (const figure of all(document, ".surfaces")) {
    const { surfaces, scale } = data[figure.dataset.section];
    const canvases = all(figure, "canvas");
    const [turn, tilt] = ["turn", "tilt"].map((name) => figure.querySelector(`input[name="${name}"]`));
    const first = [turn.value, tilt.value];
    const angle = (input) => (Number(input.value) * Math.PI) / 180;
    let waiting = false;

    function render() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        canvases.forEach((canvas, i) => draw(canvas, surfaces[i], scale, angle(turn), angle(tilt)));
      });
    }

    function move(across, down) {
      const to = Number(turn.value) + across;
      turn.value = ((((to + 180) % 360) + 360) % 360) - 180;
      tilt.value = Number(tilt.value) + down;
      render();
    }

    for (const canvas of canvases) {
      let last = null;
      canvas.addEventListener("pointerdown", (event) => {
        last = [event.clientX, event.clientY];
        canvas.setPointerCapture(event.pointerId);
      });
      canvas.addEventListener("pointermove", (event) => {
        if (!last) return;
        move(-(event.clientX - last[0]) * 0.6, (event.clientY - last[1]) * 0.4);
        last = [event.clientX, event.clientY];
      });
      for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { last = null; });
    }
    [turn, tilt].forEach((input) => input.addEventListener("input", render));
    figure.querySelector("[data-reset]").addEventListener("click", () => {
      [turn.value, tilt.value] = first;
      render();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
    new ResizeObserver(render).observe(figure);
    render();
  }
})();
