import assert from "node:assert/strict";
import { test } from "node:test";
import { client, refused, withSandbox } from "./setup.mjs";

test("templates", async (t) => {
  const list = await client.templates.list();
  assert.deepEqual((await client.templates.listTemplate()).length, list.length);
  const like = list.find((x) => x.templateId === "default");
  assert(like?.spec.mainContainer.image);
  const spec = { ...like.spec, pool: { minIdle: 0, maxIdle: 0 }, displayName: "A copy" };
  const made = await client.templates.create({ templateId: "compat-copy", spec });
  t.after(() => client.templates.delete("compat-copy").catch(() => {}));
  assert.equal(made.scope, "team");
  await refused(client.templates.create({ templateId: "compat-copy", spec }), 409, "conflict");
  const ready = await client.templates.waitUntilReady("compat-copy", { timeoutMs: 30_000 });
  assert.equal(ready.templateId, "compat-copy");
  const updated = await client.templates.update("compat-copy", { spec: { ...spec, displayName: "Renamed" } });
  assert.equal(updated.spec.displayName, "Renamed");
  assert.equal((await client.templates.get("compat-copy")).spec.displayName, "Renamed");
  await client.templates.delete("compat-copy");
  await refused(client.templates.get("compat-copy"), 404, "not_found");
});

test("a template from a sandbox", async (t) => {
  const sb = await withSandbox(t);
  await sb.cmd("sh -c 'echo made here >/opt/made'");
  t.after(() => client.templates.delete("compat-made").catch(() => {}));
  const made = await client.templates.createFromSandbox({ templateId: "compat-made", sandboxId: sb.id }, { wait: true, timeoutMs: 120_000 });
  assert.equal(made.templateId, "compat-made");
  const copy = await client.sandboxes.claim("compat-made");
  t.after(() => client.sandboxes.delete(copy.id).catch(() => {}));
  assert.equal((await copy.cmd("cat /opt/made")).stdout, "made here\n");
});
