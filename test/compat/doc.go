// Package compat runs public clients, unmodified, against a real server.
//
// client/ holds the tests of the npm package `sandbox0` in its own language, habits_test.go
// what such clients are known to do. The Go test starts one private s0 for both.
package compat
