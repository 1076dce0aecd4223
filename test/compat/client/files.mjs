import assert from "node:assert/strict";
import { test } from "node:test";
import { collect, refused, within, withSandbox } from "./setup.mjs";

test("files are written and read back", async (t) => {
  const sb = await withSandbox(t);
  const bytes = new Uint8Array(300_000).map((_, i) => i * 7);
  await sb.writeFile("/workspace/a/b/data.bin", bytes);
  assert.deepEqual(new Uint8Array(await sb.readFile("/workspace/a/b/data.bin")), bytes);
  await sb.writeFile("relative.txt", "text ✓");
  assert.equal(Buffer.from(await sb.readFile("/workspace/relative.txt")).toString(), "text ✓");
  const stat = await sb.statFile("/workspace/a/b/data.bin");
  assert.equal(stat.type, "file");
  assert.equal(stat.size, bytes.length);
  assert.equal(stat.mode, "0644");
  assert(stat.modTime instanceof Date);
  await sb.mkdir("/workspace/d");
  await refused(sb.mkdir("/workspace/d"), 409, "path_exists");
  await sb.mkdir("/workspace/x/y/z", true);
  await refused(sb.mkdir("/workspace/no/parent"), 404);
  const names = (await sb.listFiles("/workspace")).map((f) => f.name).sort();
  assert.deepEqual(names, ["a", "d", "relative.txt", "x"]);
  await sb.moveFile("/workspace/relative.txt", "/workspace/d/moved.txt");
  assert.equal(Buffer.from(await sb.readFile("/workspace/d/moved.txt")).toString(), "text ✓");
  await sb.deleteFile("/workspace/d");
  await sb.deleteFile("/workspace/d");
  await refused(sb.readFile("/workspace/d/moved.txt"), 404, "file_not_found");
  await refused(sb.readFile("/workspace/a"), 409, "path_not_file");
  await refused(sb.listFiles("/workspace/nope"), 404, "directory_not_found");
});

test("a watch tells of changes", async (t) => {
  const sb = await withSandbox(t);
  const watch = await sb.watchFiles("/workspace/watched", true);
  assert.match(watch.watchId, /^watch-[0-9a-f]{8}$/);
  await sb.writeFile("/workspace/watched/one.txt", "1");
  await sb.cmd("sh -c 'mkdir -p /workspace/watched/deep/er && echo 2 > /workspace/watched/deep/er/two.txt'");
  const events = await within(20_000, "events", collect(watch.events(), (e) => e.path?.endsWith("deep/er/two.txt")));
  assert(events.every((e) => e.watchId === watch.watchId), JSON.stringify(events));
  assert(events.some((e) => e.path === "/workspace/watched/one.txt"), JSON.stringify(events));
  watch.close();
  const second = await sb.watchFiles("/workspace/watched");
  second.unsubscribe(second.watchId);
});
