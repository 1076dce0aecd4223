// Package compat runs public clients, unmodified, against a real server.
//
// client/ holds the tests of the npm package `sandbox0` in its own language; the
// Go test starts a private s0 and runs them. What the client has and the server
// does not serve yet is listed in client/later.mjs, call by call.
package compat
