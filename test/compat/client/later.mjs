// What the client has and our server does not serve yet: each call is answered
// with an error in the envelope, never with something that looks like success.
import assert from "node:assert/strict";
import { test } from "node:test";
import * as sdk from "sandbox0";
import { client, withSandbox } from "./setup.mjs";

const id = "00000000-0000-0000-0000-000000000000";

const calls = (sb) => ({
  "Volumes.create": () => client.volumes.create({}),
  "Volumes.open": () => client.volumes.open({}),
  "Volumes.list": () => client.volumes.list(),
  "Volumes.get": () => client.volumes.get(id),
  "Volumes.delete": () => client.volumes.delete(id),
  "Volumes.fork": () => client.volumes.fork(id),
  "Volumes.createSnapshot": () => client.volumes.createSnapshot(id, { name: "x" }),
  "Volumes.listSnapshots": () => client.volumes.listSnapshots(id),
  "Volumes.getSnapshot": () => client.volumes.getSnapshot(id, id),
  "Volumes.deleteSnapshot": () => client.volumes.deleteSnapshot(id, id),
  "Volumes.restoreSnapshot": () => client.volumes.restoreSnapshot(id, id),
  "Volumes.readFile": () => client.volumes.readFile(id, "/x"),
  "Volumes.statFile": () => client.volumes.statFile(id, "/x"),
  "Volumes.listFiles": () => client.volumes.listFiles(id, "/x"),
  "Volumes.writeFile": () => client.volumes.writeFile(id, "/x", "x"),
  "Volumes.importArchive": () => client.volumes.importArchive(id, "/x", "x"),
  "Volumes.mkdir": () => client.volumes.mkdir(id, "/x"),
  "Volumes.deleteFile": () => client.volumes.deleteFile(id, "/x"),
  "Volumes.moveFile": () => client.volumes.moveFile(id, "/x", "/y"),
});

test("what is not served yet says so", async (t) => {
  const sb = await withSandbox(t);
  for (const [name, call] of Object.entries(calls(sb))) {
    await t.test(name, async () => {
      await assert.rejects(call(), (err) => {
        assert(err instanceof sdk.APIError, `not an APIError: ${err}`);
        assert.notEqual(err.code, "unexpected_response", "not in the envelope");
        return true;
      });
    });
  }
  await t.test("Volumes.watchFiles", () => assert.rejects(client.volumes.watchFiles(id, "/x")));
});
