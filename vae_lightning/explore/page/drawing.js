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
  showOwnNote();
  z = encode(image);
  paint(element("reconstruction"), decode(z));
  showSoon();
}

function showOwnNote() {
  element("own-note").textContent = DATA.conditional ? `Images are encoded as class ${DATA.classes[label]}.` : "";
}

function clearDrawing() {
  const context = element("drawing").getContext("2d", { willReadFrequently: true });
  context.fillStyle = DATA.background;
  context.fillRect(0, 0, width, height);
}

async function readFile(file) {
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    element("own-note").textContent = `${file.name} is not an image that the browser can read.`;
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
  const [red, green, blue] = canvas.getContext("2d").getImageData(0, 0, 1, 1).data;
  element("pen").value = red + green + blue > 382 ? "#000000" : "#ffffff";
  element("pen-option").hidden = channels === 1;
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
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const next = place(event);
    context.strokeStyle = element("pen").value;
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
