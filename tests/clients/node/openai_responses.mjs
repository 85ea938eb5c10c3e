// openai on Node: /v1/responses, plain and streamed.
import assert from "node:assert/strict";
import OpenAI from "openai";

const { GUARD_URL, GUARD_KEY, SAFE, UNSAFE } = process.env;
const client = new OpenAI({ baseURL: `${GUARD_URL}/v1`, apiKey: GUARD_KEY });

assert.equal((await client.responses.create({ model: "llama-guard", input: SAFE })).output_text, "safe");
let said = "";
for await (const event of await client.responses.create({ model: "llama-guard", input: UNSAFE, stream: true })) {
  if (event.type === "response.output_text.delta") said += event.delta;
}
assert.match(said, /^unsafe\nS\d+/);
