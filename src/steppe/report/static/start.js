function start() {
  data = JSON.parse(document.getElementById("data").textContent);
  startTables();
  startCurves();
  startExports();
  for (const input of all(document, 'input[data-name="compare"]')) {
    input.addEventListener("change", () => {
      state.compare = input.value;
      showMode();
      redraws.forEach((redraw) => redraw(false));
    });
  }
  all(document, ".swap").forEach((figure, number) => {
    for (const input of all(figure, 'input[data-name="cost"]')) {
      if (state.cost[number]) input.checked = input.value === state.cost[number];
      input.addEventListener("change", () => { state.cost[number] = input.value; });
    }
  });
  showMode();
  redraws.forEach((redraw) => redraw(true));
}

document.documentElement.classList.add("js");
start();
