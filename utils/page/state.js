// What all views share: the test images with their posteriors, which of them is selected, and the latents z to decode.
import { fromPixels, resize } from "./canvas.js";
import { normals, sum } from "./vae.js";

const DRAWS = 1000; // of a learned prior, which have to stand for it

/** The picture of all test images, decoded: a function from a number to brightnesses (H W C). */
export async function readImages(base64, columns, [height, width, channels]) {
  const picture = new Image();
  picture.src = `data:image/png;base64,${base64}`;
  await picture.decode();
  const canvas = document.createElement("canvas");
  resize(canvas, picture.naturalWidth, picture.naturalHeight);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  return (number) => {
    const left = (number % columns) * width, top = Math.floor(number / columns) * height;
    return fromPixels(context.getImageData(left, top, width, height), channels);
  };
}

/**
 * The state of the page. `change({selected})` or `change({z})` tells all views, which said with `on(view)` that they
 * want to know: view(what), where `what` has the names that changed.
 */
export function createState(about, vae, image, readTensor) {
  const { size, latents } = vae, count = about.labels.of.length, views = [];
  const [means, logStds] = [about.z_mean, about.z_log_std].map(readTensor);
  const [losses, kls] = about.costs.map(readTensor);
  const part = (all, i) => all.subarray(i * size, (i + 1) * size);
  const state = {
    count,
    image,
    selected: 0,
    z: Float32Array.from(part(means, 0)),
    posterior: (i) => ({ z_mean: part(means, i), z_log_std: part(logStds, i) }),
    label: (i) => (about.labels.names.length > 1 ? about.labels.names[about.labels.of[i]] : `image ${i + 1}`),
    /** The costs of a test image with one draw of z, in nats, as the run's test has them. */
    costs: (i) => ({ loss: losses[i], kl: about.autoencoder ? null : kls[i] }),
    draws: about.prior.kind === "standard" || !vae.prior ? [] : drawsOf(vae),
    isShown: () => true, // of which labels images are shown: map.js
    on: (view) => views.push(view),
    change(changes) {
      Object.assign(state, changes);
      if ("selected" in changes) state.z = Float32Array.from(state.posterior(state.selected).z_mean);
      const what = { selected: "selected" in changes, z: true };
      for (const view of views) view(what);
    },
  };
  return Object.assign(state, inOrder(about, state, latents));
}

function drawsOf(vae) {
  const normal = normals(1);
  return Array.from({ length: DRAWS }, () => vae.prior.draw(normal));
}

/**
 * Of each latent the `variance` of its means over the test images and what it tells, `told`; `order` begins with the
 * latent that tells most. That is the mean KL in nats with the standard prior; else the variance of the means over the
 * mean variance of the posteriors, of an autoencoder over 1.
 */
function inOrder(about, state, latents) {
  const mean = (numbers) => sum(numbers) / numbers.length;
  const variance = [], told = [];
  for (let latent = 0; latent < latents; latent++) {
    const posteriors = Array.from({ length: state.count }, (_, i) => state.posterior(i));
    const means = posteriors.map(({ z_mean }) => z_mean[latent]);
    const logStds = posteriors.map(({ z_log_std }) => z_log_std[latent]);
    const middle = mean(means), width = mean(logStds.map((logStd) => Math.exp(2 * logStd)));
    variance.push(mean(means.map((value) => (value - middle) ** 2)));
    if (about.prior.kind === "standard") told.push((variance[latent] + middle ** 2 + width - 1) / 2 - mean(logStds));
    else told.push(variance[latent] / (about.autoencoder ? 1 : width));
  }
  return { variance, told, order: told.map((_, i) => i).sort((a, b) => told[b] - told[a]) };
}
