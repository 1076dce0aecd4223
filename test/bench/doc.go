// Package bench measures s0 against its budgets and beside the plain tools.
//
// `make bench` runs it: one private s0, started from its binaries, one table
// with N, load and percentiles, and every sample as CSV. Nothing here fails
// because a figure was bad: times drift with the machine, so figures are
// compared within one run and read by people.
package bench
