// The page: what is on it, and what happens when it is used.

const DATA = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const COLORS = [
  "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f",
  "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#8a8a8a",
];
const colorOf = (label) => (label < 0 ? "#8a8a8a" : COLORS[label % COLORS.length]);

const [channels, height, width] = DATA.image;
const pixels = height * width;
const decoder = load(DATA.decoder);
const encoder = DATA.encoder && load(DATA.encoder);
const latents = unpack(DATA.latents).data;
const count = DATA.latents.shape[0];
const size = DATA.latents.shape[1];
const labels = DATA.labels;
const isVector = DATA.kind === "vector";
const points = isVector ? null : unpack(DATA.points).data;
const samples = DATA.samples && unpack(DATA.samples).data;
const codebook = DATA.codebook && unpack(DATA.codebook);
const latentOf = (i) => latents.slice(i * size, (i + 1) * size);

// The latent: real numbers, or indices of categories or codes. The page starts at a real image.
let z = Float32Array.from(latentOf(0));
let label = DATA.conditional && labels ? Math.max(0, labels[0]) : 0;

// Networks

const oneHot = (i, n) => Float32Array.from({ length: n }, (_, k) => Number(k === i));
const condition = () => (DATA.conditional ? [oneHot(label, DATA.classes.length)] : []);

// The input of the decoder for a latent.
function decoderInput(latent) {
  if (isVector) return latent;
  if (DATA.kind === "categorical") {
    const input = new Float32Array(size * DATA.categories);
    latent.forEach((category, i) => { input[i * DATA.categories + category] = 1; });
    return input;
  }
  const [, dimensions] = codebook.shape;
  const input = new Float32Array(dimensions * size);
  latent.forEach((code, place) => {
    for (let d = 0; d < dimensions; d++) input[d * size + place] = codebook.data[code * dimensions + d];
  });
  return input;
}

const decode = (latent) => run(decoder, decoderInput(latent), ...condition());

const largest = (values) => values.reduce((best, v, i) => (v > values[best] ? i : best), 0);

function nearestCode(vector) {
  const [codes, dimensions] = codebook.shape;
  let best = 0;
  let least = Infinity;
  for (let code = 0; code < codes; code++) {
    let distance = 0;
    for (let d = 0; d < dimensions; d++) distance += (vector[d] - codebook.data[code * dimensions + d]) ** 2;
    if (distance < least) [best, least] = [code, distance];
  }
  return best;
}

function encode(image) {
  const output = run(encoder, image, ...condition());
  if (isVector) return output.slice(0, size);
  if (DATA.kind === "categorical") {
    const variable = (_, i) => largest(output.slice(i * DATA.categories, (i + 1) * DATA.categories));
    return Float32Array.from({ length: size }, variable);
  }
  const [, dimensions] = codebook.shape;
  const vector = (place) => Float32Array.from({ length: dimensions }, (_, d) => output[d * size + place]);
  return Float32Array.from({ length: size }, (_, place) => nearestCode(vector(place)));
}

// The image

function setSize(canvas, w, h) {
  canvas.width = w;
  canvas.height = h;
}

function paint(canvas, image, x = 0, y = 0) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  for (let i = 0; i < pixels; i++) {
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = 255 * image[i + pixels * (channels === 3 ? c : 0)];
    picture.data[4 * i + 3] = 255;
  }
  context.putImageData(picture, x, y);
}

function show() {
  const start = performance.now();
  const image = decode(z);
  paint(element("decoded"), image);
  element("time").textContent = `decoded in ${(performance.now() - start).toFixed(1)} ms`;
  if (isVector) showSliders();
  else showCodes();
  drawPlot();
  drawPlaneSoon();
}

let isQueued = false;
function showSoon() {
  if (isQueued) return;
  isQueued = true;
  requestAnimationFrame(() => { isQueued = false; show(); });
}

// Moving

let motion = 0; // the number of the last motion: earlier ones stop

function glide(target) {
  const mine = ++motion;
  if (!isVector) {
    z = Float32Array.from(target);
    show();
    return;
  }
  const from = z.slice();
  const start = performance.now();
  const step = (now) => {
    if (mine !== motion) return;
    const share = Math.min(1, Math.max(0, (now - start) / 350));
    for (let i = 0; i < size; i++) z[i] = from[i] + (target[i] - from[i]) * share;
    show();
    if (share < 1) requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

function stopWalking() {
  ++motion;
  element("walk").setAttribute("aria-pressed", "false");
}

function randomLatent() {
  if (!samples) return Float32Array.from({ length: size }, normal);
  const i = Math.floor(Math.random() * (samples.length / size));
  return samples.slice(i * size, (i + 1) * size);
}

function walk() {
  const isOn = element("walk").getAttribute("aria-pressed") === "true";
  stopWalking();
  if (isOn) return;
  element("walk").setAttribute("aria-pressed", "true");
  const mine = motion;
  const start = performance.now();
  const [a, b, c] = [z.slice(), randomLatent(), randomLatent()];
  const step = (now) => {
    if (mine !== motion) return;
    const t = (now - start) / 2500;
    // Around a circle through the present image: a sum of squares of 1 keeps the typical length.
    const weights = [Math.cos(t), Math.sin(t) * Math.cos(t / 3), Math.sin(t) * Math.sin(t / 3)];
    for (let i = 0; i < size; i++) {
      const middle = DATA.middle[i];
      z[i] = middle + weights[0] * (a[i] - middle) + weights[1] * (b[i] - middle) + weights[2] * (c[i] - middle);
    }
    show();
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

// Sliders of a continuous latent, the most used first

const order = isVector ? DATA.use.map((_, i) => i).sort((a, b) => DATA.use[b] - DATA.use[a]) : [];
const sliders = [];
let [axisX, axisY] = [order[0] ?? 0, order[1] ?? order[0] ?? 0];

function addSlider(d) {
  const row = document.createElement("label");
  row.className = "slider";
  const [name, input, output, bar] = ["span", "input", "output", "span"].map((tag) => document.createElement(tag));
  name.textContent = `z${d}`;
  Object.assign(input, { type: "range", min: DATA.low[d], max: DATA.high[d], step: "any" });
  input.setAttribute("aria-label", `z${d}`);
  bar.className = "bar";
  bar.title = `${DATA.unit} ${DATA.use[d].toFixed(2)}`;
  bar.style.width = `${Math.max(2, (52 * DATA.use[d]) / Math.max(1e-9, DATA.use[order[0]]))}px`;
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
  row.append(name, input, output, bar);
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
  }
}

// Grid of categories (a row per variable) or map of codes

const gridShape = DATA.kind === "categorical" ? [size, DATA.categories] : DATA.map;
const CELL = DATA.kind === "categorical" ? 20 : 32;
let selected = 0;

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
  if (DATA.kind !== "codes") return;
  context.strokeStyle = ink;
  context.lineWidth = 3;
  context.strokeRect((selected % columns) * CELL + 1.5, Math.floor(selected / columns) * CELL + 1.5, CELL - 3, CELL - 3);
  for (const button of element("palette").children)
    button.setAttribute("aria-pressed", String(Number(button.dataset.code) === z[selected]));
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
    if (DATA.kind === "categorical") z[row] = column;
    else selected = row * columns + column;
    show();
  };
  const isMap = DATA.kind === "codes";
  element("latent-title").textContent = isMap ? `Codes, ${rows} x ${columns}` : `${rows} variables of ${columns} categories`;
  element("latent-note").textContent = isMap
    ? "Choose a place in the map, then a code. Similar colors are similar codes."
    : "Each row is a variable. Click a cell to choose its category.";
  if (!isMap) return;
  element("palette").hidden = false;
  for (const code of DATA.order) {
    const button = document.createElement("button");
    button.style.background = DATA.colors[code];
    button.title = `code ${code}`;
    button.setAttribute("aria-label", `code ${code}`);
    button.dataset.code = code;
    button.onclick = () => { z[selected] = code; show(); };
    element("palette").append(button);
  }
}

// The plot of the latents of images

const SIDE = 1120;
const spanOf = (axis) => (isVector ? [DATA.low[axis], DATA.high[axis]] : [DATA.span[axis][0], DATA.span[axis][1]]);
const axes = () => (isVector ? [axisX, axisY] : [0, 1]);
const coordinate = (i, axis) => (isVector ? latents[i * size + axis] : points[i * 2 + axis]);
const toPlot = (value, axis) => { const [low, high] = spanOf(axis); return ((value - low) / (high - low)) * SIDE; };
const fromPlot = (place, axis) => { const [low, high] = spanOf(axis); return low + (place / SIDE) * (high - low); };

function drawPlot() {
  const context = element("plot").getContext("2d");
  const overImages = element("show-plane").checked;
  const ink = overImages ? "#ffffff" : getComputedStyle(document.body).color;
  const [x, y] = axes();
  context.clearRect(0, 0, SIDE, SIDE);
  context.strokeStyle = ink;
  context.lineWidth = 1;
  context.globalAlpha = 0.25;
  if (isVector) {
    context.beginPath();
    context.moveTo(toPlot(0, x), 0);
    context.lineTo(toPlot(0, x), SIDE);
    context.moveTo(0, SIDE - toPlot(0, y));
    context.lineTo(SIDE, SIDE - toPlot(0, y));
    context.stroke();
  }
  context.globalAlpha = overImages ? 0.55 : 0.7;
  if (element("show-points").checked)
    for (let i = 0; i < count; i++) {
      context.fillStyle = labels ? colorOf(labels[i]) : COLORS[0];
      context.beginPath();
      context.arc(toPlot(coordinate(i, x), x), SIDE - toPlot(coordinate(i, y), y), 5, 0, 7);
      context.fill();
    }
  context.globalAlpha = 0.75;
  context.fillStyle = ink;
  context.font = `${(13 * SIDE) / element("plot").clientWidth}px system-ui`;
  context.textAlign = "right";
  const [nameX, nameY] = isVector ? [`z${x}`, `z${y}`] : DATA.axes;
  context.fillText(nameX, SIDE - 14, SIDE - 18);
  context.textAlign = "left";
  context.textBaseline = "top";
  context.fillText(nameY, 14, 14);
  context.textBaseline = "alphabetic";
  context.globalAlpha = 1;
  if (isVector) drawMarker(context, toPlot(z[x], x), SIDE - toPlot(z[y], y), ink);
}

function drawMarker(context, x, y, ink) {
  context.lineWidth = 4;
  context.strokeStyle = ink;
  context.beginPath();
  context.arc(x, y, 14, 0, 7);
  context.moveTo(x - 24, y);
  context.lineTo(x + 24, y);
  context.moveTo(x, y - 24);
  context.lineTo(x, y + 24);
  context.stroke();
}

// Where a pointer is on the plot, and the nearest image within a few pixels of the screen.
function pointed(event) {
  const box = element("plot").getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * SIDE;
  const y = SIDE - ((event.clientY - box.top) / box.height) * SIDE;
  const [a, b] = axes();
  const reach = (8 / box.width) * SIDE;
  let nearest = -1;
  let least = reach * reach;
  if (element("show-points").checked)
    for (let i = 0; i < count; i++) {
      const distance = (toPlot(coordinate(i, a), a) - x) ** 2 + (toPlot(coordinate(i, b), b) - y) ** 2;
      if (distance < least) [nearest, least] = [i, distance];
    }
  return { x, y, nearest, box };
}

function moveInPlane({ x, y }) {
  stopWalking();
  z[axisX] = fromPlot(x, axisX);
  z[axisY] = fromPlot(y, axisY);
  showSoon();
}

function goToImage(i) {
  stopWalking();
  if (DATA.conditional && labels && labels[i] >= 0) setClass(labels[i]);
  glide(latentOf(i));
}

const thumbnails = new Image();
thumbnails.src = DATA.thumbnails.uri;

function drawThumbnail(canvas, i) {
  const { columns } = DATA.thumbnails;
  const [x, y] = [(i % columns) * width, Math.floor(i / columns) * height];
  canvas.getContext("2d").drawImage(thumbnails, x, y, width, height, 0, 0, width, height);
}

function showTooltip(event) {
  const { nearest, box } = pointed(event);
  const tooltip = element("tooltip");
  tooltip.hidden = nearest < 0 || !thumbnails.complete;
  if (tooltip.hidden) return;
  drawThumbnail(element("original"), nearest);
  const known = labels && labels[nearest] >= 0 ? DATA.classes[labels[nearest]] : "";
  element("original-name").textContent = [known, DATA.names ? DATA.names[nearest] : ""].filter(Boolean).join(" · ");
  const left = event.clientX - box.left;
  tooltip.style.left = `${left > box.width - 120 ? left - 112 : left + 16}px`;
  tooltip.style.top = `${Math.max(0, event.clientY - box.top - 60)}px`;
}

function makePlot() {
  setSize(element("plot"), SIDE, SIDE);
  setSize(element("original"), width, height);
  const plot = element("plot");
  let isDragged = false;
  plot.onpointerdown = (event) => {
    const place = pointed(event);
    if (place.nearest >= 0) {
      goToImage(place.nearest);
      return;
    }
    if (!isVector) return;
    isDragged = true;
    plot.setPointerCapture(event.pointerId);
    moveInPlane(place);
  };
  plot.onpointermove = (event) => {
    if (isDragged && event.buttons) moveInPlane(pointed(event));
    else showTooltip(event);
  };
  plot.onpointerup = plot.onpointercancel = () => { isDragged = false; };
  plot.onpointerleave = () => { element("tooltip").hidden = true; };
  element("show-points").onchange = show;
  for (const label of document.querySelectorAll(".axis")) label.hidden = !isVector;
  element("plane-option").hidden = !isVector;
  element("hint").textContent = isVector
    ? "Click a point to go to its latent. Click or drag elsewhere to move in these two dimensions only."
    : "Click a point to go to its latent.";
  if (!labels) return;
  const used = [...new Set(labels)].filter((i) => i >= 0).sort((a, b) => a - b);
  element("legend").append(...used.slice(0, 20).map((i) => {
    const key = document.createElement("span");
    const dot = document.createElement("i");
    key.className = "key";
    dot.style.background = colorOf(i);
    key.append(dot, DATA.classes[i] ?? String(i));
    return key;
  }));
}

// The decoded plane behind the points, drawn in slices so that the page stays responsive

const TILES = Math.max(4, Math.min(16, Math.floor(900 / Math.max(height, width))));
let planeJob = 0;
let planeTimer;

function drawPlaneSoon() {
  if (!element("show-plane").checked) return;
  clearTimeout(planeTimer);
  planeTimer = setTimeout(drawPlane, 150);
}

function drawPlane() {
  const mine = ++planeJob;
  const here = z.slice();
  let i = 0;
  const step = () => {
    if (mine !== planeJob) return;
    const start = performance.now();
    for (; i < TILES * TILES && performance.now() - start < 12; i++) {
      const [column, row] = [i % TILES, Math.floor(i / TILES)];
      here[axisX] = fromPlot(((column + 0.5) / TILES) * SIDE, axisX);
      here[axisY] = fromPlot(((TILES - row - 0.5) / TILES) * SIDE, axisY);
      paint(element("plane"), decode(here), column * width, row * height);
    }
    if (i < TILES * TILES) requestAnimationFrame(step);
    else document.body.dataset.plane = "done";
  };
  step();
}

function makePlane() {
  setSize(element("plane"), TILES * width, TILES * height);
  element("show-plane").onchange = () => {
    element("plane").hidden = !element("show-plane").checked;
    delete document.body.dataset.plane;
    show();
  };
}

// Classes of a conditional model

function setClass(i) {
  label = i;
  [...element("classes").children].forEach((button, k) => button.setAttribute("aria-pressed", String(k === i)));
}

function makeClasses() {
  element("classes").hidden = !DATA.conditional;
  if (!DATA.conditional) return;
  element("classes").append(...DATA.classes.map((name, i) => {
    const button = document.createElement("button");
    button.textContent = name;
    button.onclick = () => { setClass(i); show(); };
    return button;
  }));
  setClass(label);
}

// An image of one's own: drawn, chosen or dropped; scaled to the size of the data

function readDrawing() {
  const { data } = element("drawing").getContext("2d").getImageData(0, 0, width, height);
  const image = new Float32Array(channels * pixels);
  for (let i = 0; i < pixels; i++) {
    const [red, green, blue] = [data[4 * i] / 255, data[4 * i + 1] / 255, data[4 * i + 2] / 255];
    if (channels === 3) [image[i], image[i + pixels], image[i + 2 * pixels]] = [red, green, blue];
    else image[i] = 0.299 * red + 0.587 * green + 0.114 * blue;
  }
  if (DATA.binary) image.forEach((v, i) => { image[i] = Number(v > 0.5); });
  stopWalking();
  z = encode(image);
  paint(element("reconstruction"), decode(z));
  showSoon();
}

function clearDrawing() {
  const context = element("drawing").getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
}

async function readFile(file) {
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    element("time").textContent = `${file.name} is not an image that the browser can read`;
    return;
  }
  clearDrawing();
  // Covers the whole image, as the files that the model was trained on did.
  const scale = Math.max(width / picture.width, height / picture.height);
  const [w, h] = [picture.width * scale, picture.height * scale];
  const context = element("drawing").getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
  readDrawing();
}

function makeDrawing() {
  element("own").hidden = !encoder;
  if (!encoder) return;
  const canvas = element("drawing");
  for (const id of ["drawing", "reconstruction"]) setSize(element(id), width, height);
  clearDrawing();
  paint(element("reconstruction"), decode(z));
  thumbnails.decode().then(() => drawThumbnail(canvas, 0)); // the image that the page starts at
  element("clear").onclick = () => { clearDrawing(); readDrawing(); };
  let last = null;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  };
  canvas.onpointerdown = (event) => {
    last = place(event);
    canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    if (!last) return;
    const context = canvas.getContext("2d");
    const next = place(event);
    context.strokeStyle = "#fff";
    context.lineWidth = width / 11;
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...next);
    context.stroke();
    last = next;
    readDrawing();
  };
  canvas.onpointerup = canvas.onpointercancel = () => { last = null; };
  element("choose").onclick = () => element("file").click();
  element("file").onchange = () => readFile(element("file").files[0]);
  const hover = (isOver) => (event) => {
    event.preventDefault();
    element("own").classList.toggle("over", isOver);
  };
  addEventListener("dragenter", hover(true));
  addEventListener("dragover", hover(true));
  addEventListener("dragleave", hover(false));
  addEventListener("drop", (event) => {
    hover(false)(event);
    if (event.dataTransfer.files[0]) readFile(event.dataTransfer.files[0]);
  });
}

// Start

function makeButtons() {
  element("random").hidden = !DATA.canSample;
  element("random").onclick = () => { stopWalking(); glide(randomLatent()); };
  element("middle").hidden = element("walk").hidden = !isVector;
  element("middle").onclick = () => { stopWalking(); glide(Float32Array.from(DATA.middle)); };
  element("walk").onclick = walk;
  element("save").onclick = () => {
    const link = document.createElement("a");
    link.href = element("decoded").toDataURL();
    link.download = "decoded.png";
    link.click();
  };
}

// The largest difference from what PyTorch has decoded.
function checkProbe() {
  const [before, labelBefore] = [z, label];
  [z, label] = [Float32Array.from(DATA.probe.latent), DATA.probe.label];
  const image = decode(z);
  [z, label] = [before, labelBefore];
  return DATA.probe.image.reduce((most, v, i) => Math.max(most, Math.abs(v - image[i])), 0);
}

element("title").textContent = DATA.title;
element("subtitle").textContent = DATA.subtitle;
setSize(element("decoded"), width, height);
makeClasses();
makeButtons();
if (isVector) makeSliders();
else makeCodes();
makePlot();
makePlane();
makeDrawing();
show();
element("footer").textContent =
  `${DATA.footer} Largest difference between this page and PyTorch on a probe: ${checkProbe().toExponential(1)}.`;
matchMedia("(prefers-color-scheme: dark)").onchange = show;
document.body.dataset.ready = performance.now().toFixed(0);
