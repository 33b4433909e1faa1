// The forward pass: the layers of a Keras network, one image at a time, in plain JavaScript.
//
// An image is a Float32Array in Keras's order, H x W x C. A network is a list of steps, as utils/explore.py writes it:
// each takes some values by number and makes others. Value 0 is the input.

/** The values of all 65,536 float16 numbers: sign, 5 bits of exponent, 10 bits of fraction. */
function halves() {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
    table[bits] = bits >> 15 ? -size : size;
  }
  return table;
}

/** A function that reads a tensor {at, size, half} from the bytes of the page: float16 or float32, as Float32Array. */
export function tensorReader(bytes) {
  const table = halves();
  return ({ at, size, half }) => {
    if (!half) return new Float32Array(bytes, at, size);
    return Float32Array.from(new Uint16Array(bytes, at, size), (bits) => table[bits]);
  };
}

/** erf(x), within 1.5e-7 (Abramowitz & Stegun, 7.1.26). */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - tail * Math.exp(-x * x));
}

export const sigmoid = (x) => 1 / (1 + Math.exp(-x));

const ACTIVATIONS = {
  linear: null,
  relu: (x) => (x > 0 ? x : 0),
  gelu: (x) => (x / 2) * (1 + erf(x / Math.SQRT2)),
  silu: (x) => x / (1 + Math.exp(-x)),
  elu: (x) => (x > 0 ? x : Math.expm1(x)),
  tanh: Math.tanh,
  sigmoid,
};

function activate(y, name) {
  const activation = ACTIVATIONS[name];
  if (activation) for (let i = 0; i < y.length; i++) y[i] = activation(y[i]);
}

// --- layers: each writes its output into y ---------------------------------------------------------------------------
function dense({ kernel, bias, activation }, [x], [y]) {
  const units = y.length;
  y.set(bias);
  for (let i = 0, row = 0; i < x.length; i++, row += units) {
    const value = x[i];
    if (value !== 0) for (let j = 0; j < units; j++) y[j] += value * kernel[row + j];
  }
  activate(y, activation);
}

/** A convolution; `pad` zeros are above and to the left of the image. The kernel is (height, width, in, out). */
function conv({ kernel, bias, activation, from, to, size, strides, pad }, [x], [y]) {
  const [height, width, channels] = from, [rows, columns, filters] = to;
  for (let row = 0, out = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, out += filters) {
      for (let f = 0; f < filters; f++) y[out + f] = bias[f];
      for (let i = 0; i < size[0]; i++) {
        const top = row * strides[0] + i - pad[0];
        if (top < 0 || top >= height) continue;
        for (let j = 0; j < size[1]; j++) {
          const left = column * strides[1] + j - pad[1];
          if (left < 0 || left >= width) continue;
          let pixel = (top * width + left) * channels, weight = (i * size[1] + j) * channels * filters;
          for (let c = 0; c < channels; c++, pixel++, weight += filters) {
            const value = x[pixel];
            if (value !== 0) for (let f = 0; f < filters; f++) y[out + f] += value * kernel[weight + f];
          }
        }
      }
    }
  }
  activate(y, activation);
}

/** A transposed convolution: a pixel adds its part to all that its kernel covers, which is (.., .., out, in). */
function transposedConv({ kernel, bias, activation, from, to, size, strides, pad }, [x], [y]) {
  const [height, width, channels] = from, [rows, columns, filters] = to;
  for (let out = 0; out < y.length; out += filters) y.set(bias, out);
  for (let row = 0, pixel = 0; row < height; row++) {
    for (let column = 0; column < width; column++, pixel += channels) {
      for (let i = 0; i < size[0]; i++) {
        const top = row * strides[0] + i - pad[0];
        if (top < 0 || top >= rows) continue;
        for (let j = 0; j < size[1]; j++) {
          const left = column * strides[1] + j - pad[1];
          if (left < 0 || left >= columns) continue;
          const out = (top * columns + left) * filters;
          let weight = (i * size[1] + j) * filters * channels;
          for (let f = 0; f < filters; f++, weight += channels) {
            let sum = 0;
            for (let c = 0; c < channels; c++) sum += x[pixel + c] * kernel[weight + c];
            y[out + f] += sum;
          }
        }
      }
    }
  }
  activate(y, activation);
}

const LAYERS = {
  dense,
  conv,
  transposed_conv: transposedConv,
  reshape: (step, [x], [y]) => y.set(x), // the order of the numbers stays
  activation: (step, [x], [y]) => (y.set(x), activate(y, step.activation)),
  add: (step, [a, b], [y]) => a.forEach((value, i) => (y[i] = value + b[i])),
  split: (step, [x], parts) => parts.forEach((y, i) => y.set(x.subarray(i * y.length, (i + 1) * y.length))),
  pad: (step, [x], [y]) => y.set(x), // zeros follow
};

// --- a network -------------------------------------------------------------------------------------------------------
/**
 * A function: the input, a Float32Array -> the outputs, Float32Arrays that the next call overwrites.
 *
 * `steps` are [{layer, inputs, outputs, sizes, ...}], by the numbers of values; `results` are the numbers to return.
 */
export function readNetwork({ steps, results }, readTensor) {
  const values = [];
  const ready = steps.map((step) => {
    const loaded = { ...step };
    for (const name of ["kernel", "bias"]) if (step[name]) loaded[name] = readTensor(step[name]);
    step.outputs.forEach((number, i) => (values[number] = new Float32Array(step.sizes[i])));
    return loaded;
  });
  return (input) => {
    values[0] = input;
    for (const step of ready) {
      LAYERS[step.layer](step, step.inputs.map((i) => values[i]), step.outputs.map((i) => values[i]));
    }
    return results.map((number) => values[number]);
  };
}
