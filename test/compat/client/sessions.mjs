import assert from "node:assert/strict";
import { test } from "node:test";
import { collect, refused, within, withSandbox } from "./setup.mjs";

const base64 = (s) => Buffer.from(s).toString("base64");
const text = (events) => Buffer.concat(events.filter((e) => e.dataBase64).map((e) => Buffer.from(e.dataBase64, "base64"))).toString();

test("a session outlives its attempts and its readers", async (t) => {
  const sb = await withSandbox(t);
  const session = await sb.createSession({ name: "echo", command: ["cat"], io: { mode: "pty", terminal: { rows: 24, cols: 80 } } }, { idempotencyKey: "one" });
  assert.equal((await sb.createSession({ name: "echo", command: ["cat"], io: { mode: "pty", terminal: { rows: 24, cols: 80 } } }, { idempotencyKey: "one" })).id, session.id);
  assert((await sb.listSessions()).some((s) => s.id === session.id));
  assert.equal((await sb.getSession(session.id)).spec.name, "echo");

  const stream = await sb.watchSessionEvents(session.id, { after: 0 });
  const input = { inputId: "i1", dataBase64: base64("hello\n") };
  assert.equal((await sb.writeSessionInput(session.id, input)).duplicate, false);
  assert.equal((await sb.writeSessionInput(session.id, input)).duplicate, true);
  const events = await within(20_000, "the echo", collect(stream, (_, all) => text(all).includes("hello\r\nhello")));
  assert(events.every((e, i) => i === 0 || e.seq > events[i - 1].seq), "events are in order");
  const page = await sb.listSessionEvents(session.id, { after: 0, limit: 1000 });
  assert.equal(page.events[0].seq, events[0].seq);

  await sb.resizeSessionTerminal(session.id, { rows: 50, cols: 132 });
  const conn = await sb.connectSession(session.id, { after: page.cursor.latest });
  conn.send({ type: "input", requestId: "r1", inputId: "i2", dataBase64: base64("by socket\n") });
  await within(20_000, "the answer", collect(conn.messages(), (m, all) =>
    all.some((x) => x.type === "ack" && x.requestId === "r1") &&
    text(all.filter((x) => x.type === "event").map((x) => x.event)).includes("by socket")));
  conn.close();

  await sb.sendSessionSignal(session.id, { signal: "KILL" });
  const again = await sb.createSessionAttempt(session.id, true);
  assert(again.attempt.number >= 2);
  const updated = await sb.updateSession(session.id, { name: "renamed", command: ["cat"], io: { mode: "pty" } });
  assert.equal(updated.spec.name, "renamed");
  assert(updated.specVersion > session.specVersion);
  const stopped = await sb.setSessionDesiredState(session.id, "stopped");
  assert(["stopping", "stopped"].includes(stopped.phase), stopped.phase);
  await sb.deleteSession(session.id);
  await refused(sb.getSession(session.id), 404);
});
