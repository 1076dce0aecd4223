// The s0-vk program shows a node's sandboxes to Kubernetes, as a virtual node.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"s0.run/internal/daemon"
	vkprovider "s0.run/vk-provider"
)

var version = "dev" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		os.Exit(1)
	}
}

func command() *cobra.Command {
	c := vkprovider.Default()
	c.Version = version
	cmd := &cobra.Command{Use: "s0-vk", Short: "Show a node's sandboxes to Kubernetes", Args: cobra.NoArgs, SilenceUsage: true, Version: version}
	f := cmd.Flags()
	f.StringVar(&c.NodeSocket, "node-socket", c.NodeSocket, "unix socket of the node's noded")
	f.StringVar(&c.AdminSocket, "admin-socket", c.AdminSocket, "unix socket of health and pprof")
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "how to reach Kubernetes (default: as the pod that this runs in)")
	f.StringVar(&c.NodeName, "node-name", "", "name of the virtual node (default: noded's)")
	f.StringVar(&c.Address, "address", "", "address at which Kubernetes reaches this node (default: that of --listen)")
	f.StringVar(&c.Listen, "listen", c.Listen, "address of the kubelet API")
	f.StringVar(&c.CertFile, "tls-cert", "", "certificate of the kubelet API (default: one that it makes itself)")
	f.StringVar(&c.KeyFile, "tls-key", "", "its key")
	f.StringVar(&c.ClientCAFile, "client-ca", "", "CA whose certificates name callers of the kubelet API; without one only tokens do")
	f.StringVar(&c.PoolNamespace, "pool-namespace", c.PoolNamespace, "the one namespace whose pods may be slots of pools")
	f.Int64Var(&c.CPUMillis, "cpu-millis", c.CPUMillis, "thousandths of CPUs that pods may have together")
	f.Int64Var(&c.MemoryBytes, "memory-bytes", c.MemoryBytes, "memory that pods may have together")
	f.Int64Var(&c.DiskBytes, "disk-bytes", c.DiskBytes, "disk that pods may have together")
	f.StringToStringVar(&c.Labels, "labels", nil, "labels of the node, beside its own")
	f.IntVar(&c.Warmups, "warmups", c.Warmups, "pods that are brought up at a time")
	level := f.String("log-level", "info", "debug, info, warn or error")
	file := f.String("config", "", "YAML file with values for these flags")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *file != "" {
			if err := daemon.LoadFile(cmd.Flags(), *file); err != nil {
				return err
			}
		}
		log, err := daemon.NewLogger(os.Stderr, *level)
		if err != nil {
			return err
		}
		c.Log = log.With("daemon", "vk")
		c.Ready = func(at string) { c.Log.Info("the node is registered", "kubelet_api", at) }
		return vkprovider.Run(cmd.Context(), c)
	}
	return cmd
}
