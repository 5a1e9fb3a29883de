const all = (where, what) => [...where.querySelectorAll(what)];

// What the reader has chosen. It outlives the page's content, which a live page replaces under it.
const state = { compare: "run", sort: {}, metric: {}, late: {}, cost: {}, hidden: {}, at: {}, read: {}, strong: {} };
let data = null;

function draw(parent, name, attributes, text) {
  const node = document.createElementNS(parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function say(button, text) {
  const before = button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = before; }, 1600);
}
