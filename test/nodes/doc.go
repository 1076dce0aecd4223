// Package nodes tries several nodes of one cluster: each in a network namespace of its
// own, with two API servers outside of them, over mutual TLS. Daemons, database,
// certificates, object store and network are real. In one test sandboxes are simulated;
// in the other they are gVisor's, and each node is a virtual node of a Kubernetes control
// plane as well.
package nodes
