// The VAE: encoder, sampler, decoder, losses and KL, as in main.py, for one image x at a time. Losses are in nats.
import { readNetwork, sigmoid } from "./network.js";

const LOG_2_PI = Math.log(2 * Math.PI);

/** A function that draws from N(0, 1), the same numbers for a seed (mulberry32, Box-Muller). */
export function normals(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  normal.uniform = uniform;
  return normal;
}

/** The VAE that `about` describes; see utils/explore.py. z has `latents` numbers, then `noise` that are pure noise. */
export function readVae(about, readTensor) {
  const encoder = readNetwork(about.encoder, readTensor), decoder = readNetwork(about.decoder, readTensor);
  const size = about.latents + about.noise;
  const prior = readPrior(about, readTensor);
  const reconstructionLoss = about.loss === null ? null : LOSSES[about.loss](about.log_scale);

  const vae = {
    shape: about.shape, // H, W, C
    pixels: about.shape.reduce((a, b) => a * b),
    size,
    latents: about.latents,
    prior,

    /** x (H W C numbers in [0, 1]) -> {z_mean, z_log_std}: for this image a normal distribution q(z|x). */
    encode(x) {
      const [z_mean, z_log_std] = encoder(Float32Array.from(x));
      return { z_mean: z_mean.slice(), z_log_std: z_log_std.slice() };
    },
    logits: (z) => decoder(Float32Array.from(z))[0],
    /** z -> brightness (H W C numbers in [0, 1]). */
    decode: (z) => vae.logits(z).map(sigmoid),
    /** z = z_mean + exp(z_log_std) * noise: a draw from q(z|x), for noise from N(0, I); of an autoencoder z_mean. */
    sampleLatent({ z_mean, z_log_std }, noise) {
      return about.autoencoder ? z_mean : z_mean.map((mean, i) => mean + Math.exp(z_log_std[i]) * noise[i]);
    },
    /** The KL of each latent to N(0, 1), in nats, or null: a learned prior has it for a draw only, not by latent. */
    klPerLatent({ z_mean, z_log_std }) {
      if (about.prior.kind !== "standard") return null;
      return Array.from({ length: about.latents }, (_, i) => kl(z_mean[i], z_log_std[i]));
    },
    /**
     * What an image costs with the noise of one draw: the draw z, that `decoded`, and {loss, kl, elbo} in nats; null
     * what the run has not got.
     */
    costs(x, posterior, noise) {
      const z = vae.sampleLatent(posterior, noise), each = vae.klPerLatent(posterior), logits = vae.logits(z);
      const loss = reconstructionLoss && reconstructionLoss(x, logits);
      const total = about.autoencoder ? null : each ? sum(each) : klOfDraw(prior, z, posterior, about.latents);
      const elbo = loss === null || total === null ? null : -(loss + total);
      return { z, decoded: logits.map(sigmoid), loss, kl: total, elbo };
    },
  };
  return vae;
}

export const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

// --- losses: of an image x and logits, in nats, summed over pixels (main.py, utils/densities.py) ---------------------
const softplus = (a) => Math.max(a, 0) + Math.log1p(Math.exp(-Math.abs(a)));
const overPixels = (cost) => (x, logits) => {
  let total = 0;
  for (let i = 0; i < logits.length; i++) total += cost(x[i], logits[i]);
  return total;
};

const LOSSES = {
  ce: () => overPixels((x, logit) => softplus(logit) - x * logit),
  mse: () => overPixels((x, logit) => (x - sigmoid(logit)) ** 2),
  ad: () => overPixels((x, logit) => Math.abs(x - sigmoid(logit))),
  gaussian: (logScale) =>
    overPixels((x, logit) => ((x - sigmoid(logit)) ** 2 * Math.exp(-2 * logScale) + LOG_2_PI) / 2 + logScale),
  laplace: (logScale) =>
    overPixels((x, logit) => Math.abs(x - sigmoid(logit)) * Math.exp(-logScale) + logScale + Math.log(2)),
  logistic(logScale) {
    const scale = Math.exp(logScale), interval = Math.log(-Math.expm1(-1 / (255 * scale)));
    return overPixels((x, logit) => {
      const error = x - sigmoid(logit);
      const belowUpper = softplus(-(error + 1 / 510) / scale), aboveLower = softplus((error - 1 / 510) / scale);
      return x <= 0 ? belowUpper : x >= 1 ? aboveLower : belowUpper + aboveLower - interval;
    });
  },
};

// --- KL --------------------------------------------------------------------------------------------------------------
const kl = (mean, logStd) => (Math.exp(2 * logStd) + mean * mean - 1) / 2 - logStd;

/** log q(z|x) - log p(z) of a draw z: in expectation the KL, whatever the prior is. */
function klOfDraw(prior, z, { z_mean, z_log_std }, latents) {
  let logPosterior = 0;
  for (let i = 0; i < latents; i++) {
    logPosterior -= (((z[i] - z_mean[i]) * Math.exp(-z_log_std[i])) ** 2 + LOG_2_PI) / 2 + z_log_std[i];
  }
  return logPosterior - prior.logDensity(z.subarray(0, latents));
}

// --- priors: draws and log-densities (utils/priors.py) ---------------------------------------------------------------
const logStandardNormal = (z) => -sum(z.map((value) => value * value + LOG_2_PI)) / 2;

/**
 * {draw(normal, width), logDensity(z)} of the prior; null if there is none. A draw has the noise latents too. With
 * another width than 1, all noise that a draw is made of is that much wider.
 */
function readPrior({ prior, latents, noise }, readTensor) {
  const fill = (normal, width, count) => Float32Array.from({ length: count }, () => width * normal());
  if (prior.kind === "none") return null; // a plain autoencoder
  const { draw, logDensity } = {
    standard: () => ({ draw: (normal, width) => fill(normal, width, latents), logDensity: logStandardNormal }),
    mixture: () => mixture(prior, latents, readTensor),
    realnvp: () => realnvp(prior, latents, readTensor, fill),
  }[prior.kind]();
  return {
    draw: (normal, width = 1) => Float32Array.of(...draw(normal, width), ...fill(normal, width, noise)),
    logDensity: (z) => logDensity(Float64Array.from(z)),
  };
}

function mixture(prior, latents, readTensor) {
  const [means, logStds, logShares] = [prior.means, prior.log_stds, prior.log_shares].map(readTensor);
  return {
    draw(normal, width) {
      let left = normal.uniform(), component = 0;
      while (component < logShares.length - 1 && (left -= Math.exp(logShares[component])) > 0) component++;
      const at = component * latents;
      const one = (_, i) => means[at + i] + Math.exp(logStds[at + i]) * width * normal();
      return Float32Array.from({ length: latents }, one);
    },
    logDensity(z) {
      const logs = Array.from(logShares, (share, component) => {
        let log = share;
        for (let i = 0, at = component * latents; i < latents; i++, at++) {
          log -= (((z[i] - means[at]) * Math.exp(-logStds[at])) ** 2 + LOG_2_PI) / 2 + logStds[at];
        }
        return log;
      });
      const top = logs.reduce((a, b) => Math.max(a, b));
      return top + Math.log(sum(logs.map((log) => Math.exp(log - top))));
    },
  };
}

/** A flow of coupling layers, which change a part of the latents given the others; the way of utils/priors.py. */
function realnvp({ couplings, bound }, latents, readTensor, fill) {
  const networks = couplings.map((coupling) => readNetwork(coupling, readTensor));
  const shiftAndLogScale = (number, kept) => {
    const [both] = networks[number](Float32Array.from(kept)), half = both.length / 2;
    return [both.slice(0, half), both.slice(half).map((scale) => bound * Math.tanh(scale / bound))];
  };
  return {
    draw(normal, width) {
      let z = Array.from(fill(normal, width, latents));
      for (let number = networks.length - 1; number >= 0; number--) {
        const half = Math.floor((latents + (number % 2)) / 2), kept = z.slice(half);
        const [shift, logScale] = shiftAndLogScale(number, kept);
        const changed = z.slice(0, half).map((value, i) => (value - shift[i]) * Math.exp(-logScale[i]));
        z = number % 2 ? [...kept, ...changed] : z.map((_, i) => (i % 2 ? changed : kept)[i >> 1]);
      }
      return z;
    },
    logDensity(z) {
      let logDet = 0;
      z = Array.from(z);
      networks.forEach((_, number) => {
        const middle = latents >> 1, isKept = (i) => (number % 2 ? i < middle : i % 2 === 0);
        const kept = z.filter((_, i) => isKept(i)), changed = z.filter((_, i) => !isKept(i));
        const [shift, logScale] = shiftAndLogScale(number, kept);
        z = [...changed.map((value, i) => value * Math.exp(logScale[i]) + shift[i]), ...kept];
        logDet += sum(logScale);
      });
      return logStandardNormal(z) + logDet;
    },
  };
}
