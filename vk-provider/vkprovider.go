// Package vkprovider shows one node's noded to Kubernetes: as a virtual node whose pods
// are sandboxes.
//
// [Run] assembles it: the connection to noded, the node and its lease, the pods, and the
// kubelet API. Nothing is stored: what a pod is backed by is asked of noded, by the pod's
// UID, whenever this process begins anew. When it ends, sandboxes go on.
package vkprovider

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"s0.run/internal/daemon"
	"s0.run/vk-provider/internal/noded"
	"s0.run/vk-provider/internal/pods"
	"s0.run/vk-provider/internal/virtualnode"
)

const (
	// qps and burst are of our client: the default of 5 a second would make 60 pods wait
	// for 10 seconds. What protects the API server is its own fairness.
	qps, burst = 500, 1000
	// The kubelet API asks who calls with another: whoever knocks must hold up no pod.
	reviewQPS, reviewBurst = 20, 40
	workers                = 16
	// Of VK's queues: only what fails waits.
	firstRetry, lastRetry = 100 * time.Millisecond, 30 * time.Second
	// registerRetry is the longest pause before the node's registration is tried again: its
	// pods are not evicted before it has missed some leases.
	registerRetry = 5 * time.Second
	// infoTimeout is how long noded may take to be there when we start.
	infoTimeout, infoPause = 2 * time.Minute, 500 * time.Millisecond
	pingTimeout            = 5 * time.Second
	leaseSeconds           = 40
)

// Config says whose node this is and where. Zero fields take the value that [Default]
// has for them.
type Config struct {
	NodeSocket    string // noded's
	AdminSocket   string // of health and pprof; empty: none
	Kubeconfig    string // empty: the service account of the pod that this runs in
	NodeName      string // in Kubernetes; default noded's name
	Address       string // at which Kubernetes reaches the kubelet API, and its address in the cluster
	Listen        string // of the kubelet API
	CertFile      string // of the kubelet API; without one it makes its own, as kubelets do
	KeyFile       string
	ClientCAFile  string // whose certificates name callers; without one only tokens do
	PoolNamespace string
	CPUMillis     int64 // that pods may have together
	MemoryBytes   int64
	DiskBytes     int64
	Labels        map[string]string
	Warmups       int // pods that are brought up at a time
	Version       string

	Log   *slog.Logger
	Ready func(listen string) // called once, when the node is registered and takes pods
}

// Default is where every default is.
func Default() Config {
	return Config{
		NodeSocket: "/run/s0/noded/node.sock", Listen: ":10250", PoolNamespace: "s0-pools", Warmups: 4, Version: "dev",
		CPUMillis: 4000, MemoryBytes: 8 << 30, DiskBytes: 50 << 30, Log: slog.Default(),
	}
}

// Run shows the node until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	s := daemon.NewStack()
	defer s.Stop()
	if err := open(ctx, cfg, s); err != nil {
		return fmt.Errorf("vk-provider: %w", err)
	}
	if err := s.Wait(ctx); err != nil {
		return fmt.Errorf("vk-provider: %w", err)
	}
	return nil
}

func open(ctx context.Context, cfg Config, s *daemon.Stack) error {
	kube, err := client(cfg.Kubeconfig, qps, burst)
	if err != nil {
		return err
	}
	peer := noded.New(cfg.NodeSocket, cfg.Log)
	info, err := hello(ctx, peer, cfg.Log)
	if err != nil {
		return err
	}
	if cfg.NodeName == "" {
		cfg.NodeName = info.GetNode()
	}
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return err
	}
	s.Push(func() { listener.Close() })
	if err := cfg.complete(listener); err != nil {
		return err
	}
	recorder := events(kube, cfg.NodeName, s)
	informer, all := podInformer(kube, cfg.NodeName)
	backed := pods.New(pods.Config{
		Node: peer, Kube: kube, Lister: informer.Lister(), Events: recorder, NodeName: cfg.NodeName, HostIP: cfg.Address,
		PoolNamespace: cfg.PoolNamespace, Warmups: cfg.Warmups, Log: cfg.Log,
	})
	if err := tellChanged(informer.Informer(), backed); err != nil {
		return err
	}
	s.Start("pods", backed.Run)
	vnode, cordon := virtualnode.New(cfg.node(listener), info, peer.RPC()), virtualnode.NewCordon(peer.RPC(), cfg.Log)
	self, err := tellCordon(kube, cfg.NodeName, cordon)
	if err != nil {
		return err
	}
	s.Start("cordon", cordon.Run)
	s.Start("noded", func(ctx context.Context) error { return peer.Run(ctx, told{backed, vnode, cordon}) })
	if err := serveKubelet(cfg, s, peer, backed, informer.Lister(), listener); err != nil {
		return err
	}
	s.Start("informers", follow(all, self))
	return control(ctx, cfg, s, controlled{kube, informer, recorder, backed, vnode})
}
