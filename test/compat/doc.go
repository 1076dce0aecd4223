// Package compat runs public clients, unmodified, against a real server.
//
// client/ holds the tests of the npm package `sandbox0` in its own language; the
// Go test starts a private s0 and runs them.
package compat
