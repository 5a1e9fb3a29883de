const DRAWN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "paint-order", "opacity"];
const WRITTEN = ["font-size", "font-weight"];

// The chart as a file of its own: what the page's style sheet says of it is written into it, and for a chart
// whose methods are named beside it, their names too.
function standalone(svg, legend) {
  const copy = svg.cloneNode(true);
  all(copy, ".hover, .dim").forEach((node) => (node.matches(".hover") ? node.remove() : node.classList.remove("dim")));
  const sources = all(svg, "*").filter((node) => !node.closest(".hover"));
  all(copy, "*").forEach((node, i) => {
    const style = getComputedStyle(sources[i]);
    if (["svg", "g", "title"].includes(node.localName)) return;
    for (const name of node.localName === "text" ? [...DRAWN, ...WRITTEN] : DRAWN) {
      node.style.setProperty(name, style.getPropertyValue(name));
    }
  });
  let [W, H] = svg.getAttribute("viewBox").split(" ").slice(2).map(Number);
  legend.forEach((key, k) => {
    const [swatch, name] = [key.querySelector(".swatch"), key.querySelector(".label")];
    const entry = draw(copy, "g", { transform: `translate(${W + 14} ${TOP + 8 + 21 * k})` });
    for (const node of swatch.children) {
      const part = node.cloneNode(true);
      const style = getComputedStyle(node);
      for (const what of DRAWN.slice(0, 4)) part.style.setProperty(what, style.getPropertyValue(what));
      entry.append(part);
    }
    const text = draw(entry, "text", { x: 38, y: 9 }, name.textContent);
    text.style.setProperty("font-size", "13px");
    text.style.setProperty("fill", getComputedStyle(name).color);
  });
  if (legend.length) {
    W += 60 + Math.max(...legend.map((key) => key.querySelector(".label").offsetWidth)) + 14;
    H = Math.max(H, TOP + 16 + 21 * legend.length);
  }
  copy.setAttribute("viewBox", `0 0 ${Math.ceil(W)} ${H}`);
  copy.setAttribute("width", Math.ceil(W));
  copy.setAttribute("height", H);
  for (const name of ["class", "tabindex"]) copy.removeAttribute(name);
  copy.style.setProperty("font-family", "sans-serif");
  copy.style.setProperty("background", getComputedStyle(document.documentElement).getPropertyValue("--card"));
  return new XMLSerializer().serializeToString(copy);
}

function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function startExports() {
  for (const button of all(document, "[data-svg]")) {
    button.addEventListener("click", () => {
      const card = button.closest(".card");
      const svg = (button.closest(".tools").parentElement.querySelector("svg.chart")) || card.querySelector("svg.chart");
      const legend = all(card, '.key li button[aria-pressed="true"]');
      const what = card.matches(".curves") ? card.querySelector('input[data-name="y"]:checked').value : "cost";
      const name = `${what} ${card.dataset.name}`.replace(/[^\w.-]+/g, "-");
      save(`${name}.svg`, standalone(svg, legend), "image/svg+xml");
      say(button, "Saved");
    });
  }
  for (const button of all(document, "[data-copy]")) {
    const target = document.getElementById(button.dataset.copy);
    button.addEventListener("click", () => {
      const select = () => {
        getSelection().selectAllChildren(target);
        say(button, "Selected");
      };
      if (!navigator.clipboard) return select();
      navigator.clipboard.writeText(target.textContent).then(() => say(button, "Copied"), select);
    });
  }
}
