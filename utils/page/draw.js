// Draw: a picture on the paper, what the model makes of it, and what it costs in nats.
import { announce, element, inFrame, inNats, paint } from "./canvas.js";
import { costChart, posteriorChart } from "./charts.js";
import { createPaper } from "./paper.js";
import { normals } from "./vae.js";

export function createDraw(about, vae, state) {
  const shape = about.shape, isLikelihood = about.sum === "ELBO";
  const what = about.autoencoder ? "Reconstruction loss" : "Reconstruction + KL, with one draw of z";
  const costs = Array.from({ length: state.count }, (_, i) => state.costs(i)).map(({ loss, kl }) => loss + (kl ?? 0));
  const showCost = costChart(element("cost-chart"), costs, what);
  const showPosterior = posteriorChart(element("posterior-chart"), about, vae, state);
  let seed = 1; // of the noise, which stays while something is drawn

  const update = inFrame(() => {
    const x = paper.seen(), normal = normals(seed), noise = Float32Array.from({ length: vae.size }, () => normal());
    const posterior = vae.encode(x), { decoded, loss, kl, elbo } = vae.costs(x, posterior, noise);
    paint(element("draw-input"), x, shape, "what the encoder sees");
    paint(element("draw-mean"), vae.decode(posterior.z_mean), shape, "decoded mean of the posterior");
    if (!about.autoencoder) paint(element("draw-sample"), decoded, shape, "a decoded draw from the posterior");
    element("draw-loss").textContent = loss === null ? "a loss of your own" : inNats(loss, isLikelihood);
    element("draw-kl").textContent = inNats(kl);
    element("draw-elbo").textContent = inNats(elbo, isLikelihood);
    if (loss !== null) element("cost-caption").textContent = showCost(loss + (kl ?? 0));
    element("posterior-caption").textContent = showPosterior(posterior);
    element("draw-note").textContent = paper.remarks();
    if (!paper.hasSample()) announce(element("cost-caption").textContent);
  });

  const paper = createPaper(about, update);
  const showSample = () => paper.take(state.image(state.selected), "The selected image, until you draw.", true);
  element("take").addEventListener("click", () => {
    paper.take(state.image(state.selected), `Test image: ${state.label(state.selected)}. Draw on it.`);
  });
  element("again").addEventListener("click", () => (seed++, update()));
  state.on(({ selected }) => selected && paper.hasSample() && showSample());
  element("cost-chart").parentElement.hidden = about.loss === null; // of a loss that the page does not know
  new ResizeObserver(update).observe(element("posterior-chart").parentElement);
  showSample();
}
