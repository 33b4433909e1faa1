// The page: reads what is embedded in it, sets up the views, and offers the model as window.vae.
import { element, paint } from "./canvas.js";
import { createDraw } from "./draw.js";
import { createLatents } from "./latents.js";
import { createMap } from "./map.js";
import { tensorReader } from "./network.js";
import { createSamples } from "./samples.js";
import { createState, readImages } from "./state.js";
import { readVae } from "./vae.js";
import { createWalk } from "./walk.js";

const TRUSTED = 0.05; // of brightness and of latents, by which the page may differ from Keras before it warns

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes.buffer;
}

/** Keep the sentences that are true of this run: each data-if names what they are about. */
function keepWhatIsTrue(about) {
  const isStandard = about.prior.kind === "standard";
  const holds = {
    autoencoder: about.autoencoder,
    vae: !about.autoencoder,
    standard: isStandard,
    pulled: !about.autoencoder && Number(about.settings.KL_WEIGHT_END) > 0,
    learned: !about.autoencoder && !isStandard,
    likelihood: about.sum === "ELBO",
    unlike: !about.autoencoder && about.sum !== "ELBO",
    labelled: about.labels.names.length > 1,
    noise: about.noise > 0,
    rounded: about.settings.MIXED_PRECISION === "True",
  };
  for (const part of document.querySelectorAll("[data-if]")) part.hidden = !holds[part.dataset.if];
  for (const part of document.querySelectorAll("[data-sum]")) part.textContent = about.sum.replace("-", "−");
}

function describe(about, count) {
  const [height, width, channels] = about.shape, number = (value) => value.toLocaleString("en");
  const pixels = `${height} × ${width}${channels === 3 ? " coloured" : ""} pixels`;
  const noise = about.noise ? ` (and ${about.noise} of pure noise)` : "";
  const latents = about.latents === 1 ? "one number, the latent z" : `${number(about.latents)} numbers, the latents z`;
  const kind = about.autoencoder ? "A plain autoencoder" : "A variational autoencoder";
  const prior = {
    none: "",
    standard: "",
    mixture: " Its prior, a mixture of Gaussians, was learned.",
    realnvp: " Its prior, a flow (RealNVP), was learned.",
  };
  element("run").textContent = about.run;
  element("summary").textContent =
    `${kind} of ${about.title}. Its encoder squeezes an image of ${pixels} into ${latents}${noise}; its decoder ` +
    `draws the image again from them.${prior[about.prior.kind]} It has ${(about.parameters / 1e6).toFixed(1)} M ` +
    `parameters, was trained for ${number(about.step)} steps, and runs in this page, with ` +
    `${count < about.test_images ? `${number(count)} of its ${number(about.test_images)}` : `its ${number(count)}`} ` +
    "test images.";
}

function list(id, rows) {
  for (const [name, text] of rows) {
    const [term, value] = ["dt", "dd"].map((tag) => document.createElement(tag));
    term.textContent = name;
    value.textContent = text === "" ? "–" : text.replaceAll("+-", "±").replace(/(^|[ (])-(?=[\d(])/g, "$1−");
    element(id).append(term, value);
  }
}

function showRun({ report, settings }) {
  const found = report ? ["Is this run healthy?", report.answer, ...report.problems] : ["This run has no report yet."];
  element("healthy").textContent = found.join(" ");
  list("report", report ? report.rows : []);
  list("settings", Object.entries(settings));
}

/** Warn if this page computes something else than Keras did: of the first image its code, and what that decodes to. */
function checkArithmetic(about, vae, state, readTensor) {
  const { z_mean } = state.posterior(0), code = vae.encode(state.image(0)).z_mean;
  const decoded = vae.decode(z_mean), there = readTensor(about.decoded);
  const errors = [
    ...decoded.map((value, i) => Math.abs(value - there[i])),
    ...code.map((value, i) => Math.abs(value - z_mean[i]) / (1 + Math.abs(z_mean[i]))),
  ];
  if (errors.every((error) => error <= TRUSTED)) return;
  warn("This page is not to be trusted: it does not encode or decode the first test image as Keras did.");
}

function warn(words) {
  element("warning").hidden = false;
  element("warning").textContent = words;
}

/** The model for the console and for tests: plain arrays in, plain arrays out. */
function modelForConsole(vae, about) {
  const read = (values, length, what) => {
    const flat = Array.from(values ?? []).flat(Infinity);
    if (flat.length === length && flat.every(Number.isFinite)) return Float32Array.from(flat);
    throw new Error(`${what} must be ${length} numbers`);
  };
  const image = (x) => read(x, vae.pixels, "x"), latents = (z) => read(z, vae.size, "z");
  const plain = (found) => {
    const parts = Object.entries(found).map(([name, value]) => [name, value?.length ? Array.from(value) : value]);
    return Object.fromEntries(parts);
  };
  return {
    shape: about.shape,
    encode(x) {
      const { z_mean, z_log_std } = vae.encode(image(x));
      return plain(about.autoencoder ? { z_mean } : { z_mean, z_log_std });
    },
    decode: (z) => Array.from(vae.decode(latents(z))),
    kl: (x) => vae.klPerLatent(vae.encode(image(x))),
    costs: (x, noise) => plain(vae.costs(image(x), vae.encode(image(x)), latents(noise))),
    logPrior: (z) => vae.prior.logDensity(latents(z).subarray(0, vae.latents)),
    draw: (normal, width) => Array.from(vae.prior.draw(normal, width)),
  };
}

async function start() {
  const about = JSON.parse(element("page-about").textContent);
  const readTensor = tensorReader(bytesOf(element("page-numbers").textContent));
  const vae = readVae(about, readTensor);
  const image = await readImages(element("page-sprite").textContent, about.columns, about.shape);
  const state = createState(about, vae, image, readTensor);
  keepWhatIsTrue(about);
  describe(about, state.count);
  showRun(about);
  checkArithmetic(about, vae, state, readTensor);

  const showSelected = () => {
    paint(element("selected-thumb"), image(state.selected), about.shape, "the selected image");
    element("selected-label").textContent = state.label(state.selected);
  };
  state.on(({ selected }) => selected && showSelected());
  element("another").addEventListener("click", () => {
    const shown = Array.from({ length: state.count }, (_, i) => i).filter(state.isShown);
    if (shown.length) state.change({ selected: shown[Math.floor(Math.random() * shown.length)] });
  });
  showSelected();

  const map = createMap(about, vae, state, readTensor);
  createLatents(about, vae, state);
  createDraw(about, vae, state);
  createWalk(about, vae, state);
  createSamples(about, vae, state);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", map.redraw);
  window.vae = modelForConsole(vae, about);
}

start().then(
  () => document.body.classList.remove("loading"),
  (error) => {
    warn(`This page does not work in this browser: ${error.message}`);
    throw error;
  },
);
