import assert from "node:assert/strict";
import { test } from "node:test";
import { client, collect, within, withSandbox } from "./setup.mjs";

test("logs", async (t) => {
  const sb = await withSandbox(t);
  const ctx = await sb.cmd("sh -c 'echo to-stdout; echo to-stderr >&2'");
  const logs = await sb.listLogs({ limit: 100 });
  const line = logs.logs.find((l) => l.message.includes("to-stdout"));
  assert(line, JSON.stringify(logs));
  assert.equal(line.stream, "stdout");
  assert.equal(line.contextId, ctx.contextId);
  assert(logs.logs.some((l) => l.stream === "stderr" && l.message.includes("to-stderr")));
  const watch = await client.watchSandboxObservabilityLogs(sb.id, {});
  await sb.cmd("echo seen-by-watch");
  const lines = await within(30_000, "a watched line", collect(watch, (l) => l.type === "log" && l.data.message.includes("seen-by-watch")));
  assert(lines.length > 0);
  await watch.close?.();
  const other = await sb.watchLogs({});
  await other.close?.();
  assert((await client.listSandboxObservabilityLogs(sb.id)).logs.length > 0);
});

test("events", async (t) => {
  const sb = await withSandbox(t);
  const events = await sb.listObservabilityEvents();
  assert(Array.isArray(events.events));
  assert((await client.listSandboxObservabilityEvents(sb.id)).events.length >= 1, "the claim is an event");
  const watch = await sb.watchObservabilityEvents({});
  await watch.close?.();
  const second = await client.watchSandboxObservabilityEvents(sb.id, {});
  await second.close?.();
});

test("metrics", async (t) => {
  const sb = await withSandbox(t);
  const catalog = await sb.getMetricsCatalog();
  assert((catalog.metrics ?? catalog.descriptors).length > 0, JSON.stringify(catalog));
  assert.deepEqual(await client.getSandboxMetricsCatalog(sb.id), catalog);
  const metrics = await sb.getMetrics();
  assert(metrics.series.length > 0, JSON.stringify(metrics));
  await client.getSandboxMetrics(sb.id);
});
