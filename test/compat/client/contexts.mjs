import assert from "node:assert/strict";
import { test } from "node:test";
import { collect, refused, within, withSandbox } from "./setup.mjs";

test("run keeps the interpreter's state", async (t) => {
  const sb = await withSandbox(t);
  await sb.run("python", "x = 41");
  const res = await sb.run("python", "print(x + 1)");
  assert.match(res.outputRaw, /42/);
  assert(!res.outputRaw.includes("_S0_>"), "the prompt is not output");
  const again = await sb.run("python", "print('a')\nprint('b')");
  assert.equal(again.contextId, res.contextId);
  assert.match(again.outputRaw, /a[\s\S]*b/);
  assert.match((await sb.run("bash", "echo $((6 * 7))")).outputRaw, /42/);
  assert.match((await sb.run("node", "1 + 1")).outputRaw, /2/);
  const own = await sb.createContext({ type: "repl", repl: { alias: "python3" }, envVars: { V: "v" }, cwd: "/tmp" });
  assert.equal(own.alias, "python");
  assert.match((await sb.run("python", "import os; print(os.environ['V'], os.getcwd())", { contextId: own.id })).outputRaw, /v \/tmp/);
});

test("cmd separates stdout, stderr and the exit code", async (t) => {
  const sb = await withSandbox(t);
  const res = await sb.cmd("sh -c 'echo out; echo err >&2; exit 7'");
  assert.equal(res.stdout, "out\n");
  assert.equal(res.stderr, "err\n");
  assert.equal(res.exitCode, 7);
  assert.equal(res.state, "crashed");
  const inDir = await sb.cmd("pwd", { cwd: "/tmp" });
  assert.equal(inDir.stdout, "/tmp\n");
  assert.equal((await sb.cmd("", { command: ["echo", "argv is not a shell: $HOME"] }).catch((e) => e)).code, "invalid_argument");
  assert.equal((await sb.cmd("x", { command: ["echo", "argv is not a shell: $HOME"] })).stdout, "argv is not a shell: $HOME\n");
  const tty = await sb.cmd("sh -c 'stty size; test -t 1 && echo tty'", { ptyRows: 30, ptyCols: 100 });
  assert.match(tty.outputRaw, /30 100[\s\S]*tty/);
});

test("a stream has every byte, also of a process that has ended", async (t) => {
  const sb = await withSandbox(t);
  const want = "0123456789abcdef\n".repeat(20_000);
  const stream = await sb.cmdStream("sh -c 'i=0; while [ $i -lt 20000 ]; do echo 0123456789abcdef; i=$((i+1)); done; exit 3'");
  const read = (s) => within(60_000, "the stream", collect(s.outputs(), () => false));
  const text = (outputs) => outputs.filter((o) => o.source === "stdout").map((o) => o.data).join("");
  const live = await read(stream);
  assert.equal(text(live), want);
  const done = await within(10_000, "done", stream.wait());
  assert.equal(done.exitCode, 3);
  const late = await sb.connectWsContext(stream.id);
  assert.equal(text(await read(late)), want, "a late reader replays the history");
  assert.equal((await within(10_000, "done", late.wait())).exitCode, 3);
});

test("a stream takes input, resize and signals", async (t) => {
  const sb = await withSandbox(t);
  const stream = await sb.cmdStream("sh", { ptyRows: 24, ptyCols: 80 });
  let seen = "";
  const until = async (text, iterator) => {
    while (!seen.includes(text)) {
      const { done, value } = await iterator.next();
      assert(!done, `the stream ended before ${text}: ${seen}`);
      seen += value.data ?? "";
    }
  };
  const outputs = stream.outputs();
  stream.sendInput("echo ready-$((1+1))\n");
  await within(20_000, "echo", until("ready-2", outputs));
  stream.sendResize(40, 120);
  stream.sendInput("stty size\n");
  await within(20_000, "resize", until("40 120", outputs));
  stream.sendInput("sleep 1000\n");
  stream.sendSignal("KILL");
  const done = await within(20_000, "the end", stream.wait());
  assert.equal(done.exitCode, 137);
});

test("every call about a context", async (t) => {
  const sb = await withSandbox(t);
  const ctx = await sb.createContext({ type: "cmd", cmd: { command: ["cat"] }, ptySize: { rows: 24, cols: 80 } });
  assert.match(ctx.id, /^ctx-[0-9a-f]{8}$/);
  assert((await sb.listContexts()).some((c) => c.id === ctx.id));
  assert.equal((await sb.getContext(ctx.id)).running, true);
  assert.equal((await sb.contextInput(ctx.id, "hello\n")).written ?? true, true);
  await sb.contextResize(ctx.id, 50, 132);
  await sb.contextSignal(ctx.id, "SIGTERM");
  const restarted = await sb.restartContext(ctx.id);
  assert.equal(restarted.id, ctx.id);
  assert.equal(restarted.running, true);
  await sb.deleteContext(ctx.id);
  await refused(sb.getContext(ctx.id), 404, "context_not_found");
  const repl = await sb.createContext({ type: "repl" });
  assert.match((await sb.contextExec(repl.id, "print(6 * 7)")).outputRaw, /42/);
  await refused(sb.contextExec(repl.id, ""), 400, "invalid_request");
  await refused(sb.contextSignal(repl.id, "NONSENSE"), 400, "invalid_request");
  await refused(sb.createContext({ type: "cmd", cmd: { command: ["/no/such/program"] } }), 400);
});
