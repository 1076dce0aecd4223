// Package archtest holds no code: its tests keep the module's shape.
//
// They check who may import what, that every package says what it is for, that
// go.mod has no replace directive, and that the files are of a size that a
// reader can take in. The table in archtest_test.go is the one place where a
// rule changes; docs/ARCHITECTURE.md explains them.
package archtest
