// Samples: codes from the prior beside codes from the posteriors of test images, through the same decoder.
import { element, gradually, gridOn } from "./canvas.js";
import { normals } from "./vae.js";

const SIDE = 8; // images in a row and in a column

export function createSamples(about, vae, state) {
  if (about.autoencoder) return;
  const count = SIDE * SIDE, width = element("width");
  let seed = 1;
  const fromPrior = (normal) => vae.prior.draw(normal, Number(width.value));
  const fromPosterior = (normal) => {
    const image = Math.floor(normal.uniform() * state.count);
    return vae.sampleLatent(state.posterior(image), Float32Array.from({ length: vae.size }, () => normal()));
  };
  const grid = (id, draw, label) => {
    const drawOn = gridOn(element(id), SIDE, SIDE, about.shape, label);
    return gradually(count, (i) => drawOn(i, vae.decode(draw(normals(seed * count + i)))));
  };
  const prior = grid("prior-grid", fromPrior, "decoded draws from the prior");
  const posteriors = grid("posterior-grid", fromPosterior, "decoded draws from the posteriors of test images");
  width.addEventListener("input", () => {
    element("width-value").textContent = Number(width.value).toFixed(2);
    prior();
  });
  element("dice").addEventListener("click", () => {
    seed++;
    prior();
    posteriors();
  });
  width.value = 1;
  const seen = new IntersectionObserver(([{ isIntersecting }]) => {
    if (!isIntersecting) return;
    seen.disconnect(); // not before: a slow decoder has other views to draw first
    prior();
    posteriors();
  });
  seen.observe(element("samples"));
}
