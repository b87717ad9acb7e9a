// Calls of the proxy's own API, with the API token of this tab if it needs one.

const TOKEN = "nacos-proxy token";
const PATIENCE = 10_000; // ms; a proxy that does not answer a read for so long does not answer

/** What the proxy answered instead of what was asked for; `status` 0: it did not answer. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: text => sessionStorage.setItem(TOKEN, text),
  forget: () => sessionStorage.removeItem(TOKEN),
};

/** Moves a token from the page's address to this tab's memory, so that it is in no bookmark and no history. */
export function takeTokenFromAddress() {
  const address = new URL(location.href);
  for (const name of ["accessToken", "access_token"]) {
    const given = address.searchParams.get(name);
    if (given) token.set(given);
    address.searchParams.delete(name);
  }
  if (address.href !== location.href) history.replaceState(null, "", address);
}

/** The JSON of an answer, null if it has none. Raises `Problem`. */
export async function call(path, { method = "GET", query = {}, body, signal } = {}) {
  const patience = method === "GET" ? AbortSignal.timeout(PATIENCE) : null; // a drain answers at its end
  const reply = await request(path, { method, query, body, signal: signal ?? patience });
  if (reply.status === 204) return null;
  try {
    return await reply.json();
  } catch (error) {
    throw unanswered(error, error instanceof SyntaxError ? "what answers is not JSON" : "the answer broke off");
  }
}

function unanswered(error, why) {
  return new Problem(0, error.name === "TimeoutError" ? `no answer within ${PATIENCE / 1000} s` : why);
}

async function request(path, { method = "GET", query = {}, body, signal }) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value != null);
  const headers = {};
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (body) headers["Content-Type"] = "application/json";
  let reply;
  try {
    reply = await fetch(given.length ? `${path}?${new URLSearchParams(given)}` : path, {
      method,
      headers,
      signal,
      cache: "no-store",
      body: body && JSON.stringify(body),
    });
  } catch (error) {
    throw unanswered(error, `no connection to ${location.host}`);
  }
  if (!reply.ok) throw new Problem(reply.status, await detailOf(reply));
  return reply;
}

async function detailOf(reply) {
  const answer = await reply.json().catch(() => null);
  return answer?.detail ?? `the answer is ${reply.status} ${reply.statusText}`; // of something before the proxy
}

/**
 * The events of services as `{id, event, data}`, until the proxy ends the stream. Raises `Problem`.
 * `EventSource` would be shorter, but cannot send a token in a header.
 */
export async function* events(query, signal) {
  const reply = await request("/api/v1/events", { query, signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const fields = Object.fromEntries(part.split("\n").map(line => line.split(/: ?([^]*)/, 2)));
      if (fields.data) yield { ...fields, data: JSON.parse(fields.data) };
    }
  }
}
