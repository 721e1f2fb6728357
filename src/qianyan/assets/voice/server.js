/* The server as the page sees it: which models it has, and the realtime socket. */

const MODELS_URL = new URL("../../v1/models", import.meta.url);
const SOCKET_URL = new URL("../../v1/realtime", import.meta.url);
const OPEN_WITHIN_MS = 20000;
const MOST_UNSENT_BYTES = 2_000_000;
const KEY_PROTOCOL = "openai-insecure-api-key."; // browsers can set no headers
const TOKEN = /^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/;

/* A fault with a code that `texts.js` has words for, and perhaps the server's own. */
export class Fault extends Error {
  constructor(code, detail = "") {
    super(detail || code);
    this.code = code;
    this.detail = detail;
  }
}

/* List the models; the fault `key` asks for another key. */
export async function listModels(key) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(MODELS_URL, { headers, cache: "no-store" });
  } catch {
    throw new Fault("offline");
  }
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) {
    throw new Fault(key ? "key_wrong" : "key");
  }
  if (!response.ok) {
    throw new Fault("refused", body.error?.message);
  }
  return body.data;
}

/* Load a module onto a context's audio thread. */
export async function addWorklet(context, name) {
  try {
    await context.audioWorklet.addModule(new URL(name, import.meta.url));
  } catch (error) {
    throw error.name === "AbortError" ? new Fault("offline") : error;
  }
}

export class Socket {
  /* Connect; `onEvent` gets every event, `onLost` is called once when the connection is gone. */
  static open({ model, key, onEvent, onLost }) {
    if (key && !TOKEN.test(key)) {
      throw new Fault("key_unsendable");
    }
    const url = new URL(SOCKET_URL);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("model", model);
    const wire = new WebSocket(url, ["realtime", ...(key ? [KEY_PROTOCOL + key] : [])]);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => wire.close(), OPEN_WITHIN_MS);
      wire.onclose = () => {
        clearTimeout(timer);
        reject(new Fault("offline"));
      };
      wire.onopen = () => {
        clearTimeout(timer);
        resolve(new Socket(wire, onEvent, onLost));
      };
    });
  }

  constructor(wire, onEvent, onLost) {
    this.wire = wire;
    wire.onmessage = ({ data }) => onEvent(JSON.parse(data));
    wire.onclose = onLost;
  }

  get isOpen() {
    return this.wire.readyState === WebSocket.OPEN;
  }

  /* Send an event; false where the connection is gone or carries no more. */
  send(type, fields = {}) {
    if (!this.isOpen || this.wire.bufferedAmount > MOST_UNSENT_BYTES) {
      return false;
    }
    this.wire.send(JSON.stringify({ type, ...fields }));
    return true;
  }

  close() {
    this.wire.onclose = null;
    this.wire.onmessage = null;
    this.wire.close(1000);
  }
}
