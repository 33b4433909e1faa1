// The latents: a slider for each, with the prior and the selected image's posterior behind it.
import { element, gradually, gridOn, inFrame, paint, signed } from "./canvas.js";

const FIRST = 24; // sliders that are shown at once; the others are behind a button
const FRAMES = 9; // decoded images in the strip of a latent
const POINTS = 81; // of a curve

export function createLatents(about, vae, state) {
  const shape = about.shape, isStandard = about.prior.kind === "standard", ranges = rangesOf(about, state), rows = [];
  let focus = state.order[0];
  let isNew = true; // the selected image, since the last frame

  // --- a row ---
  function addRow(latent) {
    const [low, high] = ranges[latent], row = document.createElement("div"), name = `z${latent + 1}`;
    const isInactive = isStandard && state.variance[latent] <= about.active_variance; // as the report has it
    row.className = isInactive ? "slider inactive" : "slider";
    row.innerHTML = `<label for="slider-${latent}">${name}</label>
      <div class="track"><svg viewBox="0 0 ${POINTS - 1} 1" preserveAspectRatio="none" aria-hidden="true">
        <path class="prior"></path><path class="posterior"></path></svg>
        <input type="range" id="slider-${latent}" min="${low}" max="${high}" step="${(high - low) / 200}"></div>
      <output for="slider-${latent}"></output><span class="nats"></span>`;
    const input = row.querySelector("input");
    row.querySelector(".nats").textContent = isStandard ? `${state.told[latent].toFixed(2)} nats` : "";
    row.title = isInactive ? `${name} is inactive: its mean hardly varies between images` : "";
    const back = () => move(latent, state.posterior(state.selected).z_mean[latent]);
    input.addEventListener("input", () => move(latent, Number(input.value)));
    input.addEventListener("focus", () => showStrip(latent));
    input.addEventListener("dblclick", back);
    input.addEventListener("keydown", (event) => {
      if (event.key === "Backspace") back();
    });
    row.querySelector(".prior").setAttribute("d", priorCurve(latent));
    element("sliders").append(row);
    const spoken = isStandard ? `, mean KL ${state.told[latent].toFixed(2)} nats${isInactive ? ", inactive" : ""}` : "";
    const [output, posterior] = ["output", ".posterior"].map((part) => row.querySelector(part));
    rows.push({ latent, spoken, input, output, posterior });
  }

  // --- curves ---
  const stepOf = (latent) => (ranges[latent][1] - ranges[latent][0]) / (POINTS - 1);
  const heights = (latent, density) =>
    Array.from({ length: POINTS }, (_, i) => density(ranges[latent][0] + i * stepOf(latent)));
  /** The points of a curve, as high as the row. */
  const path = (curve) => {
    const top = Math.max(...curve) || 1; // all of it may lie beyond the slider
    return curve.map((height, i) => `${i},${(1 - height / top).toFixed(3)}`).join(" L");
  };
  const normalDensity = (mean, std) => (z) => Math.exp(-(((z - mean) / std) ** 2) / 2);

  /** How many draws of the learned prior are near each point. */
  function smoothed(latent) {
    const bins = new Array(POINTS).fill(0);
    for (const z of state.draws) {
      const bin = Math.round((z[latent] - ranges[latent][0]) / stepOf(latent));
      for (let k = -2; k <= 2; k++) if (bin + k in bins) bins[bin + k] += 3 - Math.abs(k);
    }
    return bins;
  }
  function priorCurve(latent) {
    if (about.autoencoder) return "";
    const curve = isStandard ? heights(latent, normalDensity(0, 1)) : smoothed(latent);
    return `M0,1 L${path(curve)} L${POINTS - 1},1 Z`;
  }
  function posteriorCurve(latent) {
    if (about.autoencoder) return "";
    const { z_mean, z_log_std } = state.posterior(state.selected);
    const std = Math.max(Math.exp(z_log_std[latent]), stepOf(latent)); // or it would be lost between two points
    return `M${path(heights(latent, normalDensity(z_mean[latent], std)))}`;
  }

  // --- what is decoded ---
  function move(latent, value) {
    const z = Float32Array.from(state.z);
    z[latent] = value;
    showStrip(latent);
    state.change({ z });
  }

  const drawOn = gridOn(element("latents-strip"), 1, FRAMES, shape, "");
  const decodeStrip = gradually(FRAMES, (i) => {
    const z = Float32Array.from(state.z), [low, high] = ranges[focus];
    z[focus] = low + ((high - low) * i) / (FRAMES - 1);
    drawOn(i, vae.decode(z));
  });
  /** Show the whole range of a latent. It stays as it is while only that latent is moved. */
  function showStrip(latent) {
    if (latent === focus) return;
    focus = latent;
    captionStrip();
    decodeStrip();
  }
  function captionStrip() {
    const [low, high] = ranges[focus].map((end) => signed(end, 1)), what = `z${focus + 1} from ${low} to ${high}`;
    element("strip-caption").textContent = `${what}, the other latents as they are`;
    element("latents-strip").setAttribute("aria-label", `decoded for ${what}`);
  }

  const show = inFrame(() => {
    for (const { latent, spoken, input, output, posterior } of rows) {
      input.value = state.z[latent];
      output.textContent = signed(state.z[latent]);
      input.setAttribute("aria-valuetext", `${signed(state.z[latent])}${spoken}`);
      if (isNew) posterior.setAttribute("d", posteriorCurve(latent));
    }
    paint(element("latents-decoded"), vae.decode(state.z), shape, "decoded from the sliders");
    if (isNew) {
      const label = `selected image, ${state.label(state.selected)}`;
      paint(element("latents-original"), state.image(state.selected), shape, label);
      decodeStrip();
    }
    isNew = false;
  });

  const more = element("more-sliders"), later = state.order.slice(FIRST);
  state.order.slice(0, FIRST).forEach(addRow);
  more.hidden = !later.length;
  more.textContent = `Show ${later.length} more latents`;
  more.addEventListener("click", () => {
    later.forEach(addRow);
    more.hidden = isNew = true;
    show();
    rows[FIRST].input.focus();
  });
  element("latents-back").addEventListener("click", () => state.change({ selected: state.selected }));
  state.on(({ selected }) => {
    isNew ||= selected;
    show();
  });
  captionStrip();
  show();
}

/** From where to where each slider goes: with the standard prior the same for all, at least 3; else as codes are. */
function rangesOf(about, state) {
  const ends = Array.from({ length: about.latents }, (_, latent) => {
    const codes = Array.from({ length: state.count }, (_, i) => state.posterior(i).z_mean[latent]);
    return [Math.min(...codes), Math.max(...codes)];
  });
  if (about.prior.kind === "standard") {
    const sizes = ends.flat().map(Math.abs).sort((a, b) => a - b);
    const most = Math.max(3, Math.ceil(sizes[sizes.length >> 1])); // beyond it are few images, at the slider's end
    return ends.map(() => [-most, most]);
  }
  return ends.map(([low, high]) => {
    const margin = Math.max(0.15 * (high - low), 0.1);
    return [low - margin, high + margin];
  });
}
