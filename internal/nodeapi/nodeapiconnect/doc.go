// Package nodeapiconnect is the generated Connect client and server of the node
// API (../node.proto). Nothing in it is written by hand but this comment.
package nodeapiconnect
