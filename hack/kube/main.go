// The kube program starts and stops a Kubernetes control plane of one's own on this
// machine, to try the virtual node with: see `make kube-up`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"s0.run/internal/s0test/kubetest"
)

func main() {
	dir := flag.String("dir", "build/kube", "where everything of it is")
	flag.Parse()
	abs, err := filepath.Abs(*dir)
	if err == nil {
		err = run(abs, flag.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube:", err)
		os.Exit(1)
	}
}

func run(dir, verb string) error {
	if verb != "up" && verb != "down" {
		return fmt.Errorf("%q: want up or down", verb)
	}
	if err := kubetest.StopDir(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil || verb == "down" {
		return err
	}
	binary, err := filepath.Abs("build/bin/kubeall")
	if err != nil {
		return err
	}
	c, err := kubetest.Start(context.Background(), kubetest.Config{Dir: dir, Binary: binary, KeepRunning: true})
	if err != nil {
		return err
	}
	fmt.Printf("Kubernetes answers at %s\n\n  export KUBECONFIG=%s\n  build/bin/kubeall kubectl get nodes\n", c.URL, c.Admin())
	fmt.Printf("\nA node for it, beside a running noded:\n\n  build/bin/s0-vk --kubeconfig %s --client-ca %s --node-socket /run/s0/noded/node.sock --listen 127.0.0.1:10250\n", c.Admin(), c.CAFile())
	return nil
}
