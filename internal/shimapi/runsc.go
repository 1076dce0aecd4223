package shimapi

// RunscFiles are the names of all that runsc keeps in its state directory of a sandbox with
// one container, which is what each of ours has: what it knows of it, the lock of that, and
// the socket that it speaks to it by.
func RunscFiles(id string) []string {
	container := id + "_sandbox:" + id
	return []string{container + ".state", container + ".lock", "runsc-" + id + ".sock"}
}
