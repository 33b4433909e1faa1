// The map: test images in a plane through the latent space. The place under the cursor is decoded.
import { announce, element, fineContext, gradually, inFrame, inNats } from "./canvas.js";
import { labelColour, paint, resize, signed, theme, toPixels } from "./canvas.js";
import { normals } from "./vae.js";

const MARKS = "Thick ring: the selected image. Blue dot: the sliders.";
const RINGS = "Thin rings: one and two standard deviations of an image's posterior.";
const NEAR = 12; // pixels from a point at which it counts as pointed at
const TILES = 22; // decoded images in a row behind the points
const FARTHEST = 4.5; // standard deviations of the prior, up to which they are drawn

/** The plane that is looked at: place(z) -> [x, y]; at(x, y, z) -> z moved within the plane to x, y; its names. */
function planeOf(about, readTensor, kind, [i, j]) {
  if (kind === "pca") {
    const [centre, across, up] = [about.plane.centre, about.plane.across, about.plane.up].map(readTensor);
    const dot = (z, way) => way.reduce((total, value, k) => total + value * (z[k] - centre[k]), 0);
    const place = (z) => [dot(z, across), dot(z, up)];
    const at = (x, y, z) => {
      const [x0, y0] = place(z), moved = Float32Array.from(z);
      across.forEach((_, k) => (moved[k] += (x - x0) * across[k] + (y - y0) * up[k]));
      return moved;
    };
    return { place, at, ways: [across, up], names: ["first component", "second component"] };
  }
  const unit = (k) => Float32Array.from({ length: about.latents }, (_, l) => (l === k ? 1 : 0));
  const at = (x, y, z) => {
    const moved = Float32Array.from(z);
    moved[i] = x;
    if (j !== i) moved[j] = y;
    return moved;
  };
  const names = [`z${i + 1}`, j === i ? "" : `z${j + 1}`];
  return { place: (z) => [z[i], j === i ? 0 : z[j]], at, ways: [unit(i), j === i ? unit(i).fill(0) : unit(j)], names };
}

export function createMap(about, vae, state, readTensor) {
  const canvas = element("plane"), shape = about.shape, alone = about.latents === 1;
  const [axisX, axisY] = [element("axis-x"), element("axis-y")], names = about.labels.names;
  const points = document.createElement("canvas"), manifold = document.createElement("canvas");
  const shown = names.map(() => true), hasTiles = about.latents === 2 && !about.noise;
  const isLikelihood = about.sum === "ELBO";
  state.isShown = (i) => shown[about.labels.of[i]];
  let plane, places, reach, middle, view;
  let cursor = null, near = null, beside = null; // a place in the plane; the image there; the one beside the map

  // --- the plane ---
  for (const latent of state.order) {
    const told = about.prior.kind === "standard" ? `, ${state.told[latent].toFixed(2)} nats` : "";
    for (const axis of [axisX, axisY]) axis.add(new Option(`z${latent + 1}${told}`, latent));
  }
  const first = hasTiles ? [0, 1] : [state.order[0], state.order[1] ?? state.order[0]];
  [axisX.value, axisY.value] = first;
  document.querySelector(`[name=plane][value=${about.plane ? "pca" : "axes"}]`).checked = true;
  element("plane-choice").hidden = !about.plane;
  if (about.plane) {
    const share = Math.round(100 * about.plane.share), what = about.autoencoder ? "codes" : "means";
    element("pca-name").textContent = `PCA, ${share} % of the variance of ${what}`;
  }
  element("manifold-choice").hidden = !hasTiles;

  const rest = () => state.posterior(state.selected).z_mean; // what the plane does not show
  const kind = () => document.querySelector("[name=plane]:checked").value;

  function choosePlane() {
    plane = planeOf(about, readTensor, kind(), [Number(axisX.value), Number(axisY.value)]);
    const jitter = normals(1);
    places = Array.from({ length: state.count }, (_, i) => plane.place(state.posterior(i).z_mean));
    if (alone) places.forEach((place) => (place[1] = jitter())); // upwards means nothing
    const centre = [0, 1].map((side) => middleOf(places.map((place) => place[side])));
    middle = about.autoencoder ? centre : plane.place(new Float32Array(vae.size)); // of a prior: where zero is
    const sizes = places.map(([x, y]) => Math.max(Math.abs(x - middle[0]), Math.abs(y - middle[1])));
    const most = sizes.sort((a, b) => a - b)[Math.floor(0.998 * (sizes.length - 1))]; // all but a few that lie far out
    reach = 1.08 * Math.max(about.autoencoder ? 1e-6 : 2.2, most);
    cursor = null;
    near = null;
    const spread = "Across: z1. Upwards means nothing: the points are spread, so that they can be told apart.";
    const axes = alone ? spread : `Across: ${plane.names[0]}, upwards: ${plane.names[1]}.`;
    const rings = about.autoencoder || alone ? "" : RINGS; // where there are ellipses
    element("plane-note").textContent = [axes, restInWords(), MARKS, rings].join(" ");
    drawAll();
    point(null);
  }

  function restInWords() {
    const hidden = about.latents - 2;
    if (hidden <= 0) return "";
    if (kind() === "pca") return "What lies off the plane stays as in the selected image: near points may differ.";
    return `The other ${hidden === 1 ? "latent is" : `${hidden} latents are`} those of the selected image.`;
  }

  // --- drawing ---
  const scale = () => view.width / (2 * reach);
  const toScreen = ([x, y]) => [
    view.width / 2 + (x - middle[0]) * scale(),
    view.height / 2 - (y - middle[1]) * scale(),
  ];
  const fromScreen = ([left, top]) => [
    middle[0] + (left - view.width / 2) / scale(),
    middle[1] - (top - view.height / 2) / scale(),
  ];

  function drawPoints() {
    resize(points, canvas.width, canvas.height);
    const context = points.getContext("2d"), ratio = canvas.width / view.width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    drawPrior(context);
    const size = Math.min(5, Math.max(2.2, 100 / Math.sqrt(state.count)));
    places.forEach((place, i) => {
      if (!state.isShown(i)) return;
      dot(context, toScreen(place), size, labelColour(about.labels.of[i], names.length));
    });
  }

  function dot(context, [left, top], size, colour) {
    context.fillStyle = colour;
    context.beginPath();
    context.arc(left, top, size, 0, 2 * Math.PI);
    context.fill();
  }

  function drawPrior(context) {
    for (const z of state.draws) dot(context, toScreen(plane.place(z)), 1.5, theme("quiet"));
    if (about.prior.kind !== "standard") return;
    context.strokeStyle = theme("quiet");
    context.setLineDash([4, 4]);
    for (const deviations of [1, 2]) {
      context.beginPath();
      context.arc(...toScreen(middle), deviations * scale(), 0, 2 * Math.PI);
      context.stroke();
    }
    context.setLineDash([]);
  }

  // The manifold: the decoded images of a grid of places. Grey ones on light paper are drawn as ink, dark on light.
  const drawTiles = gradually(TILES * TILES, (number) => {
    const column = number % TILES, row = Math.floor(number / TILES), at = (k) => ((k + 0.5) / TILES) * view.width;
    const place = fromScreen([at(column), at(row)]);
    if (!about.autoencoder && Math.hypot(...place) > FARTHEST) return; // where there is hardly any image
    const x = vae.decode(plane.at(...place, rest()));
    const isInk = shape[2] === 1 && !matchMedia("(prefers-color-scheme: dark)").matches;
    const pixels = toPixels(isInk ? x.map((value) => 1 - value) : x, shape);
    manifold.getContext("2d").putImageData(pixels, column * shape[1], row * shape[0]);
    draw();
  });

  function drawAll() {
    if (!places) return;
    view = fineContext(canvas);
    drawPoints();
    if (hasTiles && element("manifold").checked) {
      resize(manifold, TILES * shape[1], TILES * shape[0]);
      drawTiles();
    }
    draw();
  }

  const draw = inFrame(() => {
    const { context, width, height } = view;
    context.clearRect(0, 0, width, height);
    if (hasTiles && element("manifold").checked) {
      context.globalAlpha = 0.4; // so that the points stand out
      context.drawImage(manifold, 0, 0, width, height);
      context.globalAlpha = 1;
    }
    context.drawImage(points, 0, 0, width, height);
    if (near !== null && !about.autoencoder && !alone) drawEllipse(context, near);
    ring(context, toScreen(places[state.selected]), 8);
    if (state.z.some((value, i) => value !== rest()[i])) {
      dot(context, toScreen(plane.place(state.z)), 6, theme("accent"));
    }
    if (near !== null) ring(context, toScreen(places[near]), 5);
    if (cursor) drawCross(context, toScreen(cursor));
  });

  function ring(context, [left, top], size) {
    for (const [colour, line] of [[theme("paper"), 4], [theme("ink"), 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.beginPath();
      context.arc(left, top, size, 0, 2 * Math.PI);
      context.stroke();
    }
    context.lineWidth = 1;
  }

  function drawCross(context, [left, top]) {
    for (const [colour, line] of [[theme("paper"), 4], [theme("accent"), 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.beginPath();
      context.moveTo(left - 9, top);
      context.lineTo(left + 9, top);
      context.moveTo(left, top - 9);
      context.lineTo(left, top + 9);
      context.stroke();
    }
    context.lineWidth = 1;
  }

  /** The posterior of an image, as far as the plane shows it: the ellipses of one and two standard deviations. */
  function drawEllipse(context, i) {
    const { z_log_std } = state.posterior(i), [u, v] = plane.ways;
    let [a, b, c] = [0, 0, 0]; // the covariance in the plane: [[a, b], [b, c]]
    u.forEach((_, k) => {
      const variance = Math.exp(2 * z_log_std[k]);
      a += variance * u[k] * u[k];
      b += variance * u[k] * v[k];
      c += variance * v[k] * v[k];
    });
    const half = Math.hypot((a - c) / 2, b), mean = (a + c) / 2, angle = Math.atan2(2 * b, a - c) / 2;
    const [long, short] = [mean + half, Math.max(mean - half, 0)].map((variance) => Math.sqrt(variance) * scale());
    context.strokeStyle = theme("ink");
    for (const deviations of [1, 2]) {
      context.beginPath();
      context.ellipse(...toScreen(places[i]), deviations * long, deviations * short, -angle, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  // --- what is pointed at ---
  function nearest([left, top], limit) {
    let found = null, least = limit ** 2;
    places.forEach((place, i) => {
      if (!state.isShown(i)) return;
      const [x, y] = toScreen(place), distance = (x - left) ** 2 + (y - top) ** 2;
      if (distance < least) [found, least] = [i, distance];
    });
    return found;
  }

  const showImage = (i) => {
    const original = state.image(i), { z_mean } = state.posterior(i), { loss, kl } = state.costs(i);
    paint(element("near-image"), original, shape, `test image, ${state.label(i)}`);
    paint(element("near-reconstruction"), vae.decode(z_mean), shape, "its reconstruction");
    element("near-label").textContent = names.length > 1 ? `test image: ${state.label(i)}` : `test ${state.label(i)}`;
    const total = kl === null ? "" : `, KL ${inNats(kl)}, ${about.sum} ${inNats(-(loss + kl), isLikelihood)}`;
    element("near-costs").textContent = `In the run's test: reconstruction ${inNats(loss, isLikelihood)}${total}.`;
  };

  const point = inFrame((screen) => {
    if (screen) cursor = fromScreen(screen);
    // Without a cursor it is the code of the sliders, which are at the selected image until one is moved.
    const z = cursor ? plane.at(...cursor, rest()) : state.z, isMoved = z.some((value, i) => value !== rest()[i]);
    const what = cursor ? "cursor" : isMoved ? "sliders" : "ring";
    const place = (cursor ?? plane.place(z)).slice(0, alone ? 1 : 2).map((value) => signed(value)).join(", ");
    paint(element("under-cursor"), vae.decode(z), shape, `decoded at the ${what}`);
    element("cursor-caption").textContent = `decoded at the ${what}`;
    element("cursor-text").textContent = `The ${what} ${isMoved && !cursor ? "are" : "is"} at ${place}.`;
    near = screen ? nearest(screen, NEAR) : null;
    if (screen) announce(`${element("cursor-text").textContent} ${near === null ? "" : state.label(near)}`);
    if (beside !== (near ?? state.selected)) showImage((beside = near ?? state.selected));
    draw();
  });

  const where = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left - canvas.clientLeft, event.clientY - box.top - canvas.clientTop];
  };
  const select = (screen, limit) => {
    const found = nearest(screen, limit);
    if (found !== null) state.change({ selected: found });
  };
  canvas.addEventListener("pointermove", (event) => point(where(event)));
  let pressed = [0, 0];
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pressed = where(event);
    point(pressed);
  });
  canvas.addEventListener("click", (event) => {
    const [left, top] = where(event), isDrag = Math.hypot(left - pressed[0], top - pressed[1]) > NEAR / 2;
    if (!isDrag) select([left, top], event.pointerType === "mouse" ? NEAR : 2 * NEAR);
  });
  const leave = () => {
    cursor = null;
    point(null);
  };
  canvas.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") leave(); // a finger that is lifted leaves the cursor where it was
  });
  const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own
    const [across, up] = WAYS[event.key] ?? [0, 0];
    const [left, top] = toScreen(cursor ?? places[state.selected]), step = view.width / (event.shiftKey ? 15 : 60);
    if (event.key === "Enter") select([left, top], view.width);
    else if (event.key === "Escape") leave();
    else if (across || up) {
      const inside = (value) => Math.min(view.width - 1, Math.max(1, value));
      point([inside(left + across * step), inside(top + up * step)]);
    } else return;
    event.preventDefault();
  });

  // --- the legend ---
  names.forEach((name, label) => {
    const [button, mark, text, count] = ["button", "i", "span", "span"].map((tag) => document.createElement(tag));
    button.type = "button";
    mark.style.background = labelColour(label, names.length);
    text.textContent = name;
    count.textContent = about.labels.of.filter((of) => of === label).length.toLocaleString("en");
    count.className = "note";
    button.append(mark, text, count);
    button.title = "Click: show or hide. Double click: this label alone, or all.";
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => filter((now, other) => (other === label ? !now : now)));
    button.addEventListener("dblclick", () => {
      const alreadyAlone = shown.every((now, other) => now === (other === label));
      filter((now, other) => alreadyAlone || other === label);
    });
    element("legend").append(button);
  });
  const all = document.createElement("button");
  all.type = "button";
  all.textContent = "Show all";
  all.addEventListener("click", () => filter(() => true));
  element("legend").append(all);
  element("legend").hidden = names.length < 2;

  function filter(choose) {
    shown.forEach((now, label) => (shown[label] = choose(now, label)));
    shown.forEach((now, label) => element("legend").children[label].setAttribute("aria-pressed", String(now)));
    near = null;
    drawPoints();
    draw();
  }

  // --- when something changes ---
  for (const control of document.querySelectorAll("[name=plane]")) control.addEventListener("change", choosePlane);
  for (const [axis, other] of [[axisX, axisY], [axisY, axisX]]) {
    let before = axis.value;
    axis.addEventListener("focus", () => (before = axis.value));
    axis.addEventListener("change", () => {
      if (axis.value === other.value) other.value = before; // they change places
      before = axis.value;
      document.querySelector("[name=plane][value=axes]").checked = true;
      choosePlane();
    });
  }
  element("manifold").addEventListener("change", drawAll);
  new ResizeObserver(drawAll).observe(canvas);
  state.on(() => point(null));
  choosePlane();
  return { redraw: drawAll };
}

const middleOf = (values) => (Math.min(...values) + Math.max(...values)) / 2;
