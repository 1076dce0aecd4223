// Package e2e tests s0 from outside: whole private instances, started from the
// binaries and used through the public API and the command line. It knows
// nothing of what is behind them but what package s0test sees in the kernel.
package e2e
