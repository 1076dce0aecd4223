import assert from "node:assert/strict";
import { test } from "node:test";
import { client, refused, withSandbox } from "./setup.mjs";

test("claim, get, list, status", async (t) => {
  const sb = await withSandbox(t);
  assert.equal(sb.status, "running");
  assert.equal(sb.template, "default");
  assert(sb.podName);

  const got = await client.sandboxes.get(sb.id);
  assert.equal(got.id, sb.id);
  assert.equal(got.status, "running");
  assert.equal(got.paused, false);
  assert.equal(got.autoResume, true);
  assert.equal(got.runtimeGeneration, 1);
  assert(got.claimedAt instanceof Date && got.createdAt.getTime() > Date.now() - 3_600_000);
  assert.equal(got.expiresAt.getUTCFullYear(), 1, "the zero time means: not set");

  const list = await client.sandboxes.list({ status: "running", limit: 200 });
  assert(list.sandboxes.some((s) => s.id === sb.id), "a list right after the claim has the sandbox");
  assert.equal(typeof list.count, "number");
  assert.equal(list.hasMore, false);
  await refused(client.sandboxes.list({ status: "nonsense" }), 400, "bad_request");

  const status = await client.sandboxes.status(sb.id);
  assert.equal(status.status, "running");
  assert.equal(client.sandbox(sb.id).id, sb.id);
  assert.equal(client.sandboxes.sandbox(sb.id).id, sb.id);
});

test("claim with a config", async (t) => {
  const sb = await withSandbox(t, { config: { envVars: { GREETING: "hello" }, ttl: 600, hardTtl: 3600 }, memory: "1Gi" });
  const res = await sb.cmd("sh -c 'echo $GREETING $SANDBOX0_SANDBOX_ID'");
  assert.equal(res.stdout, `hello ${sb.id}\n`);
  const got = await client.sandboxes.get(sb.id);
  assert.equal(got.resources.memory, "1Gi");
  assert(got.expiresAt.getTime() > Date.now() && got.hardExpiresAt > got.expiresAt);
});

test("update, refresh, wait", async (t) => {
  const sb = await withSandbox(t);
  let got = await client.sandboxes.update(sb.id, { config: { ttl: 900, envVars: { A: "1" } } });
  assert(got.expiresAt.getTime() > Date.now());
  assert.equal((await sb.cmd("sh -c 'echo $A'")).stdout, "1\n");
  got = await client.sandboxes.update(sb.id, { config: { envVars: {}, ttl: 0 } });
  assert.equal(got.expiresAt.getUTCFullYear(), 1);
  assert.equal((await sb.cmd("sh -c 'echo [$A]'")).stdout, "[]\n");
  got = await client.sandboxes.updateMemory(sb.id, "1Gi");
  assert.equal(got.resources.memory, "1Gi");
  await client.sandboxes.refresh(sb.id);
  const refreshed = await client.sandboxes.refresh(sb.id, { duration: 120 });
  assert.equal(refreshed.sandboxId, sb.id);
  assert(refreshed.expiresAt.getTime() > Date.now());
  const running = await client.sandboxes.waitForLifecycle(sb.id, (s) => s.status === "running", { timeoutMs: 10_000 });
  assert.equal(running.id, sb.id);
});

test("pause and resume", async (t) => {
  const sb = await withSandbox(t);
  await sb.run("python", "x = 41");
  const paused = await client.sandboxes.pause(sb.id);
  assert.equal(paused.sandboxId, sb.id);
  assert.equal(paused.paused, true);
  assert.equal((await client.sandboxes.pauseAndWait(sb.id, { timeoutMs: 30_000 })).status, "paused");
  const list = await client.sandboxes.list({ paused: true });
  assert(list.sandboxes.some((s) => s.id === sb.id && s.paused));
  assert.equal((await client.sandboxes.resumeAndWait(sb.id, { timeoutMs: 60_000 })).runtimeGeneration, 2);
  assert.equal((await client.sandboxes.resume(sb.id)).resumed, true);
  assert.match((await sb.run("python", "print(x + 1)")).outputRaw, /42/, "the interpreter is the same, under its cached id");
  await client.sandboxes.pause(sb.id);
  assert.equal((await sb.cmd("echo awake")).stdout, "awake\n", "a request wakes it");
});

test("fork", async (t) => {
  const sb = await withSandbox(t);
  await sb.run("python", "open('/workspace/f', 'w').write('kept')");
  const forked = await client.sandboxes.fork(sb.id);
  t.after(() => client.sandboxes.delete(forked.sandbox.id));
  assert.equal(forked.sourceSandboxId, sb.id);
  assert.equal(forked.sandbox.paused, true);
  const own = await client.sandboxes.fork(sb.id, { config: { ttl: 600, hardTtl: 1200 } });
  await client.sandboxes.delete(own.sandbox.id);
  assert.equal((await client.sandboxes.get(sb.id)).status, "running");
  assert.equal((await client.sandbox(forked.sandbox.id).cmd("cat /workspace/f")).stdout, "kept", "a request wakes it");
});

test("snapshots of the root filesystem", async (t) => {
  const sb = await withSandbox(t);
  await sb.writeFile("/tmp/f", "kept");
  const expiresAt = new Date(Date.now() + 3600_000);
  const snap = await client.sandboxes.createRootFSSnapshot(sb.id, { name: "first", description: "d", expiresAt });
  assert.equal(snap.sandboxId, sb.id);
  assert.equal(snap.name, "first");
  assert.equal(snap.expiresAt.getTime(), expiresAt.getTime());
  assert(snap.createdAt instanceof Date);
  const bare = await client.sandboxes.createRootFSSnapshot(sb.id);
  assert.equal(bare.name, undefined);
  assert.deepEqual((await client.sandboxes.listRootFSSnapshots(sb.id)).map((s) => s.id), [bare.id, snap.id]);
  assert.equal((await client.sandboxes.getRootFSSnapshot(snap.id)).description, "d");
  await sb.writeFile("/tmp/f", "changed");

  const child = await withSandbox(t, { snapshotId: snap.id });
  assert.equal((await child.cmd("cat /tmp/f")).stdout, "kept");
  await refused(client.sandboxes.restoreRootFS(sb.id, { snapshotId: snap.id }), 409, "conflict");
  await client.sandboxes.pause(sb.id);
  const restored = await client.sandboxes.restoreRootFS(sb.id, { snapshotId: snap.id });
  assert.deepEqual([restored.sandboxId, restored.snapshotId, restored.status], [sb.id, snap.id, "paused"]);
  assert.equal((await sb.cmd("cat /tmp/f")).stdout, "kept", "a request wakes it");

  await client.sandboxes.deleteRootFSSnapshot(bare.id);
  await client.sandboxes.deleteRootFSSnapshot(snap.id);
  await refused(client.sandboxes.getRootFSSnapshot(snap.id), 404, "not_found");
  await refused(client.sandboxes.claim("default", { snapshotId: snap.id }), 404, "not_found");
});

test("quotas and usage", async () => {
  const quotas = await client.quotas.list();
  assert(quotas.some((q) => q.dimension === "active_sandboxes"));
  const one = await client.quotas.get("active_sandboxes");
  assert.equal(one.dimension, "active_sandboxes");
  await refused(client.quotas.get("nonsense"), 400, "bad_request");
  assert(Array.isArray((await client.usage.listWindows()).windows));
});

test("a session deletes its sandbox", async () => {
  const session = await client.sandboxes.open("default");
  assert.equal((await session.sandbox.cmd("echo hi")).stdout, "hi\n");
  await session.close();
  await refused(client.sandboxes.get(session.sandbox.id), 404, "not_found");
  await refused(session.sandbox.cmd("true"), 404, "not_found");
});

test("refusals", async () => {
  await refused(client.sandboxes.claim("no-such-template"), 404, "not_found");
  await refused(client.sandboxes.claim(""), 400, "bad_request");
  await refused(client.sandboxes.claim("default", { ttl: -1 }), 400, "bad_request");
  await refused(client.sandboxes.claim("default", { ttl: 10, hardTtl: 5 }), 400, "bad_request");
  await refused(client.sandboxes.get("x".repeat(300)), 404, "not_found");
});
