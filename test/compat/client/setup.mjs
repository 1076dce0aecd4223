// What every test shares: a client of the server under test, and a record of
// which of the client's methods were called.
import assert from "node:assert/strict";
import * as sdk from "sandbox0";

const { S0_URL, S0_TOKEN } = process.env;
assert(S0_URL && S0_TOKEN, "S0_URL and S0_TOKEN name the server; `go test ./test/compat` sets them");

export const client = new sdk.Client({ baseUrl: S0_URL, token: S0_TOKEN });

const called = new Set();

// Methods that a user does not call.
const internal = new Set([
  "constructor", "getWithSignal", "ensureReplContext", "watchSandboxObservability", "fetchRaw", "websocketUrl", "wsHeaders",
]);

const classes = {
  Client: sdk.Client, Sandbox: sdk.Sandbox, Sandboxes: client.sandboxes.constructor, Templates: client.templates.constructor,
  Volumes: client.volumes.constructor, CredentialSources: client.credentialSources.constructor,
  Quotas: client.quotas.constructor, Usage: client.usage.constructor,
};

for (const [name, type] of Object.entries(classes)) {
  for (const method of methods(type)) {
    const original = type.prototype[method];
    type.prototype[method] = function (...args) {
      called.add(`${name}.${method}`);
      return original.apply(this, args);
    };
  }
}

function methods(type) {
  return Object.getOwnPropertyNames(type.prototype).filter(
    (m) => !internal.has(m) && typeof type.prototype[m] === "function",
  );
}

// uncalled lists the methods that no test has called.
export function uncalled() {
  return Object.entries(classes).flatMap(([name, type]) =>
    methods(type).map((m) => `${name}.${m}`).filter((m) => !called.has(m)));
}

// withSandbox claims a sandbox for one test and deletes it afterwards.
export async function withSandbox(t, options) {
  const sandbox = await client.sandboxes.claim("default", options);
  t.after(() => client.sandboxes.delete(sandbox.id));
  return sandbox;
}

// refused checks that a call is answered with an error in the envelope.
export async function refused(call, status, code) {
  await assert.rejects(call, (err) => {
    assert(err instanceof sdk.APIError, `not an APIError: ${err}`);
    assert.equal(err.statusCode, status, err.message);
    if (code) assert.equal(err.code, code);
    assert(err.requestId, "no request id");
    return true;
  });
}

// within fails a promise that takes absurdly long.
export function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing after ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// collect reads a stream's items until one is the last.
export async function collect(stream, isLast) {
  const items = [];
  for await (const item of stream) {
    items.push(item);
    if (isLast(item, items)) break;
  }
  return items;
}
