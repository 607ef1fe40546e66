// What the page consists of; it starts here.

// Classes of a conditional model

const MOST_BUTTONS = 12; // more classes get a menu

function setClass(i) {
  label = i;
  [...element("classes").children].forEach((button, k) => button.setAttribute("aria-pressed", String(k === i)));
  element("class-menu").value = i;
  showOwnNote();
}

function makeClasses() {
  if (!DATA.conditional) return;
  const isMenu = DATA.classes.length > MOST_BUTTONS;
  element("classes").hidden = isMenu;
  element("class-row").hidden = !isMenu;
  const choose = (i) => {
    stopWalking();
    setClass(i);
    show();
  };
  DATA.classes.forEach((name, i) => {
    if (isMenu) {
      element("class-menu").add(new Option(name, i));
      return;
    }
    const button = document.createElement("button");
    button.textContent = name;
    button.onclick = () => choose(i);
    element("classes").append(button);
  });
  element("class-menu").onchange = () => choose(Number(element("class-menu").value));
  setClass(label);
}

// Buttons

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

// The largest differences from what PyTorch has decoded and encoded.
function checkProbe() {
  const { latent, label: of, image, encoded } = DATA.probe;
  const difference = (a, b) => a.reduce((most, v, i) => Math.max(most, Math.abs(v - b[i])), 0).toExponential(1);
  const decoded = difference(image, decode(Float32Array.from(latent), of));
  if (!encoder) return `${decoded} in the decoded image`;
  const output = run(encoder, Float32Array.from(image), ...condition(of));
  return `${decoded} in the decoded image, ${difference(encoded, output)} in what the encoder returns`;
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
  `${DATA.footer} Largest difference from PyTorch on a probe: ${checkProbe()}.`;
matchMedia("(prefers-color-scheme: dark)").onchange = show;
document.body.dataset.ready = performance.now().toFixed(0);
