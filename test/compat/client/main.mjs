// Runs every test in one process, so that the last one can say which methods of
// the client no test has called.
import assert from "node:assert/strict";
import { after } from "node:test";
import { uncalled } from "./setup.mjs";

for (const name of process.env.S0_TESTS?.split(",") ?? [
  "sandboxes", "contexts", "files", "templates", "services", "observability", "sessions", "webhooks", "network", "volumes",
]) {
  await import(`./${name}.mjs`);
}
if (!process.env.S0_TESTS) after(() => assert.deepEqual(uncalled(), [], "methods that no test calls"));
