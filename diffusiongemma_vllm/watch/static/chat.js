// The conversation.

import { Canvas, forwards } from "./canvas.js";
import { complain, find, make } from "./dom.js";
import * as settings from "./settings.js";
import { chunks, model } from "./stream.js";

const IDEAS = [
  "Count from 001 to 120.", "What is 27 + 38?", "Reverse these words: boat lamp salt",
  "What is the weather in Paris?",
];
const messages = []; // as the server takes them
let images = []; // data URLs of the next message
let running = null; // the AbortController of the answer under way

export function start() {
  for (const idea of IDEAS) {
    const button = make("button", { type: "button", className: "quiet" }, idea);
    button.addEventListener("click", () => ask(idea));
    find("ideas").append(button);
  }
  const prompt = find("prompt");
  find("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (prompt.value.trim() || images.length) ask(prompt.value.trim());
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      find("ask").requestSubmit();
    }
  });
  prompt.addEventListener("input", () => {
    prompt.style.height = "auto";
    prompt.style.height = `${Math.min(prompt.scrollHeight, 200)}px`;
  });
  prompt.addEventListener("paste", (event) => attach(event.clipboardData.files));
  find("file").addEventListener("change", (event) => {
    attach(event.target.files);
    event.target.value = "";
  });
  find("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  find("clear").addEventListener("click", () => {
    running?.abort();
    messages.length = 0;
    find("log").querySelectorAll(".turn").forEach((turn) => turn.remove());
    find("empty").hidden = false;
    complain(find("problem"));
    prompt.focus();
  });
}

async function attach(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) continue;
    const url = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.addEventListener("load", () => resolve(reader.result));
      reader.readAsDataURL(file);
    });
    images.push(url);
    const remove = make("button", { type: "button", "aria-label": `Remove ${file.name}` }, "×");
    const shown = make("span", {}, make("img", { src: url, alt: file.name }), remove);
    remove.addEventListener("click", () => {
      images = images.filter((one) => one !== url);
      shown.remove();
      find("prompt").focus();
    });
    find("images").append(shown);
  }
}

function ask(text) {
  if (running) return;
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  const content = parts.length ? [...parts, { type: "text", text }] : text;
  messages.push({ role: "user", content });
  const turn = make("article", { className: "turn user", "aria-label": "You" });
  turn.append(...images.map((url) => make("img", { src: url, alt: "attached image" })), text);
  find("log").append(turn);
  find("images").replaceChildren();
  images = [];
  find("prompt").value = "";
  find("prompt").style.height = "auto";
  answer();
}

/** Ask for the next turn of the conversation and show it as it comes. */
async function answer() {
  const view = new Answer();
  running = new AbortController();
  find("empty").hidden = true;
  find("log").append(view.element);
  busy(true);
  complain(find("problem"));
  try {
    const system = settings.system();
    const body = {
      model: await model(), ...settings.parameters(), tools: settings.tools(),
      messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
      stream_options: { include_usage: true },
      chat_template_kwargs: { enable_thinking: settings.thinking() },
    };
    for await (const chunk of chunks("/v1/chat/completions", body, running.signal)) {
      view.take(chunk);
      find("log").scrollTop = find("log").scrollHeight;
    }
    messages.push(view.message());
  } catch (error) {
    if (error.name === "AbortError") {
      messages.push(view.message());
    } else {
      complain(find("problem"), error.message);
      messages.pop();
      view.element.remove();
    }
  } finally {
    view.finish();
    running = null;
    busy(false);
    find("log").scrollTop = find("log").scrollHeight;
  }
}

function busy(yes) {
  find("stop").hidden = !yes;
  find("send").disabled = yes;
  find("log").setAttribute("aria-busy", yes);
}

/** One answer of the model. */
class Answer {
  constructor() {
    this.text = "";
    this.reasoning = "";
    this.calls = [];
    this.usage = null;
    this.report = null;
    this.canvas = new Canvas();
    this.thought = make("div");
    this.thoughts = make("details", { className: "thought", hidden: true },
      make("summary", {}, "Thought"), this.thought);
    this.words = make("div", { className: "words" });
    this.called = make("div", { className: "calls" });
    this.foot = make("p", { className: "cost" });
    this.element = make("article", { className: "turn model", "aria-label": "Model" },
      this.thoughts, this.words, this.called, this.canvas.element, this.foot);
  }

  take(chunk) {
    this.usage = chunk.usage ?? this.usage;
    for (const choice of chunk.choices) {
      if (choice.diffusion_draft) this.canvas.add(choice.diffusion_draft);
      this.report = choice.diffusion ?? this.report;
      const { content, reasoning, tool_calls: calls } = choice.delta ?? {};
      if (content) this.words.textContent = this.text += content;
      if (reasoning) {
        this.thought.textContent = this.reasoning += reasoning;
        this.thoughts.hidden = false;
      }
      for (const call of calls ?? []) this.call(call);
    }
    const written = this.canvas.drafts.filter((draft) => draft.done)
      .reduce((sum, draft) => sum + Math.min(draft.length + 1, draft.tokens.length), 0);
    this.canvas.cost(written, forwards(this.canvas.drafts));
  }

  call(delta) {
    const known = this.calls[delta.index] ??= {
      id: "", type: "function", function: { name: "", arguments: "" },
    };
    known.id ||= delta.id ?? "";
    known.function.name += delta.function?.name ?? "";
    known.function.arguments += delta.function?.arguments ?? "";
    this.called.replaceChildren(...this.calls.map((call) => make("code", {},
      `${call.function.name}(${call.function.arguments})`)));
  }

  message() {
    const calls = this.calls.length ? { tool_calls: this.calls } : {};
    return { role: "assistant", content: this.text, ...calls };
  }

  /** Say what it cost, and ask for the results of calls. */
  finish() {
    this.canvas.finish();
    if (this.report && this.usage) {
      const { forwards: spent, canvases } = this.report;
      const tokens = this.usage.completion_tokens;
      const steps = canvases.map((one) => one.steps).join(" + ");
      const plural = canvases.length === 1 ? "canvas" : "canvases";
      this.foot.textContent = `${tokens} tokens · ${canvases.length} ${plural} of ${steps} steps · `
        + `${spent} forwards · ${(tokens / spent).toFixed(1)} tokens a forward`;
      this.canvas.cost(tokens, spent);
    }
    if (this.calls.length) this.element.append(this.results());
  }

  results() {
    const fields = this.calls.map((call) => make("label", { className: "field" },
      `Result of ${call.function.name} `, make("input", { type: "text", required: true })));
    const form = make("form", { className: "results" }, ...fields,
      make("button", { type: "submit" }, "Send the result"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (running) return;
      this.calls.forEach((call, i) => messages.push({
        role: "tool", tool_call_id: call.id, content: fields[i].querySelector("input").value,
      }));
      form.querySelectorAll("input, button").forEach((one) => { one.disabled = true; });
      answer();
    });
    return form;
  }
}
