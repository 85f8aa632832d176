// node example.js URL KEY MESSAGE: deploys an agent, opens a session, sends the message and prints the agent's text.

import { Ash, frames } from "./client.js";

declare const process: { argv: string[]; stdout: { write(text: string): boolean } };

const [url = "", key = "", message = ""] = process.argv.slice(2);
const ash = new Ash(url, key);

await ash.call("POST /api/agents", { body: { name: "typed", systemPrompt: "You are a helpful assistant." } });
const { session } = await ash.call("POST /api/sessions", { body: { agent: "typed" } });
const path = { id: session.id };
const stream = await ash.call("POST /api/sessions/{id}/messages", {
  path,
  body: { content: message, includePartialMessages: true },
});
for await (const frame of frames(stream)) {
  if (frame.event === "text_delta") process.stdout.write((frame.data as { delta: string }).delta);
}
const { messages } = await ash.call("GET /api/sessions/{id}/messages", { path, query: { limit: 10 } });
console.log(`\n${messages.length} messages, the first by the ${messages[0]?.role ?? "?"}`);
const ended = await ash.call("DELETE /api/sessions/{id}", { path });
console.log(`session ${ended.session.status}`);
