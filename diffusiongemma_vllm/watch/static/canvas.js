// A canvas while it settles: one span a token, tinted by how sure the model is.

import { find, make } from "./dom.js";

const MARK = /^<[^<>\s]+>$/;
const BOUNDS = [0.25, 0.5, 0.75, 0.9]; // of the likeliest token's rough probability

/** 0 unsure … 4 sure, from an entropy in nats. */
export function sureness(entropy) {
  const sure = Math.exp(-entropy);
  return BOUNDS.filter((bound) => sure >= bound).length;
}

export class Canvas {
  constructor() {
    this.drafts = [];
    this.spans = [];
    this.status = make("span", { className: "status" });
    this.rate = make("span", { className: "rate" });
    this.meter = make("progress", { max: 1, value: 0, "aria-hidden": "true" });
    this.tokens = make("div", { className: "tokens", "aria-hidden": "true" });
    this.slider = make("input", {
      type: "range", min: 0, value: 0, "aria-label": "Step to look at",
    });
    this.slider.addEventListener("input", () => this.draw(this.drafts[this.slider.value]));
    this.replay = make("label", { className: "replay", hidden: true }, "Steps ", this.slider);
    const caption = make("summary", {}, this.status, this.rate, this.meter);
    this.element = make("details", { className: "canvas", hidden: true }, caption, this.tokens,
      this.replay);
    find("noise").addEventListener("change", () => {
      if (this.shown) this.draw(this.shown);
    });
  }

  /** The newest draft of this answer. */
  add(draft) {
    this.drafts.push(draft);
    this.element.hidden = false;
    this.element.open = true;
    this.element.classList.add("live");
    this.draw(draft);
  }

  /** Tokens of text and forwards so far. */
  cost(tokens, forwards) {
    this.rate.textContent = forwards && tokens
      ? `${(tokens / forwards).toFixed(1)} tokens a forward` : "";
  }

  /** The answer is whole: leave its steps to be looked at again. */
  finish() {
    this.element.classList.remove("live");
    this.element.open = false;
    if (!this.drafts.length) return;
    this.slider.max = this.drafts.length - 1;
    this.slider.value = this.slider.max;
    this.replay.hidden = false;
  }

  draw(draft) {
    this.shown = draft;
    const noise = find("noise").checked;
    const length = draft.tokens.length;
    while (this.spans.length < length) {
      const span = make("span");
      this.spans.push(span);
      this.tokens.append(span);
    }
    while (this.spans.length > length) this.spans.pop().remove();
    let settled = 0;
    let marked = false;
    draft.tokens.forEach((held, i) => {
      const fixed = draft.settled[i];
      settled += fixed;
      const text = fixed || noise ? held : draft.guess[i];
      const span = this.spans[i];
      const mark = MARK.test(text);
      const name = [
        fixed ? "fixed" : `c${sureness(draft.entropy[i])}`, mark ? "mark" : "",
        i > draft.length || (mark && marked) ? "behind" : "",
      ].join(" ");
      marked = mark;
      if (span.textContent !== text) span.textContent = text;
      if (span.className !== name) span.className = name;
    });
    this.meter.value = settled / length;
    const rerolls = draft.rerolls ? ` · draw ${draft.rerolls + 1}` : "";
    this.status.textContent =
      `canvas ${draft.canvas + 1} · step ${draft.step}${rerolls} · ${settled} of ${length} settled`;
    this.slider.setAttribute("aria-valuetext", this.status.textContent);
  }
}

/** Forwards that drafts tell of so far: the prompt's, and each canvas's steps. */
export function forwards(drafts) {
  const steps = new Map();
  for (const draft of drafts) {
    const drawn = `${draft.canvas}.${draft.rerolls}`;
    steps.set(drawn, Math.max(steps.get(drawn) ?? 0, draft.step));
  }
  return [...steps.values()].reduce((sum, one) => sum + one, 1);
}
