// A typed fetch with the routes, bodies and answers of types.ts, which is generated from /docs/json.

import type { ApiError, Operations } from "./types.js";

export type Route = keyof Operations;
/** Parameters and body of a route. */
export type Given<R extends Route> = Omit<Operations[R], "answer">;
export type Answer<R extends Route> = Operations[R]["answer"];

/** A frame of an event stream. */
export interface Frame {
  /** Its id. Send the last one as `Last-Event-ID` to continue from there. */
  id: string | undefined;
  event: string;
  data: unknown;
}

/** An error answer of ashd, with its text. */
export class AshError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

interface Parts {
  path?: Record<string, string>;
  query?: Record<string, string | number | boolean | undefined>;
  header?: Record<string, string | undefined>;
  body?: unknown;
}

export class Ash {
  constructor(
    private readonly url: string,
    private readonly key: string,
  ) {}

  /** Calls a route. An answer that is not JSON is returned as the `Response`. */
  async call<R extends Route>(route: R, given: Given<R>): Promise<Answer<R>> {
    const parts = given as Parts;
    const [method = "", template = ""] = route.split(" ");
    const whole = (name: string, value: string) =>
      name === "path" ? value.split("/").map(encodeURIComponent).join("/") : encodeURIComponent(value);
    const path = template.replace(/\{(\w+)\}/g, (_, name: string) => whole(name, parts.path?.[name] ?? ""));
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(parts.query ?? {})) {
      if (value !== undefined) query.set(name, String(value));
    }
    const headers = new Headers({ authorization: `Bearer ${this.key}` });
    for (const [name, value] of Object.entries(parts.header ?? {})) {
      if (value !== undefined) headers.set(name, value);
    }
    const request: RequestInit = { method, headers };
    if (parts.body !== undefined) {
      headers.set("content-type", "application/json");
      request.body = JSON.stringify(parts.body);
    }
    const response = await fetch(`${this.url}${path}${query.size > 0 ? `?${query}` : ""}`, request);
    if (!response.ok) {
      const error = (await response.json()) as ApiError;
      throw new AshError(response.status, error.error);
    }
    if (response.status === 204) return undefined as Answer<R>;
    const json = response.headers.get("content-type")?.startsWith("application/json");
    return (json ? await response.json() : response) as Answer<R>;
  }
}

/** The frames of an event stream, as they arrive. */
export async function* frames(response: Response): AsyncGenerator<Frame> {
  if (response.body === null) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += decoder.decode(value, { stream: true });
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const frame = parse(text.slice(0, end));
        text = text.slice(end + 2);
        if (frame !== undefined) yield frame;
      }
    }
  } finally {
    await reader.cancel();
  }
}

function parse(text: string): Frame | undefined {
  const fields = new Map<string, string>();
  for (const line of text.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 2));
  }
  const data = fields.get("data");
  // A comment keeps the connection open; `retry:` is for browsers.
  if (data === undefined) return undefined;
  return { id: fields.get("id"), event: fields.get("event") ?? "message", data: JSON.parse(data) as unknown };
}
