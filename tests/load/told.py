"""Whether the drafts of a stream are what the README says they are."""

from itertools import groupby

from diffusiongemma_vllm.evaluation import turns

DRAFT = "diffusion_draft"
FIELDS = {"canvas", "step", "rerolls", "done", "text", "length", "tokens", "guess", "settled",
          "entropy"}


def fault(choices: list[dict], every: int, turn: str) -> str | None:
    """What is wrong, or None.

    choices: of every chunk of the stream.  every: what ``diffusion_drafts`` was.  turn: the answer.
    """
    drafts = [one[DRAFT] for one in choices if DRAFT in one]
    if any(one["delta"]["content"] or one["finish_reason"] for one in choices if DRAFT in one):
        return "a chunk with a draft has text or an end"
    bad = [found for draft in drafts if (found := _malformed(draft, every))]
    if bad:
        return bad[0]
    once: dict[tuple[int, int, int], dict] = {}
    for draft in drafts:  # a request that was preempted begins its canvas again
        if once.setdefault((draft["canvas"], draft["rerolls"], draft["step"]), draft) != draft:
            return f"canvas {draft['canvas']} differs at step {draft['step']} when it is told again"
    ends = []
    for canvas, own in groupby(once.values(), lambda draft: draft["canvas"]):
        last = list(own)
        if canvas != len(ends) or [one["done"] for one in last].count(True) != 1:
            return f"canvas {canvas} comes after {len(ends)}, or does not settle once"
        ends.append(last[-1])
        steps = [one["step"] for one in last if one["rerolls"] == last[-1]["rerolls"]]
        if steps != sorted({*range(every, steps[-1], every), steps[-1]}):
            return f"canvas {canvas} has drafts of steps {steps}, asked for every {every}"
    reported = [each["steps"] for one in choices if "diffusion" in one
                for each in one["diffusion"]["canvases"]]
    if [one["step"] for one in ends] != reported:
        return f"canvases settled at {[one['step'] for one in ends]}, the report has {reported}"
    text = "".join(
        token for end in ends
        for token, settled in zip(end["tokens"], end["settled"], strict=True) if settled
    )
    if turns.from_text(text) != turn:
        return f"settled canvases hold {text!r}, the answer is {turn}"
    return None


def _malformed(draft: dict, every: int) -> str | None:
    if set(draft) != FIELDS:
        return f"fields {sorted(draft)}"
    if len({len(draft[name]) for name in ("tokens", "guess", "settled", "entropy")}) != 1:
        return "tokens, guesses, settled and entropies are not equally many"
    if draft["text"] != "".join(draft["guess"][: draft["length"]]):
        return f"{draft['text']!r} is not what {draft['length']} guesses spell"
    if not all(type(one) is bool for one in draft["settled"]) or min(draft["entropy"]) < 0:
        return "settled is not bool, or an entropy is below 0"
    if draft["step"] < 1 or draft["step"] % every and not draft["done"]:
        return f"a draft of step {draft['step']}, asked for every {every}"
    return None
