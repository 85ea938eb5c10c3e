// @openrouter/sdk: chat, plain and streamed, models, errors.
import assert from "node:assert/strict";
import { OpenRouter } from "@openrouter/sdk";

const { GUARD_URL, GUARD_KEY, SAFE, UNSAFE } = process.env;
const client = new OpenRouter({ serverURL: `${GUARD_URL}/api/v1`, apiKey: GUARD_KEY });
const model = "meta-llama/llama-guard-4-12b";
const send = (content, more = {}) =>
  client.chat.send({ chatRequest: { model, messages: [{ role: "user", content }], ...more } });

assert.equal((await send(SAFE)).choices[0].message.content, "safe");
const reply = await send(UNSAFE, { provider: { zdr: true }, maxTokens: 100 });
assert.match(reply.choices[0].message.content, /^unsafe\nS\d+/);
assert(reply.usage.totalTokens > 0);

let said = "";
for await (const chunk of await send(UNSAFE, { stream: true })) said += chunk.choices[0]?.delta?.content ?? "";
assert.equal(said, reply.choices[0].message.content);

const { result } = await client.models.list();
assert.equal(result.data.length, 1);

await assert.rejects(send(SAFE, { model: "openai/gpt-4o" }), (error) => {
  assert.equal(error.statusCode, 404);
  assert.equal(error.error.code, 404);
  return true;
});
