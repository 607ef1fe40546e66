// The data of the page, and the networks as functions of latents and images.

const DATA = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const COLORS = [ // of classes, readable on light and on dark ground
  "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f",
  "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#8a8a8a",
  "#a0cbe8", "#b6992d", "#d37295", "#499894", "#8cd17d",
  "#ffbe7d", "#8f6bd1", "#fabfd2", "#d7b5a6", "#6f7f3f",
];
const UNKNOWN = "#b5b5b5";
function colorOf(i) {
  if (i < 0) return UNKNOWN;
  return COLORS[i] ?? `hsl(${Math.round(i * 137.5) % 360} 60% 55%)`;
}

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
const condition = (of) => (DATA.conditional ? [oneHot(of, DATA.classes.length)] : []);

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

const decode = (latent, of = label) => run(decoder, decoderInput(latent), ...condition(of));

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
  const output = run(encoder, image, ...condition(label));
  if (isVector) return output.slice(0, size);
  if (DATA.kind === "categorical") {
    const variable = (_, i) => largest(output.slice(i * DATA.categories, (i + 1) * DATA.categories));
    return Float32Array.from({ length: size }, variable);
  }
  const [, dimensions] = codebook.shape;
  const vector = (place) => Float32Array.from({ length: dimensions }, (_, d) => output[d * size + place]);
  return Float32Array.from({ length: size }, (_, place) => nearestCode(vector(place)));
}
