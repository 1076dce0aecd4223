// Package nodes tries several nodes of one cluster: each in a network namespace of its
// own, with two API servers outside of them, over mutual TLS. Sandboxes are simulated;
// daemons, database, certificates, object store and network are real.
package nodes
