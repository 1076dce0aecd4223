// Package s0test is the harness of tests that run the real thing: a private
// PostgreSQL, a private containerd with our shim, or a whole private s0 from its
// binaries, each below a temporary directory, and the oracle that says what an
// instance has left on its machine.
//
// Whatever a harness starts ends with the test process, however that ends. The
// package looks at a server only as a user or the kernel sees it.
package s0test
