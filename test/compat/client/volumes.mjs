// Volumes. Where a deployment has none, every call says so in the envelope; where it
// has, each does what its name says.
import assert from "node:assert/strict";
import { test } from "node:test";
import * as sdk from "sandbox0";
import { client, collect, refused, within, withSandbox } from "./setup.mjs";

const unknown = "00000000-0000-4000-8000-000000000000";

// served tells whether there are volumes; a deployment without them says exactly that.
async function served() {
  try {
    const volume = await client.volumes.create({});
    await client.volumes.delete(volume.id);
    return true;
  } catch (err) {
    assert(err instanceof sdk.APIError, `not an APIError: ${err}`);
    assert.equal(err.statusCode, 503, err.message);
    assert.match(err.message, /volumes are unavailable in this deployment/);
    return false;
  }
}

const text = async (bytes) => Buffer.from(await bytes).toString();

async function withVolume(t, request = {}) {
  const volume = await client.volumes.create(request);
  t.after(() => client.volumes.delete(volume.id, { force: true }));
  return volume;
}

// Calls that name a volume that is not there: 404 in any deployment.
const calls = {
  get: () => client.volumes.get(unknown),
  delete: () => client.volumes.delete(unknown),
  fork: () => client.volumes.fork(unknown),
  createSnapshot: () => client.volumes.createSnapshot(unknown, { name: "x" }),
  listSnapshots: () => client.volumes.listSnapshots(unknown),
  getSnapshot: () => client.volumes.getSnapshot(unknown, unknown),
  deleteSnapshot: () => client.volumes.deleteSnapshot(unknown, unknown),
  restoreSnapshot: () => client.volumes.restoreSnapshot(unknown, unknown),
  readFile: () => client.volumes.readFile(unknown, "/x"),
  statFile: () => client.volumes.statFile(unknown, "/x"),
  listFiles: () => client.volumes.listFiles(unknown, "/"),
  writeFile: () => client.volumes.writeFile(unknown, "/x", "x"),
  importArchive: () => client.volumes.importArchive(unknown, "/x", "x"),
  mkdir: () => client.volumes.mkdir(unknown, "/x"),
  deleteFile: () => client.volumes.deleteFile(unknown, "/x"),
  moveFile: () => client.volumes.moveFile(unknown, "/x", "/y"),
};

test("what is not there is not found", async (t) => {
  assert(Array.isArray(await client.volumes.list()));
  for (const [name, call] of Object.entries(calls)) {
    await t.test(`Volumes.${name}`, () => refused(call(), 404, "not_found"));
  }
  await t.test("Volumes.watchFiles", () => assert.rejects(client.volumes.watchFiles(unknown, "/x")));
});

if (!(await served())) {
  test("a deployment without volumes says so", () => refused(client.volumes.open({}), 503, "unavailable"));
} else {
  const put = (id, content) => client.volumes.writeFile(id, "/v", content);
  const holds = async (id, content) => assert.equal(await text(client.volumes.readFile(id, "/v")), content);

  test("volumes are made, listed and deleted", async (t) => {
    const volume = await withVolume(t, { accessMode: "RWO", defaultPosixUid: 1000, defaultPosixGid: 1000 });
    assert.equal(volume.accessMode, "RWO");
    assert.equal(volume.backend, "s0fs");
    assert.equal(volume.defaultPosixUid, 1000);
    assert(volume.createdAt instanceof Date);
    assert.equal((await client.volumes.get(volume.id)).id, volume.id);
    assert((await client.volumes.list()).some((v) => v.id === volume.id));
    const session = await client.volumes.open({});
    await session.close?.();
  });

  test("files of a volume, without any sandbox", async (t) => {
    const { id } = await withVolume(t);
    await client.volumes.writeFile(id, "/a/b.txt", "text ✓");
    assert.equal(await text(client.volumes.readFile(id, "/a/b.txt")), "text ✓");
    assert.equal((await client.volumes.statFile(id, "/a/b.txt")).type, "file");
    await client.volumes.mkdir(id, "/x/y", true);
    assert.deepEqual((await client.volumes.listFiles(id, "/")).map((f) => f.name).sort(), ["a", "x"]);
    await client.volumes.moveFile(id, "/a/b.txt", "/x/c.txt");
    await refused(client.volumes.readFile(id, "/a/b.txt"), 404, "not_found");
    const watch = await client.volumes.watchFiles(id, "/x", true);
    await client.volumes.writeFile(id, "/x/seen.txt", "1");
    await within(20_000, "events", collect(watch.events(), (e) => e.path?.endsWith("seen.txt")));
    watch.close();
    await client.volumes.deleteFile(id, "/x");
    await refused(client.volumes.statFile(id, "/x"), 404, "not_found");
  });

  test("a volume outlives its sandboxes", async (t) => {
    const { id } = await withVolume(t);
    const mounts = [{ sandboxvolumeId: id, mountPoint: "/data" }];
    const first = await client.sandboxes.claim("default", { mounts });
    try {
      await refused(client.sandboxes.claim("default", { mounts }), 409, "conflict");
      await first.cmd("sh -c 'echo kept > /data/file && sync'");
    } finally {
      await client.sandboxes.delete(first.id);
    }
    const second = await withSandbox(t, { mounts });
    assert.equal(await text(second.readFile("/data/file")), "kept\n");
    assert.equal(await text(client.volumes.readFile(id, "/file")), "kept\n");
  });

  test("snapshots are kept, restored and forked", async (t) => {
    const { id } = await withVolume(t);
    await put(id, "one");
    const snap = await client.volumes.createSnapshot(id, { name: "before", description: "d" });
    assert.equal(snap.volumeId, id);
    await put(id, "two");
    const fork = await client.volumes.fork(id);
    t.after(() => client.volumes.delete(fork.id, { force: true }));
    assert.equal(fork.sourceVolumeId, id);
    assert.deepEqual((await client.volumes.listSnapshots(id)).map((s) => s.name), ["before"]);
    assert.equal((await client.volumes.getSnapshot(id, snap.id)).id, snap.id);
    await client.volumes.restoreSnapshot(id, snap.id);
    await holds(id, "one");
    await holds(fork.id, "two");
    await client.volumes.deleteSnapshot(id, snap.id);
    await refused(client.volumes.getSnapshot(id, snap.id), 404, "not_found");
  });
}
