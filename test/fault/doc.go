// Package fault breaks s0 while it works, and looks at everything that is left.
//
// Its tests run the real thing as separate processes (PostgreSQL, containerd with
// shims and runsc, `s0d noded`, `s0d api`), end one of them at a chosen place or at a
// random moment, start it again, and ask one oracle: rows, journal, the node's own
// words, containerd, processes, network namespaces, links, addresses, mounts, control
// groups, directories and images must tell of the same sandboxes, each of them whole,
// and every survivor must still serve.
//
// Which places there are nobody writes down twice: a run of each operation with a
// trace (package failpoint) lists them. The matrix, the robustness run and the generations
// run are targets of their own (make test-faults, test-robust, test-generations);
// a small selection runs with `make test`.
package fault
