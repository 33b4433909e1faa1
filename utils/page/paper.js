// The paper: what is drawn by hand or read from a file becomes an image as the model expects it.
import { element, fromPixels, paint, resize } from "./canvas.js";

const SIDE = 280; // pixels of the longer side of the paper, about; of larger images as many as they have
const PEN = 0.075; // width of a stroke, as a part of that side
const BOX = 20; // pixels: MNIST's digits were scaled to this box, and their centre of mass put in the middle of 28 x 28
const FAINT = 0.15; // brightness below which paper counts as empty
const MOST_MOVED = 4; // pixels from the middle of the image: the box stays within it

/** Calls changed() when there is something new on the paper: then `seen()` is the image, and `remarks()` says how. */
export function createPaper(about, changed) {
  const { shape, centred, binary } = about, [height, width, channels] = shape;
  const canvas = element("paper"), scale = Math.max(1, Math.round(SIDE / Math.max(height, width)));
  resize(canvas, width * scale, height * scale);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const small = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  const whole = [0, 0, canvas.width, canvas.height];
  let isPlaced = false; // it lies as the model expects it, and is not to be centred
  let isSample = false; // it was put there for a start, and goes when something is drawn
  let remark = "", last = null, pointer = null, reading = 0;

  // --- from the paper to an image ---
  function seen() {
    const found = centred && !isPlaced ? centredInk() : shrunk();
    return binary ? found.map((value) => (value >= 0.5 ? 1 : 0)) : found;
  }

  /** The mean of each square of the paper that is one pixel of the image. */
  function shrunk() {
    const fine = fromPixels(context.getImageData(...whole), channels);
    const found = new Float32Array(height * width * channels);
    fine.forEach((value, i) => {
      const c = i % channels, pixel = (i - c) / channels, column = pixel % canvas.width;
      const row = (pixel - column) / canvas.width;
      const at = Math.floor(row / scale) * width + Math.floor(column / scale);
      found[at * channels + c] += value / (scale * scale);
    });
    return found;
  }

  /** The box around all that is drawn, [left, top, width, height]; null if the paper is empty. */
  function boxOfInk() {
    let [left, top, right, bottom] = [Infinity, Infinity, -1, -1];
    fromPixels(context.getImageData(...whole), 1).forEach((value, i) => {
      if (value < FAINT) return;
      const x = i % canvas.width, y = Math.floor(i / canvas.width);
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
    });
    return right < 0 ? null : [left, top, right - left + 1, bottom - top + 1];
  }

  /** What is drawn, scaled to a box of 20 x 20 and moved so that its centre of mass is in the middle. */
  function centredInk() {
    const box = boxOfInk();
    if (!box) return new Float32Array(height * width);
    const sizes = box.slice(2).map((side) => (side * BOX) / Math.max(box[2], box[3]));
    const put = (x, y) => {
      small.fillStyle = "#000";
      small.fillRect(0, 0, width, height);
      small.imageSmoothingQuality = "high";
      small.drawImage(canvas, ...box, x, y, ...sizes);
      return fromPixels(small.getImageData(0, 0, width, height), 1);
    };
    const corner = [(width - sizes[0]) / 2, (height - sizes[1]) / 2];
    const mass = [0, 0, 0]; // times x, times y, alone
    put(...corner).forEach((value, i) => {
      mass[0] += value * (i % width);
      mass[1] += value * Math.floor(i / width);
      mass[2] += value;
    });
    const moved = [width, height].map((side, axis) => {
      const way = Math.round(side / 2 - mass[axis] / mass[2]); // in MNIST it is pixel 14 of 0 to 27
      return corner[axis] + Math.max(-MOST_MOVED, Math.min(MOST_MOVED, way));
    });
    return put(...moved);
  }

  function remarks() {
    const words = [remark];
    const isEmpty = centred && !isPlaced && !boxOfInk();
    if (isEmpty) words.push("The paper is empty.");
    else if (centred && !isPlaced) words.push("Centred and scaled as MNIST's digits were.");
    const isBinarised = binary && !isSample && !isEmpty;
    if (isBinarised) words.push("White from half brightness on, because the run knows only black and white.");
    return words.filter(Boolean).join(" ");
  }

  // --- what is put on it ---
  function clear() {
    context.fillStyle = "#000";
    context.fillRect(...whole);
    [isPlaced, isSample, remark] = [false, false, ""];
  }

  /** Put an image (H W C) on the paper, as it is; a sample goes when something is drawn. */
  function take(x, words, asSample = false) {
    const picture = document.createElement("canvas");
    paint(picture, x, shape);
    clear();
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, ...whole);
    context.imageSmoothingEnabled = true;
    [isPlaced, isSample, remark] = [true, asSample, words];
    changed();
  }

  async function read(file) {
    const mine = ++reading;
    let picture;
    try {
      picture = await createImageBitmap(file);
    } catch {
      element("draw-note").textContent = `${file.name} is not a picture that this browser can read.`;
      return;
    }
    if (mine !== reading) return; // another one was chosen meanwhile
    clear();
    const isExact = picture.width === width && picture.height === height;
    // As training cuts pictures: perhaps a square from the middle; then all of it, or as much as has the shape.
    const sides = [picture.width, picture.height], square = Math.min(about.crop, ...sides);
    const cut = about.crop && !isExact ? [square, square] : sides, keepsAll = centred || about.fit === "pad";
    const fits = [canvas.width / cut[0], canvas.height / cut[1]];
    const fit = keepsAll ? Math.min(...fits) : Math.max(...fits), sizes = cut.map((side) => side * fit);
    const box = [(canvas.width - sizes[0]) / 2, (canvas.height - sizes[1]) / 2, ...sizes].map(Math.round);
    context.imageSmoothingEnabled = !isExact;
    context.imageSmoothingQuality = "high";
    context.fillStyle = "#fff"; // transparent parts become white, as in training
    context.fillRect(...box);
    context.drawImage(picture, (sides[0] - cut[0]) / 2, (sides[1] - cut[1]) / 2, ...cut, ...box);
    context.imageSmoothingEnabled = true;
    const isTurned = centred && makeInk(box, isExact);
    isPlaced = !centred || (isExact && !isTurned);
    const turned = isTurned ? " Dark on light: turned into white on black." : "";
    const isCut = !isExact && (about.crop || (!keepsAll && fits[0] !== fits[1]));
    remark = `${file.name}: ${isCut ? "the middle of " : ""}${sides.join(" x ")} pixels.${turned}`;
    changed();
  }

  /**
   * Make a photo in a box of the paper white ink on black; return whether it was dark on light.
   *
   * One that is exact, of an image's size, is left as it is if it is light on dark.
   */
  function makeInk(box, isExact) {
    const [left, top, wide, high] = box;
    const pixels = context.getImageData(left, top, Math.max(1, wide), Math.max(1, high));
    const grey = fromPixels(pixels, 1), [columns, rows] = [pixels.width, pixels.height];
    const isEnd = (k, count) => k === 0 || k === count - 1;
    const isBorder = (_, i) => isEnd(i % columns, columns) || isEnd(Math.floor(i / columns), rows);
    const border = grey.filter(isBorder).sort(), ground = border[border.length >> 1]; // the brightness of its paper
    const isTurned = ground > 0.5;
    if (isExact && !isTurned) return false;
    const far = grey.map((value) => (isTurned ? ground - value : value - ground));
    const most = far.reduce((a, b) => Math.max(a, b), FAINT); // what is fainter is no ink
    context.fillStyle = "#000";
    context.fillRect(...whole);
    far.forEach((value, i) => {
      const ink = Math.max(0, value / most);
      pixels.data.fill(ink < 2 * FAINT ? 0 : Math.round(255 * ink), 4 * i, 4 * i + 3);
    });
    context.putImageData(pixels, left, top);
    return isTurned;
  }

  // --- pen, buttons, files ---
  const where = (event) => {
    const box = canvas.getBoundingClientRect(), fine = canvas.width / (box.width - 2 * canvas.clientLeft);
    return [box.left, box.top].map((edge, axis) => {
      return ([event.clientX, event.clientY][axis] - edge - canvas.clientLeft) * fine;
    });
  };
  function stroke(event) {
    if (event.pointerId !== pointer) return; // one finger draws
    const next = where(event);
    const pen = PEN * Math.max(canvas.width, canvas.height);
    context.fillStyle = context.strokeStyle = channels === 3 ? element("brush").value : "#fff";
    context.lineWidth = pen;
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...next);
    context.stroke();
    for (const end of [last, next]) { // round, and a tap is a dot
      context.beginPath();
      context.arc(...end, pen / 2, 0, 2 * Math.PI);
      context.fill();
    }
    last = next;
    changed();
  }
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || pointer !== null) return;
    event.preventDefault();
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    if (isSample) clear();
    last = where(event);
    stroke(event);
  });
  canvas.addEventListener("pointermove", stroke);
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      if (event.pointerId === pointer) pointer = null;
    });
  }

  element("brush-choice").hidden = channels !== 3;
  element("clear").addEventListener("click", () => (clear(), changed()));
  element("file").addEventListener("change", (event) => {
    if (event.target.files.length) read(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  // A file may be dropped anywhere: beside the paper the browser would open it in place of this page.
  const marked = (isOver) => element("drop").classList.toggle("over", isOver);
  window.addEventListener("dragover", (event) => (event.preventDefault(), marked(true)));
  window.addEventListener("dragleave", () => marked(false));
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    marked(false);
    if (event.dataTransfer.files.length) read(event.dataTransfer.files[0]);
  });
  return { seen, remarks, take, hasSample: () => isSample };
}
