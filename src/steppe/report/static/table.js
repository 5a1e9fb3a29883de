function sorted(table, key, order) {
  const heads = all(table, "thead th");
  const column = heads.findIndex((head) => head.dataset.key === key);
  if (column < 0) return;
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", order);
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
}

// All tables of one data set and network keep one order, so that a switch changes numbers and not places.
function sortTables() {
  for (const [group, { key, order }] of Object.entries(state.sort)) {
    for (const table of all(document, `.mode[data-group="${group}"] table`)) sorted(table, key, order);
  }
}

function startTables() {
  for (const table of all(document, "table.sortable")) {
    const group = table.closest(".mode").dataset.group;
    for (const head of all(table, "thead th")) {
      head.querySelector("button").addEventListener("click", () => {
        const first = head.dataset.first;
        const other = first === "descending" ? "ascending" : "descending";
        state.sort[group] = {
          key: head.dataset.key,
          order: head.getAttribute("aria-sort") === first ? other : first,
        };
        sortTables();
      });
    }
  }
  sortTables();
}

function showMode() {
  for (const input of all(document, 'input[data-name="compare"]')) input.checked = input.value === state.compare;
  const groups = new Set(all(document, ".mode").map((mode) => mode.dataset.group));
  for (const group of groups) {
    const modes = all(document, `.mode[data-group="${group}"]`);
    // A group without any such record keeps its table as run.
    const has = modes.some((mode) => mode.dataset.mode === state.compare);
    for (const mode of modes) mode.hidden = mode.dataset.mode !== (has ? state.compare : "run");
  }
}
