// The parameters, kept in this browser.

import { find } from "./dom.js";

const KEY = "diffusiongemma";
const fields = () => [...document.querySelectorAll(".settings [name], #thinking, #noise")];
const EXAMPLE = [{
  type: "function",
  function: {
    name: "get_weather", description: "Current weather of a city",
    parameters: {
      type: "object", properties: { city: { type: "string" } }, required: ["city"],
    },
  },
}];

export function start() {
  const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}");
  for (const field of fields()) {
    const name = field.name || field.id;
    if (!(name in kept)) continue;
    if (field.type === "checkbox") field.checked = kept[name];
    else field.value = kept[name];
  }
  document.addEventListener("change", keep);
  find("example").addEventListener("click", () => {
    document.querySelector("[name=tools]").value = JSON.stringify(EXAMPLE, null, 1);
    keep();
  });
  const theme = kept.theme;
  if (theme) document.documentElement.dataset.theme = theme;
  find("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme.trim() === "dark";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    keep();
  });
}

function keep() {
  const kept = { theme: document.documentElement.dataset.theme };
  for (const field of fields()) {
    kept[field.name || field.id] = field.type === "checkbox" ? field.checked : field.value;
  }
  localStorage.setItem(KEY, JSON.stringify(kept));
}

const text = (name) => document.querySelector(`[name=${name}]`).value.trim();

/** What of `names` is filled in, as numbers. */
function numbers(names) {
  const given = names.filter((name) => text(name) !== "");
  return Object.fromEntries(given.map((name) => [name, Number(text(name))]));
}

/** The parameters of a request, as the server takes them. */
export function parameters() {
  const steps = ["diffusion_max_denoising_steps", "diffusion_entropy_bound", "diffusion_drafts"];
  return {
    ...numbers(["temperature", "top_p", "top_k", "seed", "max_tokens"]),
    vllm_xargs: numbers(steps),
  };
}

export const system = () => text("system");
export const thinking = () => find("thinking").checked;

/** The tools, or undefined.  Throws a sentence where they are no JSON list. */
export function tools() {
  if (!text("tools")) return undefined;
  let found;
  try {
    found = JSON.parse(text("tools"));
  } catch (error) {
    throw new Error(`Tools are not JSON: ${error.message}`);
  }
  if (!Array.isArray(found)) throw new Error("Tools must be a JSON list");
  return found;
}
