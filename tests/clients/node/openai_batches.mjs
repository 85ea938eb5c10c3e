// openai on Node: a file goes up, a batch judges its rows, its output comes down.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const { GUARD_URL, GUARD_KEY, SAFE, UNSAFE } = process.env;
const client = new OpenAI({ baseURL: `${GUARD_URL}/v1`, apiKey: GUARD_KEY });

const rows = [SAFE, UNSAFE].map((input, index) =>
  JSON.stringify({ custom_id: `row-${index}`, method: "POST", url: "/v1/moderations", body: { input } }),
);
const file = await client.files.create({ file: await toFile(Buffer.from(rows.join("\n")), "rows.jsonl"), purpose: "batch" });
let batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/moderations",
  completion_window: "24h",
});
for (const start = Date.now(); batch.status !== "completed"; batch = await client.batches.retrieve(batch.id)) {
  assert(Date.now() - start < 60_000 && batch.status !== "failed", JSON.stringify(batch));
  await new Promise((resolve) => setTimeout(resolve, 200));
}
const output = await (await client.files.content(batch.output_file_id)).text();
const lines = output.trim().split("\n").map((line) => JSON.parse(line));
const flagged = Object.fromEntries(lines.map((line) => [line.custom_id, line.response.body.results[0].flagged]));
assert.deepEqual(flagged, { "row-0": false, "row-1": true });
