// Showing a latent, and moving to another one.

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
    for (let i = 0; i < size; i++) z[i] = (1 - share) * from[i] + share * target[i];
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
  // Samples of a conditional prior are sorted by class.
  const each = samples.length / size / (DATA.conditional ? DATA.classes.length : 1);
  const i = (DATA.conditional ? label * each : 0) + Math.floor(Math.random() * each);
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
