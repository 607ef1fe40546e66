// The plot of latents, and the decoded plane behind it.

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
  context.font = `${(12 * SIDE) / element("plot").clientWidth}px system-ui`;
  if (isVector) drawGrid(context, x, y, ink, overImages);
  context.globalAlpha = overImages ? 0.55 : 0.7;
  if (element("show-points").checked)
    for (let i = 0; i < count; i++) {
      context.fillStyle = labels ? colorOf(labels[i]) : COLORS[0];
      context.beginPath();
      context.arc(toPlot(coordinate(i, x), x), SIDE - toPlot(coordinate(i, y), y), 5, 0, 7);
      context.fill();
    }
  context.globalAlpha = 0.9;
  context.fillStyle = ink;
  context.textAlign = "right";
  const [nameX, nameY] = isVector ? [`z${x}`, `z${y}`] : DATA.axes;
  write(context, nameX, SIDE - 14, SIDE - (isVector ? 44 : 18), overImages);
  context.textAlign = "left";
  context.textBaseline = "top";
  write(context, nameY, 14, 14, overImages);
  context.textBaseline = "alphabetic";
  context.globalAlpha = 1;
  if (!isVector) return;
  const [markX, markY] = [toPlot(z[x], x), SIDE - toPlot(z[y], y)];
  if (overImages) drawMarker(context, markX, markY, "#000000", 9);
  drawMarker(context, markX, markY, ink, 4);
}

// Writes text; over images, with a dark outline.
function write(context, text, x, y, overImages) {
  if (overImages) {
    context.strokeStyle = "#000000";
    context.lineWidth = 6;
    context.lineJoin = "round";
    context.strokeText(text, x, y);
  }
  context.fillText(text, x, y);
}

// Round values within a range, about five of them.
function ticksOf(axis) {
  const [low, high] = spanOf(axis);
  const power = 10 ** Math.floor(Math.log10((high - low) / 5));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((s) => (high - low) / s <= 10);
  const first = Math.ceil(low / step + 0.3);
  const count = Math.floor(high / step - 0.3) - first + 1;
  return Array.from({ length: Math.max(0, count) }, (_, i) => (first + i) * step);
}

function drawGrid(context, x, y, ink, overImages) {
  const label = (value) => String(Number(value.toPrecision(6))).replace("-", "\u2212");
  context.fillStyle = ink;
  const line = (value, ...ends) => {
    context.strokeStyle = ink;
    context.lineWidth = 1;
    context.globalAlpha = value === 0 ? 0.3 : 0.1;
    context.beginPath();
    context.moveTo(ends[0], ends[1]);
    context.lineTo(ends[2], ends[3]);
    if (!overImages) context.stroke();
    context.globalAlpha = overImages ? 0.9 : 0.65;
  };
  context.textAlign = "center";
  for (const value of ticksOf(x)) {
    const at = toPlot(value, x);
    line(value, at, 0, at, SIDE);
    write(context, label(value), at, SIDE - 10, overImages);
  }
  context.textAlign = "left";
  for (const value of ticksOf(y)) {
    const at = SIDE - toPlot(value, y);
    line(value, 0, at, SIDE, at);
    write(context, label(value), 8, at - 6, overImages);
  }
}

function drawMarker(context, x, y, color, lineWidth) {
  context.lineWidth = lineWidth;
  context.strokeStyle = color;
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
  const isThere = nearest < DATA.thumbnails.count;
  if (isThere) drawThumbnail(element("original"), nearest);
  else paint(element("original"), decode(latentOf(nearest), labels ? labels[nearest] : label));
  const known = labels && labels[nearest] >= 0 ? DATA.classes[labels[nearest]] : "";
  const parts = [known, DATA.names ? DATA.names[nearest] : "", isThere ? "" : "decoded"];
  element("original-name").textContent = parts.filter(Boolean).join(" · ");
  const left = event.clientX - box.left;
  tooltip.style.left = `${left > box.width - 120 ? left - 112 : left + 16}px`;
  tooltip.style.top = `${Math.max(0, event.clientY - box.top - 60)}px`;
}

function makePlot() {
  setSize(element("plot"), SIDE, SIDE);
  setSize(element("original"), width, height);
  const plot = element("plot");
  let isDragged = false;
  let start = null; // where a pointer went down, until it goes up
  // A click, not a press: a finger that scrolls the page presses, too.
  plot.onclick = (event) => {
    const place = pointed(event);
    if (!isDragged && place.nearest >= 0) goToImage(place.nearest);
    else if (!isDragged && isVector) moveInPlane(place);
    isDragged = false;
  };
  plot.onpointerdown = (event) => {
    start = [event.clientX, event.clientY];
    isDragged = false;
  };
  plot.onpointermove = (event) => {
    if (!start || !isVector) {
      showTooltip(event);
      return;
    }
    const [right, down] = [Math.abs(event.clientX - start[0]), Math.abs(event.clientY - start[1])];
    const isScroll = event.pointerType === "touch" && down >= right;
    if (!isDragged && (isScroll || Math.hypot(right, down) < 4)) return;
    if (!isDragged) plot.setPointerCapture(event.pointerId);
    isDragged = true;
    element("tooltip").hidden = true;
    moveInPlane(pointed(event));
  };
  plot.onpointerup = plot.onpointercancel = () => { start = null; };
  plot.onpointerleave = () => { element("tooltip").hidden = true; };
  element("show-points").onchange = show;
  for (const label of document.querySelectorAll(".axis")) label.hidden = !isVector;
  element("plane-option").hidden = !isVector;
  element("hint").textContent = isVector
    ? "Click a point to go to its latent. Click or drag elsewhere to move in these two dimensions only."
    : "Click a point to go to its latent.";
  if (!labels) return;
  const used = [...new Set(labels)].filter((i) => i >= 0).sort((a, b) => a - b);
  element("legend").append(...used.slice(0, COLORS.length).map((i) => {
    const key = document.createElement("span");
    const dot = document.createElement("i");
    key.className = "key";
    dot.style.background = colorOf(i);
    key.append(dot, DATA.classes[i] ?? String(i));
    return key;
  }));
  if (used.length > COLORS.length) element("legend").append(`and ${used.length - COLORS.length} more`);
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
