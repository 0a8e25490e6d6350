// Talking to the server. The browser shows its cookie; nothing else is needed.

export class Refused extends Error {
  constructor(error, status) {
    const [message, hint] = String(error?.message || "the server did not answer").split(". Hint: ");
    super(message);
    this.hint = hint || "";
    this.status = status;
  }
}

async function answered(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused({ message: "the server is not there. Hint: op serve" }, 0);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refused(body.error, response.status);
}

export async function get(path) {
  return (await answered(path)).json();
}

export async function send(method, path, body, signal) {
  const raw = body instanceof FormData || body instanceof Blob;
  const response = await answered(path, {
    method,
    signal,
    body: body === undefined ? undefined : raw ? body : JSON.stringify(body),
    headers: raw || body === undefined ? {} : { "content-type": "application/json" },
  });
  return response.status === 204 ? null : response.json();
}

export const post = (path, body, signal) => send("POST", path, body, signal);

/** Send a request, and hand on every line of its answer as it comes. */
export async function lines(path, body, take, signal) {
  const response = await answered(path, {
    method: "POST",
    signal,
    body: JSON.stringify(body),
    headers: { "content-type": "application/json" },
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    rest += value;
    const whole = rest.split("\n");
    rest = whole.pop();
    for (const line of whole.filter(Boolean)) {
      const event = JSON.parse(line);
      if (event.event === "error") throw new Refused(event, event.status);
      take(event);
    }
  }
}

export const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

export const blobOf = (png) =>
  new Blob([Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0))], { type: "image/png" });
