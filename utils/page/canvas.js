// Pictures on canvases, colours, and work that is spread over the frames of the screen.

export const element = (id) => document.getElementById(id);
export const signed = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
/** A number of nats as text; of a loss that is no likelihood without the unit. */
export const inNats = (value, isLikelihood = true) =>
  value === null ? "–" : `${signed(value, 1)}${isLikelihood ? " nats" : ""}`;
export const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const PALETTE = [ // each at least 3 : 1 from light and from dark paper
  "#4a78b0", "#d0701f", "#d24b4b", "#2f8f8a", "#4f9440", "#a08112", "#a26cb0", "#dc5c93", "#8c6a55", "#7d8084",
];

/** The colour of label number `label` of so many. */
export function labelColour(label, labels) {
  return labels <= PALETTE.length ? PALETTE[label] : `hsl(${Math.round((label * 360) / labels)} 45% 55%)`;
}

/** Brightnesses (H W C numbers in [0, 1]) as pixels. */
export function toPixels(x, [height, width, channels]) {
  const pixels = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = 255 * x[channels === 3 ? 3 * i + c : i];
    pixels.data[4 * i + 3] = 255;
  }
  return pixels;
}

/** Pixels as brightnesses; to one channel by the weights of Rec. 601, as Pillow does. */
export function fromPixels({ data }, channels) {
  const x = new Float32Array((data.length / 4) * channels);
  for (let i = 0; i < data.length / 4; i++) {
    const [red, green, blue] = data.subarray(4 * i, 4 * i + 3);
    if (channels === 3) x.set([red / 255, green / 255, blue / 255], 3 * i);
    else x[i] = red === green && green === blue ? red / 255 : (0.299 * red + 0.587 * green + 0.114 * blue) / 255;
  }
  return x;
}

/** Set the size of a canvas in pixels, which also clears it. */
export function resize(canvas, width, height) {
  canvas.width = width;
  canvas.height = height;
}

/** Draw an image on a canvas; `label` is what it is called for those who do not see it. */
export function paint(canvas, x, shape, label) {
  if (canvas.width !== shape[1] || canvas.height !== shape[0]) resize(canvas, shape[1], shape[0]);
  canvas.getContext("2d").putImageData(toPixels(x, shape), 0, 0);
  if (label) canvas.setAttribute("aria-label", label);
}

/** A function (number, x) that draws an image on a canvas in rows of `columns`, a pixel apart. */
export function gridOn(canvas, rows, columns, shape, label) {
  const [height, width] = shape;
  resize(canvas, columns * (width + 1) - 1, rows * (height + 1) - 1);
  canvas.setAttribute("aria-label", label);
  const context = canvas.getContext("2d");
  return (number, x) => {
    const left = (number % columns) * (width + 1), top = Math.floor(number / columns) * (height + 1);
    context.putImageData(toPixels(x, shape), left, top);
  };
}

/** The context of a canvas that is as fine as the screen, to draw on in CSS pixels. */
export function fineContext(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas, ratio = window.devicePixelRatio || 1;
  resize(canvas, Math.round(width * ratio), Math.round(height * ratio));
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}

/** A function that does `work` once in the next frame, with the newest arguments, however often it is called. */
export function inFrame(work) {
  let newest = null;
  return (...given) => {
    if (!newest) requestAnimationFrame(() => {
      const latest = newest;
      newest = null;
      work(...latest);
    });
    newest = given;
  };
}

let waiting = null;

/** Have a screen reader say something, once nothing has changed for half a second. */
export function announce(text) {
  clearTimeout(waiting);
  waiting = setTimeout(() => (element("spoken").textContent = text), 500);
}

const SLICE = 10; // milliseconds of work in a frame, so that the page still answers

/**
 * A function that has one(0), ..., one(count - 1) done, a slice of them in each frame.
 *
 * Called again before all are done, it goes on from where it is until each has been done once more: so none has to wait
 * for long while a slider moves.
 */
export function gradually(count, one) {
  let next = 0, left = 0;
  const slice = () => {
    const end = performance.now() + SLICE;
    for (; left && performance.now() < end; left--, next = (next + 1) % count) one(next);
    if (left) requestAnimationFrame(slice);
  };
  return () => {
    if (!left) requestAnimationFrame(slice);
    left = count;
  };
}
