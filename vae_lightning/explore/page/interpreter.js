// Runs a graph of core ATen operators, as torch.export writes it, on Float32Arrays.
"use strict";

const sizeOf = (shape) => shape.reduce((product, n) => product * n, 1);
const tensor = (shape, data = new Float32Array(sizeOf(shape))) => ({ shape, data });
const wrapped = (dim, rank) => (dim < 0 ? dim + rank : dim);

// Steps in memory of a shape that is broadcast to another one.
function stepsOf(shape, target = shape) {
  const steps = new Array(target.length).fill(0);
  let step = 1;
  for (let i = shape.length - 1, j = target.length - 1; i >= 0; i--, j--) {
    if (shape[i] !== 1) steps[j] = step;
    step *= shape[i];
  }
  return steps;
}

// Copies elements of x that lie `steps` apart into a new tensor.
function gather(x, shape, steps, start = 0) {
  const y = tensor(shape);
  const index = new Int32Array(shape.length);
  let from = start;
  for (let i = 0; i < y.data.length; i++) {
    y.data[i] = x.data[from];
    for (let k = shape.length - 1; k >= 0; k--) {
      from += steps[k];
      if (++index[k] < shape[k]) break;
      from -= steps[k] * shape[k];
      index[k] = 0;
    }
  }
  return y;
}

const expand = (x, shape) => gather(x, shape, stepsOf(x.shape, shape));

const unary = (f) => (x) => {
  const y = tensor(x.shape);
  for (let i = 0; i < y.data.length; i++) y.data[i] = f(x.data[i]);
  return y;
};

function broadcastShape(a, b) {
  const rank = Math.max(a.length, b.length);
  const size = (shape, i) => shape[shape.length - rank + i] ?? 1;
  return Array.from({ length: rank }, (_, i) => (size(a, i) === 1 ? size(b, i) : size(a, i)));
}

const binary = (f) => (a, b) => {
  if (typeof b === "number") return unary((v) => f(v, b))(a);
  if (typeof a === "number") return unary((v) => f(a, v))(b);
  if (String(a.shape) !== String(b.shape)) {
    const shape = broadcastShape(a.shape, b.shape);
    a = expand(a, shape);
    b = expand(b, shape);
  }
  const y = tensor(a.shape);
  for (let i = 0; i < y.data.length; i++) y.data[i] = f(a.data[i], b.data[i]);
  return y;
};

// out += a @ b for a (m, k), b (k, n): two rows and four terms at a time, 7 times faster than one.
function multiply(a, b, m, k, n, out) {
  for (let i = 0; i < m; i += 2) {
    const two = i + 1 < m;
    const row = i * n;
    const next = row + n;
    let l = 0;
    for (; l + 3 < k; l += 4) {
      const p = i * k + l;
      const r = two ? p + k : p;
      const q = l * n;
      const a0 = a[p], a1 = a[p + 1], a2 = a[p + 2], a3 = a[p + 3];
      const c0 = a[r], c1 = a[r + 1], c2 = a[r + 2], c3 = a[r + 3];
      for (let j = 0; j < n; j++) {
        const b0 = b[q + j], b1 = b[q + n + j], b2 = b[q + 2 * n + j], b3 = b[q + 3 * n + j];
        out[row + j] += a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3;
        if (two) out[next + j] += c0 * b0 + c1 * b1 + c2 * b2 + c3 * b3;
      }
    }
    for (; l < k; l++)
      for (let h = i; h < Math.min(i + 2, m); h++)
        for (let j = 0; j < n; j++) out[h * n + j] += a[h * k + l] * b[l * n + j];
  }
}

function matmul(a, b) {
  const [k, n] = b.shape;
  const m = a.data.length / k;
  const y = tensor([...a.shape.slice(0, -1), n]);
  multiply(a.data, b.data, m, k, n, y.data);
  return y;
}

const addmm = (bias, a, b) => OPERATORS["add.Tensor"](matmul(a, b), bias);

function convolution(x, w, bias, stride, padding, dilation, transposed, outPadding, groups) {
  if (groups !== 1 || x.shape.length !== 4) throw Error("only 2-D convolutions in one group");
  const [batch, channels, height, width] = x.shape;
  const [kernelH, kernelW] = w.shape.slice(2);
  const outChannels = transposed ? w.shape[1] : w.shape[0];
  const outSize = (n, i) => {
    const reach = dilation[i] * (w.shape[2 + i] - 1);
    return transposed
      ? (n - 1) * stride[i] - 2 * padding[i] + reach + outPadding[i] + 1
      : Math.floor((n + 2 * padding[i] - reach - 1) / stride[i]) + 1;
  };
  const y = tensor([batch, outChannels, outSize(height, 0), outSize(width, 1)]);
  // Both directions connect a large map, on the side of the image, with a small one.
  const [large, small] = transposed ? [y, x] : [x, y];
  const [, maps, largeH, largeW] = large.shape;
  const [, smallMaps, smallH, smallW] = small.shape;
  const places = smallH * smallW;
  const patch = maps * kernelH * kernelW;

  // Adds a map to the columns of its patches, (patch, places), or the columns to the map.
  const move = (map, columns, toMap) => {
    for (let c = 0, row = 0; c < maps; c++)
      for (let i = 0; i < kernelH; i++)
        for (let j = 0; j < kernelW; j++, row++)
          for (let a = 0; a < smallH; a++) {
            const line = a * stride[0] - padding[0] + i * dilation[0];
            if (line < 0 || line >= largeH) continue;
            const pixels = (c * largeH + line) * largeW;
            const entries = row * places + a * smallW;
            let column = j * dilation[1] - padding[1];
            for (let b = 0; b < smallW; b++, column += stride[1]) {
              if (column < 0 || column >= largeW) continue;
              if (toMap) map[pixels + column] += columns[entries + b];
              else columns[entries + b] = map[pixels + column];
            }
          }
  };
  if (transposed && !w.turned) {
    w.turned = new Float32Array(patch * smallMaps);
    for (let c = 0; c < smallMaps; c++)
      for (let r = 0; r < patch; r++) w.turned[r * smallMaps + c] = w.data[c * patch + r];
  }
  for (let n = 0; n < batch; n++) {
    const input = x.data.subarray(n * channels * height * width, (n + 1) * channels * height * width);
    const output = y.data.subarray((n * y.data.length) / batch, ((n + 1) * y.data.length) / batch);
    const plane = output.length / outChannels;
    if (bias)
      for (let o = 0; o < outChannels; o++) output.fill(bias.data[o], o * plane, (o + 1) * plane);
    const columns = new Float32Array(patch * places);
    if (transposed) {
      multiply(w.turned, input, patch, smallMaps, places, columns);
      move(output, columns, true);
    } else {
      move(input, columns, false);
      multiply(w.data, columns, outChannels, patch, places, output);
    }
  }
  return y;
}

function slice(x, dim = 0, start = 0, end = Infinity, step = 1) {
  dim = wrapped(dim, x.shape.length);
  const n = x.shape[dim];
  const clip = (i) => Math.max(0, Math.min(n, i < 0 ? i + n : i));
  const [first, last] = [clip(start ?? 0), clip(end ?? n)];
  const shape = x.shape.slice();
  shape[dim] = Math.max(0, Math.ceil((last - first) / step));
  const steps = stepsOf(x.shape);
  const offset = first * steps[dim];
  steps[dim] *= step;
  return gather(x, shape, steps, offset);
}

function select(x, dim, i) {
  dim = wrapped(dim, x.shape.length);
  i = wrapped(i, x.shape[dim]);
  const y = slice(x, dim, i, i + 1);
  return tensor(y.shape.filter((_, d) => d !== dim), y.data);
}

function concatenate(parts, dim = 0) {
  dim = wrapped(dim, parts[0].shape.length);
  const shape = parts[0].shape.slice();
  shape[dim] = parts.reduce((n, x) => n + x.shape[dim], 0);
  const y = tensor(shape);
  const outer = sizeOf(shape.slice(0, dim));
  let at = 0;
  for (let o = 0; o < outer; o++)
    for (const x of parts) {
      const n = x.data.length / outer;
      y.data.set(x.data.subarray(o * n, (o + 1) * n), at);
      at += n;
    }
  return y;
}

function pad(x, sizes, value = 0) {
  const rank = x.shape.length;
  const shape = x.shape.slice();
  const before = new Array(rank).fill(0);
  for (let i = 0; i < sizes.length / 2; i++) {
    before[rank - 1 - i] = sizes[2 * i];
    shape[rank - 1 - i] += sizes[2 * i] + sizes[2 * i + 1];
  }
  const y = tensor(shape);
  y.data.fill(value);
  const steps = stepsOf(x.shape);
  const index = new Int32Array(rank);
  for (let i = 0; i < y.data.length; i++) {
    let from = 0;
    for (let k = 0; k < rank && from >= 0; k++) {
      const place = index[k] - before[k];
      from = place >= 0 && place < x.shape[k] ? from + place * steps[k] : -1;
    }
    if (from >= 0) y.data[i] = x.data[from];
    for (let k = rank - 1; k >= 0; k--) {
      if (++index[k] < shape[k]) break;
      index[k] = 0;
    }
  }
  return y;
}

// Abramowitz and Stegun, formula 7.1.26: errors below 1.5e-7.
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t
    + 0.254829592) * t;
  const y = 1 - series * Math.exp(-x * x);
  return x < 0 ? -y : y;
}

const sigmoid = (v) => 1 / (1 + Math.exp(-v));

function unsqueeze(x, dim) {
  const shape = x.shape.slice();
  shape.splice(wrapped(dim, shape.length + 1), 0, 1);
  return tensor(shape, x.data);
}

function permute(x, dims) {
  const steps = stepsOf(x.shape);
  dims = dims.map((d) => wrapped(d, x.shape.length));
  return gather(x, dims.map((d) => x.shape[d]), dims.map((d) => steps[d]));
}

function split(x, sizes, dim = 0) {
  let at = 0;
  return sizes.map((n) => slice(x, dim, at, (at += n)));
}

function where(condition, a, b) {
  const scalar = (v) => (typeof v === "number" ? tensor([], Float32Array.of(v)) : v);
  [a, b] = [scalar(a), scalar(b)];
  const shape = broadcastShape(condition.shape, broadcastShape(a.shape, b.shape));
  [condition, a, b] = [condition, a, b].map((x) => expand(x, shape));
  const y = tensor(shape);
  for (let i = 0; i < y.data.length; i++) y.data[i] = condition.data[i] ? a.data[i] : b.data[i];
  return y;
}

function reduce(f, start, x, dims, keep = false) {
  dims = dims.map((d) => wrapped(d, x.shape.length));
  const shape = x.shape.map((n, i) => (dims.includes(i) ? 1 : n));
  const y = tensor(shape);
  y.data.fill(start);
  // Each element of x is taken in at the place to which its result is broadcast.
  const places = expand(tensor(shape, Float32Array.from(y.data, (_, i) => i)), x.shape).data;
  for (let i = 0; i < x.data.length; i++) {
    y.data[places[i]] = f(y.data[places[i]], x.data[i]);
  }
  return keep ? y : tensor(x.shape.filter((_, i) => !dims.includes(i)), y.data);
}

const sum = (x, dims, keep) => reduce((a, b) => a + b, 0, x, dims, keep);

function softmax(x, dim) {
  const largest = reduce(Math.max, -Infinity, x, [dim], true);
  const y = binary((a, b) => Math.exp(a - b))(x, largest);
  return binary((a, b) => a / b)(y, sum(y, [dim], true));
}

// Normalizes the last dimensions of x, which have the given shape.
function layerNorm(x, shape, weight, bias, epsilon) {
  const n = sizeOf(shape);
  const y = tensor(x.shape);
  for (let at = 0; at < x.data.length; at += n) {
    const values = x.data.subarray(at, at + n);
    const mean = values.reduce((total, v) => total + v, 0) / n;
    const variance = values.reduce((total, v) => total + (v - mean) ** 2, 0) / n;
    for (let i = 0; i < n; i++)
      y.data[at + i] = ((values[i] - mean) / Math.sqrt(variance + epsilon))
        * (weight ? weight.data[i] : 1) + (bias ? bias.data[i] : 0);
  }
  return [y];
}

const same = (x) => x;

const OPERATORS = {
  "_softmax.default": softmax,
  "abs.default": unary(Math.abs),
  "add.Tensor": binary((a, b) => a + b),
  "addmm.default": addmm,
  "alias.default": same,
  "cat.default": concatenate,
  "clamp.default": (x, low, high) =>
    unary((v) => Math.min(high ?? Infinity, Math.max(low ?? -Infinity, v)))(x),
  "clone.default": same,
  "constant_pad_nd.default": pad,
  "convolution.default": convolution,
  "div.Tensor": binary((a, b) => a / b),
  "exp.default": unary(Math.exp),
  "expand.default": (x, shape) => {
    const missing = shape.length - x.shape.length;
    return expand(x, shape.map((n, i) => (n < 0 ? x.shape[i - missing] : n)));
  },
  "expm1.default": unary(Math.expm1),
  "gelu.default": unary((v) => 0.5 * v * (1 + erf(v * Math.SQRT1_2))),
  "getitem": (list, i) => list[i],
  "gt.Scalar": binary((a, b) => Number(a > b)),
  "leaky_relu.default": (x, slope = 0.01) => unary((v) => (v > 0 ? v : slope * v))(x),
  "le.Scalar": binary((a, b) => Number(a <= b)),
  "log.default": unary(Math.log),
  "log1p.default": unary(Math.log1p),
  "lt.Scalar": binary((a, b) => Number(a < b)),
  "minimum.default": binary(Math.min),
  "mm.default": matmul,
  "mul.Tensor": binary((a, b) => a * b),
  "native_layer_norm.default": layerNorm,
  "neg.default": unary((v) => -v),
  "permute.default": permute,
  "pow.Tensor_Scalar": binary(Math.pow),
  "reciprocal.default": unary((v) => 1 / v),
  "relu.default": unary((v) => (v > 0 ? v : 0)),
  "scalar_tensor.default": (v) => tensor([], Float32Array.of(v)),
  "select.int": select,
  "sigmoid.default": unary(sigmoid),
  "slice.Tensor": slice,
  "split_with_sizes.default": split,
  "sqrt.default": unary(Math.sqrt),
  "squeeze.dims": (x, dims) => {
    dims = dims.map((d) => wrapped(d, x.shape.length));
    return tensor(x.shape.filter((n, i) => n !== 1 || !dims.includes(i)), x.data);
  },
  "sub.Tensor": binary((a, b) => a - b),
  "sum.dim_IntList": sum,
  "tanh.default": unary(Math.tanh),
  "unsqueeze.default": unsqueeze,
  "view.default": (x, shape) => {
    const known = shape.reduce((product, n) => (n < 0 ? product : product * n), 1);
    return tensor(shape.map((n) => (n < 0 ? x.data.length / known : n)), x.data);
  },
  "where.self": where,
};

// Runs a network on Float32Arrays, one for each input.
function run(network, ...inputs) {
  const values = Object.create(network.weights);
  network.inputs.forEach((x, i) => { values[x.name] = tensor(x.shape, inputs[i]); });
  const resolve = (argument) => {
    if (Array.isArray(argument)) return argument.map(resolve);
    if (argument !== null && typeof argument === "object") return values[argument.node];
    return argument;
  };
  for (const node of network.nodes)
    values[node.name] = OPERATORS[node.operator](...node.arguments.map(resolve));
  return values[network.output].data;
}

function bufferOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes.buffer;
}

function floatOfHalf(h) {
  const exponent = (h >> 10) & 31;
  const fraction = h & 1023;
  const sign = h & 32768 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 25) * (1024 + fraction) : sign * 2 ** -24 * fraction;
}

// All numbers of half precision: looking them up is faster than computing them.
const HALVES = Float32Array.from({ length: 65536 }, (_, h) => floatOfHalf(h));

// Reads an array from base64: little-endian, as all machines with browsers are.
function unpack({ type, shape, data }) {
  const buffer = bufferOf(data);
  if (type === "uint8") return tensor(shape, new Uint8Array(buffer));
  if (type === "float32") return tensor(shape, new Float32Array(buffer));
  const numbers = new Uint16Array(buffer);
  if (type === "uint16") return tensor(shape, numbers);
  return tensor(shape, Float32Array.from(numbers, (h) => HALVES[h]));
}

// Reads the weights of a network once.
function load(network) {
  const weights = Object.entries(network.weights).map(([name, array]) => [name, unpack(array)]);
  return { ...network, weights: Object.fromEntries(weights) };
}
