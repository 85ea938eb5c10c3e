// openai on Node: moderations, chat plain and streamed, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";

const { GUARD_URL, GUARD_KEY, SAFE, UNSAFE } = process.env;
const client = new OpenAI({ baseURL: `${GUARD_URL}/v1`, apiKey: GUARD_KEY });

const several = await client.moderations.create({ input: [SAFE, UNSAFE] });
assert.deepEqual(several.results.map((result) => result.flagged), [false, true]);
assert.equal(several.results[1].categories["illicit/violent"], true);
const parts = await client.moderations.create({ model: "omni-moderation-latest", input: [{ type: "text", text: UNSAFE }] });
assert.equal(parts.results[0].flagged, true);

const messages = [{ role: "user", content: UNSAFE }];
const reply = await client.chat.completions.create({ model: "llama-guard", messages });
assert.match(reply.choices[0].message.content, /^unsafe\nS\d+/);

const stream = await client.chat.completions.create({ model: "llama-guard", messages, stream: true });
let said = "";
for await (const chunk of stream) said += chunk.choices[0]?.delta?.content ?? "";
assert.equal(said, reply.choices[0].message.content);

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.equal(models.length, 1);

await assert.rejects(client.moderations.create({ input: "x", model: "gpt-4o" }), (error) => {
  assert(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
  return true;
});
await assert.rejects(client.moderations.create({ input: "" }), OpenAI.BadRequestError);
