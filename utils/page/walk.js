// A walk from one image to another: straight, and along the arc about zero.
import { element, gradually, gridOn, inFrame, paint } from "./canvas.js";
import { sum } from "./vae.js";

const FRAMES = 9;
const SECONDS = 4; // from one end to the other

export const straight = (a, b, t) => a.map((value, i) => (1 - t) * value + t * b[i]);

/** Along the arc from a to b, by the angle between them (Shoemake 1985); straight if that is 0 or half a turn. */
export function arc(a, b, t) {
  const cosine = a.reduce((total, value, i) => total + value * b[i], 0) / (length(a) * length(b));
  const angle = Math.acos(Math.max(-1, Math.min(1, cosine)));
  if (!(Math.sin(angle) > 1e-4)) return straight(a, b, t);
  const [of_a, of_b] = [(1 - t) * angle, t * angle].map((part) => Math.sin(part) / Math.sin(angle));
  return a.map((value, i) => of_a * value + of_b * b[i]);
}

const length = (z) => Math.hypot(...z);

export function createWalk(about, vae, state) {
  const shape = about.shape, handle = element("walk-t"), ways = { straight, arc };
  let goal = anotherGoal(0), playing = null, direction = 1, t = 0.5;

  /** The next image after `from` that is not the start, with another label if there are several. */
  function anotherGoal(from) {
    const { of, names } = about.labels, start = state.selected;
    for (let i = 1; i <= state.count; i++) {
      const next = (from + i) % state.count;
      if (next !== start && state.isShown(next) && (names.length < 2 || of[next] !== of[start])) return next;
    }
    return (from + 1) % state.count; // there is no such image
  }

  const ends = () => [state.selected, goal].map((i) => state.posterior(i).z_mean);
  const strips = Object.entries(ways).map(([name, way]) => {
    const drawOn = gridOn(element(`walk-${name}`), 1, FRAMES, shape, `decoded along the way, ${name}`);
    return gradually(FRAMES, (i) => drawOn(i, vae.decode(way(...ends(), i / (FRAMES - 1)))));
  });

  const showStep = inFrame(() => {
    for (const [name, way] of Object.entries(ways)) {
      const z = way(...ends(), t);
      paint(element(`walk-${name}-now`), vae.decode(z), shape, `${name}, at t = ${t.toFixed(2)}`);
      element(`${name}-length`).textContent = `|z| = ${length(z).toFixed(2)}`;
    }
    handle.value = t;
    element("walk-t-text").textContent = `t = ${t.toFixed(2)}`;
    handle.setAttribute("aria-valuetext", `t = ${t.toFixed(2)}`);
  });

  function showEnds() {
    for (const [end, i] of [["a", state.selected], ["b", goal]]) {
      paint(element(`walk-${end}`), state.image(i), shape, `test image, ${state.label(i)}`);
      element(`walk-${end}-label`).textContent = `${end} (${end === "a" ? "selected" : "goal"}): ${state.label(i)}`;
    }
    strips.forEach((strip) => strip());
    showStep();
  }

  const lengths = Array.from({ length: state.count }, (_, i) => length(state.posterior(i).z_mean));
  const mean = sum(lengths) / state.count;
  const spread = Math.sqrt(sum(lengths.map((value) => (value - mean) ** 2)) / state.count);
  element("walk-note").textContent =
    `|z| is the length of a code: ${mean.toFixed(2)} for the test images, give or take ${spread.toFixed(2)}. ` +
    "To choose both ends, select one image, swap, and select the other.";

  const middle = state.posterior(0).z_mean.map((_, k) => {
    return sum(Array.from({ length: state.count }, (_, i) => state.posterior(i).z_mean[k])) / state.count;
  });
  const isSphere = !about.autoencoder && spread < 0.15 * mean && length(middle) < 0.3 * mean; // all around zero
  element("on-a-sphere").hidden = !isSphere;
  element("on-no-sphere").hidden = isSphere;

  // --- play ---
  function stop() {
    cancelAnimationFrame(playing);
    playing = null;
    element("play").textContent = "Play";
  }
  function play() {
    let before = performance.now();
    element("play").textContent = "Pause";
    const frame = (now) => {
      t += (direction * Math.max(0, now - before)) / (1000 * SECONDS);
      before = now;
      if (t >= 1 || t <= 0) direction = t >= 1 ? -1 : 1;
      t = Math.max(0, Math.min(1, t));
      showStep();
      playing = requestAnimationFrame(frame);
    };
    playing = requestAnimationFrame(frame);
  }
  element("play").addEventListener("click", () => (playing === null ? play() : stop()));
  handle.addEventListener("input", () => {
    stop();
    t = Number(handle.value);
    showStep();
  });
  element("other-end").addEventListener("click", () => {
    goal = anotherGoal(goal + Math.floor(Math.random() * (state.count - 1)));
    showEnds();
  });
  element("swap").addEventListener("click", () => {
    const end = goal;
    goal = state.selected;
    [t, direction] = [1 - t, -direction];
    state.change({ selected: end });
  });
  state.on(({ selected }) => {
    if (!selected) return;
    if (goal === state.selected) goal = anotherGoal(goal);
    showEnds();
  });
  showEnds();
}
