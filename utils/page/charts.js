// The two charts beside the paper, as SVG in CSS pixels: what a picture costs, and what each latent says of it.
import { signed } from "./canvas.js";

const BINS = 48;
const SHOWN = 40; // latents

const line = (kind, x1, y1, x2, y2) => `<line class="${kind}" x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}"/>`;
const bar = (x, y, width, height) => `<rect class="bar" x="${x}" y="${y}" width="${width}" height="${height}"/>`;
const words = (x, y, anchor, text) => `<text x="${x}" y="${y}" text-anchor="${anchor}">${text}</text>`;

function fill(svg, width, height, parts, label) {
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  svg.setAttribute("aria-label", label);
  svg.innerHTML = parts.join("");
}

/** A function that shows a cost among `costs`, those of the test images, in nats; it returns a caption. */
export function costChart(svg, costs, what) {
  const rising = [...costs].sort((a, b) => a - b), low = rising[0];
  // Twice as wide as the test images need: there is room for pictures unlike them, and nothing has to move.
  const high = low + 2 * Math.max(rising[Math.floor(0.99 * (costs.length - 1))] - low, 1e-6);
  const counts = new Array(BINS).fill(0), part = (cost) => Math.max(0, Math.min(1, (cost - low) / (high - low)));
  for (const cost of costs) counts[Math.min(BINS - 1, Math.floor(BINS * part(cost)))]++;
  const most = Math.max(...counts);

  return (cost) => {
    const width = svg.clientWidth || 400, height = 92, floor = height - 22, step = width / BINS;
    const bars = counts.map((count, i) => {
      const tall = (count / most) * (floor - 8);
      return bar(i * step, floor - tall, step - 1, tall);
    });
    const ends = ["start", "middle", "end"].map((anchor, i) =>
      words((i * width) / 2, height - 4, anchor, (low + (i * (high - low)) / 2).toFixed(0)));
    const x = part(cost) * width;
    const dearer = Math.round((100 * costs.filter((other) => other > cost).length) / costs.length);
    const beyond = cost > high ? ", beyond the right end" : "";
    const caption = `${what}. Grey: the test images; blue: this picture${beyond}. ${dearer} % of them cost more.`;
    const axis = line("axis", 0, floor, width, floor), mark = line("stroke", x, 2, x, floor);
    fill(svg, width, height, [...bars, axis, ...ends, mark], caption);
    return caption;
  };
}

/** A function that shows the posterior of each latent and, if there is one, its KL in nats; it returns a caption. */
export function posteriorChart(svg, about, vae, state) {
  const order = state.order.slice(0, SHOWN), usual = usualKl(vae, state), plain = about.autoencoder;
  const end = about.prior.kind === "standard" ? 4 : Math.ceil(farthest(state));
  return (posterior) => {
    const each = vae.klPerLatent(posterior), { z_mean, z_log_std } = posterior;
    const width = svg.clientWidth || 400, left = 40, step = (width - left) / order.length;
    const wide = Math.min(0.7 * step, 40);
    const upper = 96, floor = upper + 80, top = upper + 22, height = (each ? floor : upper) + 24;
    const up = (z) => upper / 2 - (Math.max(-1, Math.min(1, z / end)) * (upper - 8)) / 2;
    const most = each ? Math.max(usual, ...each) : 1;
    const scale = (y, text) => words(left - 8, y + 4, "end", text) + line("axis", left, y, width, y);
    const parts = [end, 0, -end].map((z) => scale(up(z), signed(z, 0)));
    if (each) parts.push(scale(floor, "0"), scale(top, most.toFixed(1)));
    order.forEach((latent, k) => {
      const x = left + (k + 0.5) * step, std = plain ? 0 : Math.exp(z_log_std[latent]);
      parts.push(line("stroke", x, up(z_mean[latent] + std), x, up(z_mean[latent] - std)));
      parts.push(mark(x, up(z_mean[latent]), Math.abs(z_mean[latent]) > end ? Math.sign(z_mean[latent]) : 0));
      const tall = each ? (each[latent] / most) * (floor - top) : 0;
      if (each) parts.push(bar(x - wide / 2, floor - tall, wide, tall));
      if (step >= 22 || k % 5 === 0) parts.push(words(x, height - 6, "middle", `z${latent + 1}`));
    });
    const above = "the posterior of each latent, its mean and one standard deviation up and down.";
    const what = plain ? "The code." : each ? `Above: ${above} Below: its KL in nats.` : `Shown: ${above}`;
    const caption = [what, "Latents in the order of the sliders."];
    if (about.latents > SHOWN) caption.push(`Of ${about.latents} latents the first ${SHOWN}.`);
    const told = each ? order.slice(0, 5).map((latent) => `z${latent + 1} ${each[latent].toFixed(1)} nats`) : [];
    fill(svg, width, height, parts, [...caption, told.join(", ")].join(" "));
    return caption.join(" ");
  };
}

/** A dot; a triangle for what lies beyond the end of the scale, upwards (1) or downwards (-1). */
function mark(x, y, beyond) {
  if (!beyond) return `<circle class="value" cx="${x}" cy="${y}" r="3"/>`;
  return `<path class="value" d="M${x - 4},${y + 3 * beyond} L${x + 4},${y + 3 * beyond} L${x},${y - 4 * beyond} Z"/>`;
}

/** The size of a latent's mean that one in two hundred exceeds. */
function farthest(state) {
  const sizes = Array.from({ length: state.count }, (_, i) => Array.from(state.posterior(i).z_mean, Math.abs)).flat();
  return sizes.sort((a, b) => a - b)[Math.floor(0.995 * (sizes.length - 1))] || 1;
}

/** The KL that the largest latent of one test image in a hundred exceeds: the usual height of the chart. */
function usualKl(vae, state) {
  const largest = Array.from({ length: state.count }, (_, i) => {
    const each = vae.klPerLatent(state.posterior(i));
    return each ? Math.max(...each) : 0;
  });
  return Math.max(0.1, largest.sort((a, b) => a - b)[Math.floor(0.99 * (state.count - 1))]);
}
