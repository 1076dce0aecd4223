// Package docker checks the images that hack/docker builds: what is in them and what is
// not, as whom they run, and that every program in them starts.
package docker
