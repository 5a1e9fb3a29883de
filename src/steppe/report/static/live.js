// Where the reader is: the top of the view relative to a section, what has the focus, how far tables are scrolled.
function place() {
  const sections = all(document, "main > *");
  const number = Math.max(0, sections.findLastIndex((s) => s.getBoundingClientRect().top <= 1));
  const path = [];
  for (let node = document.activeElement; node && node !== document.body && node.tagName !== "MAIN"; ) {
    path.unshift([...node.parentElement.children].indexOf(node));
    node = node.parentElement;
  }
  const inside = Boolean(document.activeElement.closest("main"));
  const name = sections[number].id || sections[number].getAttribute("aria-labelledby");
  return {
    number, name, path: inside ? path : null,
    offset: sections[number].getBoundingClientRect().top,
    scrolled: all(document, ".scroll").map((box) => box.scrollLeft),
  };
}

function back(to) {
  const sections = all(document, "main > *");
  const named = sections.find((s) => to.name && (s.id || s.getAttribute("aria-labelledby")) === to.name);
  all(document, ".scroll").forEach((box, i) => { box.scrollLeft = to.scrolled[i] || 0; });
  const focus = to.path?.reduce((node, i) => node?.children[i], document.querySelector("main"));
  focus?.focus({ preventScroll: true });
  const section = named || sections[Math.min(to.number, sections.length - 1)];
  scrollBy({ top: section.getBoundingClientRect().top - to.offset, behavior: "instant" });
}

function replace(text) {
  const next = new DOMParser().parseFromString(text, "text/html");
  const here = place();
  const at = { ...state.at };
  document.querySelector("main").replaceWith(document.adoptNode(next.querySelector("main")));
  document.getElementById("data").textContent = next.getElementById("data").textContent;
  document.documentElement.dataset.version = next.documentElement.dataset.version;
  // A chart that loses the focus forgets where it was read.
  Object.assign(state.at, at);
  start();
  back(here);
}

async function follow() {
  const status = document.querySelector(".live");
  const tell = (text) => { if (status.textContent !== text) status.textContent = text; };
  try {
    const version = await (await fetch("version")).text();
    if (version !== document.documentElement.dataset.version) {
      const answer = await fetch("report.html");
      if (answer.ok) replace(await answer.text());
    }
    tell("");
  } catch {
    tell("The server no longer answers; this is how far the runs were.");
  }
  setTimeout(follow, 2000);
}

setTimeout(follow, 2000);
