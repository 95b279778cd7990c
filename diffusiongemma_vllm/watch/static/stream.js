// One streamed request to the server: events in, in order.

/** What the server says of a failed request, as a sentence. */
async function complaint(answer) {
  const body = await answer.text();
  try {
    const said = JSON.parse(body);
    return said.error?.message ?? said.message ?? body;
  } catch {
    return body || `the server answered ${answer.status}`;
  }
}

export async function post(path, body, signal) {
  const answer = await fetch(path, {
    method: "POST", signal, headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(await complaint(answer));
  return answer;
}

/** Every chunk of a streamed completion, parsed. */
export async function* chunks(path, body, signal) {
  const answer = await post(path, { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const chunk = JSON.parse(line.slice(6));
        if (chunk.error) throw new Error(chunk.error.message);
        yield chunk;
      }
    }
  } finally {
    if (!signal.aborted) reader.cancel();
  }
}

/** The name of the first served model. */
export async function model() {
  const answer = await fetch("/v1/models");
  if (!answer.ok) throw new Error(await complaint(answer));
  return (await answer.json()).data[0].id;
}
