// Writes a todo by a client that was generated from /openapi.json, lists it, and sees it arrive.
//
//     node walk.js URL KEY

import { randomUUID } from "node:crypto";
import createClient from "openapi-fetch";
import type { components, paths } from "./flotilla.js";

type Event = { event?: string; id?: string; data?: string };

// The events of a stream: name, id and data.
async function* events(stream: ReadableStream<Uint8Array>): AsyncGenerator<Event> {
  const decoder = new TextDecoder();
  let read = "";
  for await (const chunk of stream as unknown as AsyncIterable<Uint8Array>) {
    read += decoder.decode(chunk, { stream: true });
    for (let end = read.indexOf("\n\n"); end >= 0; end = read.indexOf("\n\n")) {
      const event: Record<string, string> = {};
      for (const line of read.slice(0, end).split("\n")) {
        const at = line.indexOf(": ");
        if (at > 0) event[line.slice(0, at)] = line.slice(at + 2);
      }
      read = read.slice(end + 2);
      if (event.data) yield event;
    }
  }
}

function check(holds: boolean, what: unknown): asserts holds {
  if (!holds) throw new Error(JSON.stringify(what));
}

const [url, key] = process.argv.slice(2);
check(url !== undefined && key !== undefined, "walk.js URL KEY");
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });
const label = `walk-${randomUUID()}`;

const watched = await client.GET("/v1/todos:watch", { parseAs: "stream" });
check(watched.data !== undefined && watched.data !== null, watched.error);
const arriving = events(watched.data as unknown as ReadableStream<Uint8Array>);
// The stream says at once where it is: from here on nothing is missed.
const first = await arriving.next();
check(first.value?.event === "heartbeat", first.value);

const written = await client.POST("/v1/todos", {
  params: { header: { "Idempotency-Key": randomUUID() } },
  body: { title: "Splice the mooring line", labels: [label] } as components["schemas"]["Todo"],
});
check(written.data !== undefined, written.error);
const id = written.data.id;

const filter = `labels:"${label}" AND status = OPEN`;
const found = await client.GET("/v1/todos", { params: { query: { filter, orderBy: "dueTime", pageSize: 10 } } });
check(found.data?.todos?.length === 1 && found.data.todos[0]?.id === id, found);

for await (const event of arriving) {
  if (JSON.parse(event.data ?? "{}").todo?.id === id) break;
}

const missing = await client.GET("/v1/todos/{id}", { params: { path: { id: randomUUID() } } });
check(missing.error?.code === "TODO_NOT_FOUND", missing);
console.log(`wrote, listed and heard ${id}`);
process.exit(0);
