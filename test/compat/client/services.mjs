import assert from "node:assert/strict";
import { test } from "node:test";
import { refused, within, withSandbox } from "./setup.mjs";

test("services", async (t) => {
  const sb = await withSandbox(t);
  assert.deepEqual((await sb.getServices()).services, []);
  await sb.writeFile("/workspace/www/index.html", "served from inside");
  const updated = await sb.updateServices([{
    id: "web", port: 8080,
    runtime: { type: "cmd", command: ["python3", "-m", "http.server", "8080"], cwd: "/workspace/www" },
    ingress: { _public: true, public: true, routes: [] },
    healthCheck: { path: "/" },
  }]);
  const [web] = updated.services;
  assert.equal(web.publishable, true);
  assert(web.publicUrl, JSON.stringify(web));
  // The name resolves to loopback in browsers, not in every resolver: go to the
  // server and say the name.
  const url = new URL(web.publicUrl);
  const get = () => fetch(process.env.S0_URL + "/index.html", {
    headers: { "X-Sandbox-ID": sb.id, "X-Exposure-Port": "8080" },
  });
  assert.match(url.hostname, new RegExp(`^${sb.id}--p8080\\.`));
  const resp = await within(60_000, "the service", get());
  assert.equal(resp.status, 200);
  assert.equal(await resp.text(), "served from inside");
  assert.deepEqual((await sb.clearServices()).services, []);
  assert.equal((await get()).status, 404);
  await refused(sb.updateServices([{ id: "Not a label!", port: 1, ingress: { _public: false, public: false } }]), 400, "bad_request");
});
