// Vercel's AI SDK: its default speaks /v1/responses, `.chat` chat completions.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, streamText } from "ai";

const { GUARD_URL, GUARD_KEY, SAFE, UNSAFE } = process.env;
const openai = createOpenAI({ baseURL: `${GUARD_URL}/v1`, apiKey: GUARD_KEY });

for (const model of [openai.chat("llama-guard"), openai("llama-guard")]) {
  const safe = await generateText({ model, prompt: SAFE });
  assert.equal(safe.text, "safe");
  assert.equal(safe.finishReason, "stop");
  assert(safe.usage.inputTokens > 0);

  const unsafe = await generateText({ model, system: "You are a baker.", messages: [{ role: "user", content: UNSAFE }] });
  assert.match(unsafe.text, /^unsafe\nS\d+/);

  let said = "";
  for await (const piece of streamText({ model, prompt: UNSAFE }).textStream) said += piece;
  assert.match(said, /^unsafe\nS\d+/);

  // The answer goes along in the next turn: by its id, unless told that nothing is stored.
  const again = await generateText({
    model,
    messages: [{ role: "user", content: SAFE }, ...safe.response.messages, { role: "user", content: UNSAFE }],
    providerOptions: { openai: { store: false } },
  });
  assert.match(again.text, /^unsafe\nS\d+/);
}
