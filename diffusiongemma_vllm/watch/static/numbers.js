// What the server's metrics say.

import { find, make } from "./dom.js";

const PREFIX = "vllm:diffusion_";

/** Samples of a Prometheus page: name, labels, value. */
export function parse(page) {
  const samples = [];
  for (const line of page.split("\n")) {
    const found = /^([\w:]+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found || line.startsWith("#")) continue;
    const labels = Object.fromEntries(
      [...(found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((m) => [m[1], m[2]]));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

function sum(samples, name, labels = {}) {
  const fits = (one) => one.name === name
    && Object.entries(labels).every(([key, value]) => one.labels[key] === value);
  return samples.filter(fits).reduce((total, one) => total + one.value, 0);
}

const mean = (samples, name) =>
  sum(samples, `${PREFIX}${name}_sum`) / sum(samples, `${PREFIX}${name}_count`);
const show = (value, digits = 1) => (Number.isFinite(value) ? value.toFixed(digits) : "–");
const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(0)} %` : "–");

function facts(samples) {
  const canvases = sum(samples, `${PREFIX}canvases_total`);
  const stopped = (why) => sum(samples, `${PREFIX}canvases_total`, { stopped: why });
  const seats = sum(samples, `${PREFIX}seats`);
  return {
    "running, waiting": `${sum(samples, "vllm:num_requests_running")}, `
      + `${sum(samples, "vllm:num_requests_waiting")}`,
    "canvases": canvases.toFixed(0),
    "tokens of text": sum(samples, `${PREFIX}text_tokens_total`).toFixed(0),
    "tokens a forward": show(mean(samples, "tokens_per_forward")),
    "steps a canvas": show(mean(samples, "canvas_steps")),
    "settled by itself": share(stopped("settled"), canvases),
    "at the step limit": share(stopped("step_limit"), canvases),
    "ended by a grammar": share(stopped("constraint"), canvases),
    "canvases a forward": `${show(mean(samples, "batch_canvases"))} of ${seats || "–"}`,
    "drawn again": sum(samples, `${PREFIX}rerolls_total`).toFixed(0),
    "fused commits": sum(samples, `${PREFIX}fused_commits_total`).toFixed(0),
    "expert skew": show(mean(samples, "expert_skew"), 2),
  };
}

/** Canvases by their steps: [label, count], from a histogram's cumulative buckets. */
export function bars(samples) {
  const buckets = new Map();
  for (const { name, labels, value } of samples) {
    if (name === `${PREFIX}canvas_steps_bucket`) {
      const bound = Number(labels.le.replace("+Inf", "Infinity"));
      buckets.set(bound, (buckets.get(bound) ?? 0) + value);
    }
  }
  const bounds = [...buckets.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound, i) =>
    [bound === Infinity ? "more" : `≤ ${bound}`, buckets.get(bound) - (buckets.get(bounds[i - 1]) ?? 0)]);
  const last = counts.findLastIndex(([, count]) => count > 0);
  return counts.slice(0, last + 1);
}

async function refresh() {
  const numbers = find("numbers");
  const answer = await fetch("/metrics");
  if (!answer.ok) {
    numbers.replaceChildren(make("dt", {}, "no answer"), make("dd", {}, `${answer.status}`));
    return;
  }
  const samples = parse(await answer.text());
  numbers.replaceChildren(...Object.entries(facts(samples)).map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const found = bars(samples);
  const most = Math.max(1, ...found.map(([, count]) => count));
  find("steps").replaceChildren(...found.map(([label, count]) => {
    const bar = make("i");
    bar.style.height = `${(10 * count) / most}rem`;
    return make("div", {}, make("b", {}, String(count)), bar, make("span", {}, label));
  }));
  find("steps").setAttribute("aria-label",
    found.map(([label, count]) => `${label} steps: ${count}`).join(", ") || "no canvas yet");
}

export function start() {
  const look = () => !find("server").hidden && !document.hidden && refresh();
  setInterval(look, 2000);
  addEventListener("hashchange", look);
  look();
}
