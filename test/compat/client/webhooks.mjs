import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";
import * as sdk from "sandbox0";
import { within, withSandbox } from "./setup.mjs";

test("webhooks are signed as the client verifies", async (t) => {
  const secret = "a shared secret";
  const seen = [];
  let arrived;
  const server = createServer((req, res) => {
    const chunks = [];
    req.on("data", (c) => chunks.push(c));
    req.on("end", () => {
      const raw = Buffer.concat(chunks);
      seen.push({ ok: sdk.verifyWebhookSignature(secret, raw, req.headers["x-sandbox0-signature"] ?? ""), event: JSON.parse(raw) });
      res.end();
      arrived?.();
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => server.close());
  const url = `http://127.0.0.1:${server.address().port}/hook`;
  const sb = await withSandbox(t, { config: { webhook: { url, secret } } });
  await sb.cmd("true");
  const has = (type) => seen.some((s) => s.event.event_type === type);
  await within(30_000, `process.exited among ${JSON.stringify(seen)}`, (async () => {
    while (!has("process.exited")) await new Promise((resolve) => { arrived = resolve; });
  })());
  assert(has("sandbox.ready"));
  assert(seen.every((s) => s.ok && s.event.sandbox_id === sb.id), JSON.stringify(seen));
});
