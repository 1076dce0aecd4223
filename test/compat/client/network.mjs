// What a sandbox may reach, and credential sources.
import assert from "node:assert/strict";
import { test } from "node:test";
import { client, refused, withSandbox } from "./setup.mjs";

const header = (sourceRef) => ({
  ref: "hub", sourceRef,
  projection: { type: "http_headers", httpHeaders: { headers: [{ name: "Authorization", valueTemplate: "Bearer {{ .token }}" }] } },
});

test("network policy", async (t) => {
  const sb = await withSandbox(t);
  const first = await sb.getNetworkPolicy();
  assert.equal(first.mode, "allow-all");
  assert.equal((await sb.updateNetworkPolicy(first)).mode, "allow-all"); // as it was got
  const changed = await sb.updateNetworkPolicy({
    mode: "block-all",
    egress: { trafficRules: [{ name: "git", action: "allow", domains: ["github.com"], ports: [{ port: 443, protocol: "tcp" }], appProtocols: ["tls"] }] },
  });
  assert.equal(changed.mode, "block-all");
  assert.deepEqual((await sb.getNetworkPolicy()).egress.trafficRules, changed.egress.trafficRules);
  await refused(sb.updateNetworkPolicy({ mode: "block-all", egress: { allowedCidrs: ["not a network"] } }), 400, "bad_request");
  await refused(sb.updateNetworkPolicy({ mode: "allow-all", credentialBindings: [header("nosuch")] }), 400, "bad_request");
});

test("network policy of a claim", async (t) => {
  const sb = await withSandbox(t, { config: { network: { mode: "block-all", egress: { allowedDomains: ["example.com"] } } } });
  const policy = await sb.getNetworkPolicy();
  assert.equal(policy.mode, "block-all");
  assert.deepEqual(policy.egress.allowedDomains, ["example.com"]);
});

test("credential sources", async (t) => {
  const name = "compat-" + process.pid;
  const spec = (token) => ({ staticHeaders: { values: { token } } });
  const made = await client.credentialSources.create({ name, resolverKind: "static_headers", spec: spec("s3cret") });
  assert.equal(made.name, name);
  assert.equal(made.currentVersion, 1);
  await refused(client.credentialSources.create({ name, resolverKind: "static_headers", spec: spec("x") }), 409, "conflict");
  assert((await client.credentialSources.list()).some((s) => s.name === name));
  const updated = await client.credentialSources.update(name, { name, resolverKind: "static_headers", spec: spec("another") });
  assert.equal(updated.currentVersion, 2);
  const got = await client.credentialSources.get(name);
  assert.equal(got.resolverKind, "static_headers");
  assert(!JSON.stringify(got).includes("another"), "the secret is read back");
  await refused(client.credentialSources.update(name, { name, resolverKind: "static_username_password", spec: { staticUsernamePassword: { username: "u", password: "p" } } }), 400, "bad_request");

  const sb = await withSandbox(t);
  const rule = { name: "hub", credentialRef: "hub", protocol: "https", tlsMode: "terminate-reoriginate", domains: ["api.example.com"] };
  await sb.updateNetworkPolicy({ mode: "allow-all", egress: { credentialRules: [rule] }, credentialBindings: [header(name)] });
  await refused(client.credentialSources.delete(name), 409, "conflict");
  const bound = await sb.getNetworkPolicy();
  assert.equal(bound.credentialBindings[0].sourceRef, name);
  assert.equal((await sb.updateNetworkPolicy({ mode: "block-all" })).credentialBindings.length, 1); // absent: kept
  assert.equal((await sb.updateNetworkPolicy({ mode: "block-all", credentialBindings: [] })).credentialBindings.length, 0);
  await client.credentialSources.delete(name);
  await refused(client.credentialSources.get(name), 404, "not_found");
});
