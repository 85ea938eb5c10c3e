// llama-api-client on Node: Meta's own moderation endpoint.
import assert from "node:assert/strict";
import LlamaAPIClient from "llama-api-client";

const { GUARD_URL, GUARD_KEY, SAFE, UNSAFE } = process.env;
const client = new LlamaAPIClient({ baseURL: `${GUARD_URL}/v1`, apiKey: GUARD_KEY });
for (const [content, flagged] of [[SAFE, false], [UNSAFE, true]]) {
  const { results } = await client.moderations.create({ messages: [{ role: "user", content }] });
  assert.equal(results.at(-1).flagged, flagged);
}
