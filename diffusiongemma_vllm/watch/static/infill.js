// Text with gaps: the text is held, the gaps are denoised.

import { Canvas, forwards } from "./canvas.js";
import { complain, find, make } from "./dom.js";
import { parameters } from "./settings.js";
import { chunks, model, post } from "./stream.js";

const GAP = /\[\[(\d+)\]\]/;
const START = "<bos>";
// Gemma's markers, which a gap is no place for.
const MARKERS = [
  "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|tool>", "<tool|>", "<|tool_call>",
  "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<|think|>", "<|channel>",
  "<channel|>", "<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>", "<|audio>", "<audio|>",
  "<|audio|>", "<|video|>",
];
const EXAMPLE = "Count from 001 to 020.\n001 002 003 004 [[20]] 010 011 012";
let running = null;

export function start() {
  const template = find("template");
  template.value = EXAMPLE;
  find("insert").addEventListener("click", () => {
    const gap = `[[${find("gap").value || 8}]]`;
    template.setRangeText(gap, template.selectionStart, template.selectionEnd, "end");
    template.focus();
  });
  find("fill").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) fill(template.value);
  });
  find("fillstop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
}

async function tokenize(name, prompt) {
  const body = { model: name, prompt, add_special_tokens: false };
  return (await (await post("/tokenize", body)).json()).tokens;
}

/** Tokens to hold, -1 in the gaps, and where each gap is. */
async function held(name, text) {
  const template = [];
  const gaps = [];
  for (const [i, part] of text.split(GAP).entries()) {
    if (i % 2) {
      const width = Number(part);
      if (!width) throw new Error("A gap must have room for 1 token or more, as [[1]]");
      gaps.push([template.length, template.length + width]);
      template.push(...Array(width).fill(-1));
    } else if (part) {
      template.push(...await tokenize(name, part));
    }
  }
  if (!gaps.length) throw new Error("There is no gap to fill: write one as [[8]]");
  return { template, gaps };
}

async function fill(text) {
  const canvas = new Canvas();
  const result = make("pre", { className: "words" });
  running = new AbortController();
  complain(find("fillproblem"));
  find("fillstop").hidden = false;
  find("filled").replaceChildren(result, canvas.element);
  try {
    const name = await model();
    const { template, gaps } = await held(name, text);
    const { vllm_xargs: steps, temperature, seed, top_k: topK, top_p: topP } = parameters();
    const markers = await tokenize(name, MARKERS.join(""));
    const start = await tokenize(name, START);
    const body = {
      model: name, prompt: start, max_tokens: template.length, ignore_eos: true, temperature, seed,
      top_k: topK, top_p: topP, stream_options: { include_usage: true },
      logit_bias: Object.fromEntries(markers.map((token) => [token, -100])),
      vllm_xargs: { diffusion_drafts: 1, ...steps, diffusion_template: template },
    };
    const written = [];
    for await (const chunk of chunks("/v1/completions", body, running.signal)) {
      for (const choice of chunk.choices) {
        const draft = choice.diffusion_draft;
        if (!draft) continue;
        canvas.add(draft);
        if (draft.done) written.push(...draft.tokens);
        canvas.cost(written.length, forwards(canvas.drafts));
      }
    }
    show(result, written.slice(0, template.length), gaps);
  } catch (error) {
    if (error.name !== "AbortError") complain(find("fillproblem"), error.message);
  } finally {
    canvas.finish();
    running = null;
    find("fillstop").hidden = true;
  }
}

/** The text with what stands in each gap marked. */
function show(result, written, gaps) {
  let at = 0;
  for (const [first, last] of gaps) {
    result.append(written.slice(at, first).join(""),
      make("mark", {}, written.slice(first, last).join("")));
    at = last;
  }
  result.append(written.slice(at).join(""));
}
