// The panel of the latent: sliders, a table of categories, or a map of codes.

// Sliders of a continuous latent, the most used first

const order = isVector ? DATA.use.map((_, i) => i).sort((a, b) => DATA.use[b] - DATA.use[a]) : [];
const sliders = [];
let [axisX, axisY] = [order[0] ?? 0, order[1] ?? order[0] ?? 0];

function addSlider(d) {
  const row = document.createElement("label");
  row.className = "slider";
  const tags = ["span", "input", "output", "span", "span"];
  const [name, input, output, bar, use] = tags.map((tag) => document.createElement(tag));
  name.textContent = `z${d}`;
  Object.assign(input, { type: "range", min: DATA.low[d], max: DATA.high[d], step: "any" });
  input.setAttribute("aria-label", `z${d}, ${DATA.unit} ${DATA.use[d].toFixed(2)}`);
  bar.className = "bar";
  bar.style.width = `${Math.max(4, (100 * DATA.use[d]) / Math.max(1e-9, DATA.use[order[0]]))}%`;
  use.className = "use";
  use.textContent = DATA.use[d].toFixed(2);
  input.oninput = () => {
    stopWalking();
    z[d] = Number(input.value);
    showSoon();
  };
  input.onkeydown = (event) => { // "any" would move a twentieth of the range
    const direction = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!direction) return;
    event.preventDefault();
    input.value = Number(input.value) + (direction * (DATA.high[d] - DATA.low[d])) / 100;
    input.oninput();
  };
  row.append(name, input, output, bar, use);
  sliders.push({ d, input, output });
  return row;
}

function makeSliders() {
  const active = order.filter((d) => !DATA.collapsed.includes(d));
  const [shown, folded] = active.length ? [active, order.filter((d) => DATA.collapsed.includes(d))] : [order, []];
  element("sliders").append(...shown.map(addSlider));
  element("collapsed").hidden = !folded.length;
  const [summary, inside] = element("collapsed").children;
  summary.textContent = `${folded.length} collapsed dimension${folded.length === 1 ? "" : "s"}, without effect`;
  inside.append(...folded.map(addSlider));
  element("latent-title").textContent = "Dimensions, most used first";
  element("latent-unit").textContent = DATA.unit;
  element("latent-note").textContent = DATA.note;
  for (const [id, chosen] of [["axis-x", axisX], ["axis-y", axisY]]) {
    for (const d of order) element(id).add(new Option(`z${d}`, d, false, d === chosen));
    element(id).onchange = () => {
      [axisX, axisY] = [Number(element("axis-x").value), Number(element("axis-y").value)];
      show();
    };
  }
}

function showSliders() {
  for (const { d, input, output } of sliders) {
    if (document.activeElement !== input || Math.abs(Number(input.value) - z[d]) > 1e-6) input.value = z[d];
    output.textContent = z[d].toFixed(2);
    input.setAttribute("aria-valuetext", output.textContent);
  }
}

// Grid of categories (a row per variable) or map of codes

const gridShape = DATA.kind === "categorical" ? [size, DATA.categories] : DATA.map;
const CELL = DATA.kind === "categorical" ? 20 : 32;
let selected = 0; // the place in a map, or the variable

function showCodes() {
  const canvas = element("codes");
  const context = canvas.getContext("2d");
  const [rows, columns] = gridShape;
  const ink = getComputedStyle(document.body).color;
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++) {
      const isOn = DATA.kind === "codes" || z[r] === c;
      context.globalAlpha = isOn ? 1 : 0.12;
      context.fillStyle = DATA.kind === "codes" ? DATA.colors[z[r * columns + c]] : ink;
      context.fillRect(c * CELL + 1, r * CELL + 1, CELL - 2, CELL - 2);
    }
  context.globalAlpha = 1;
  context.strokeStyle = ink;
  context.lineWidth = 3;
  if (DATA.kind === "categorical") {
    context.lineWidth = 1;
    context.strokeRect(0.5, selected * CELL + 0.5, columns * CELL - 1, CELL - 1);
    canvas.setAttribute("aria-label", `variable ${selected}, category ${z[selected]}; arrow keys change them`);
    return;
  }
  const [row, column] = [Math.floor(selected / columns), selected % columns];
  context.strokeRect(column * CELL + 1.5, row * CELL + 1.5, CELL - 3, CELL - 3);
  canvas.setAttribute("aria-label", `row ${row}, column ${column}, code ${z[selected]}; arrow keys go to other places`);
  for (const button of element("palette").children)
    button.setAttribute("aria-pressed", String(Number(button.dataset.code) === z[selected]));
}

// Arrow keys in the map move the selection; among variables, left and right change the category.
function moveByKey(event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const [rows, columns] = gridShape;
  const within = (i, n) => Math.max(0, Math.min(n - 1, i));
  if (DATA.kind === "categorical") {
    selected = within(selected + step[0], rows);
    z[selected] = within(z[selected] + step[1], columns);
  } else {
    const row = within(Math.floor(selected / columns) + step[0], rows);
    selected = row * columns + within((selected % columns) + step[1], columns);
  }
  show();
}

function makeCodes() {
  const [rows, columns] = gridShape;
  const canvas = element("codes");
  setSize(canvas, columns * CELL, rows * CELL);
  canvas.hidden = false;
  canvas.onclick = (event) => {
    const box = canvas.getBoundingClientRect();
    const row = Math.min(rows - 1, Math.floor(((event.clientY - box.top) / box.height) * rows));
    const column = Math.min(columns - 1, Math.floor(((event.clientX - box.left) / box.width) * columns));
    if (DATA.kind === "categorical") [selected, z[row]] = [row, column];
    else selected = row * columns + column;
    show();
  };
  canvas.onkeydown = moveByKey;
  const isMap = DATA.kind === "codes";
  element("latent-title").textContent = isMap ? `Codes, ${rows} x ${columns}` : `${rows} variables of ${columns} categories`;
  element("latent-note").textContent = isMap
    ? "Choose a place in the map, then a code. Similar colors are similar codes."
    : "Each row is a variable. Click a cell to choose its category.";
  if (!isMap) return;
  element("palette").hidden = false;
  for (const code of DATA.palette) {
    const button = document.createElement("button");
    button.style.background = DATA.colors[code];
    button.title = `code ${code}`;
    button.setAttribute("aria-label", `code ${code}`);
    button.dataset.code = code;
    button.onclick = () => { z[selected] = code; show(); };
    element("palette").append(button);
  }
}
