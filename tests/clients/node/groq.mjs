// groq-sdk: its client puts /openai/v1 behind the base URL by itself.
import assert from "node:assert/strict";
import Groq from "groq-sdk";

const { GUARD_URL, GUARD_KEY, UNSAFE } = process.env;
const client = new Groq({ baseURL: GUARD_URL, apiKey: GUARD_KEY });
const reply = await client.chat.completions.create({
  model: "meta-llama/llama-guard-4-12b",
  messages: [{ role: "user", content: UNSAFE }],
});
assert.match(reply.choices[0].message.content, /^unsafe\nS\d+/);
