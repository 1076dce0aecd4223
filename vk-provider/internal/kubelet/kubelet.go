// Package kubelet is the kubelet's HTTPS API of the virtual node: what kubectl logs,
// exec, attach, port-forward, cp and top ask for, by way of the API server of Kubernetes.
//
// Every request is authenticated, by a client certificate of the cluster's CA or by a
// token that Kubernetes knows, and then authorised by Kubernetes; there is no path that
// is not. The package reaches sandboxes only through noded and keeps nothing of what
// passes it.
package kubelet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/node/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"s0.run/internal/daemon"
	"s0.run/vk-provider/internal/noded"
	"s0.run/vk-provider/internal/pods"
)

const (
	headerTimeout, idleTimeout = 10 * time.Second, 2 * time.Minute
	// streamIdle is how long a person may say nothing: half a working day. streamCreation
	// bounds the opening of the streams of one exec.
	streamIdle, streamCreation = 4 * time.Hour, 30 * time.Second
	stopGrace                  = 2 * time.Second
)

// Config wires a Server. Every field but ClientCAs is required.
type Config struct {
	Listener    net.Listener
	Certificate tls.Certificate
	ClientCAs   *x509.CertPool // whose certificates name callers; nil: only tokens do
	NodeName    string
	// Asked who calls, which anybody can have asked, and what somebody known may do. Each
	// has a budget of its own, so that neither holds up the other, nor pods.
	TokenReviews, AccessReviews kubernetes.Interface
	Pods                        *pods.Pods
	Node                        *noded.Client
	List                        func(context.Context) ([]*corev1.Pod, error) // of this node, as Kubernetes has them
	Log                         *slog.Logger
}

// Server is the API.
type Server struct {
	cfg  Config
	http *http.Server
}

// New makes a Server; it answers nobody before Run.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg}
	handler := api.PodHandler(api.PodHandlerConfig{
		RunInContainer: s.exec, AttachToContainer: s.attach, PortForward: s.forward, GetContainerLogs: s.logs,
		GetPods: cfg.Pods.GetPods, GetPodsFromKubernetes: cfg.List,
		GetStatsSummary: s.summary, GetMetricsResource: s.resource,
		StreamIdleTimeout: streamIdle, StreamCreationTimeout: streamIdle, // port-forward takes the one for the other
	}, true)
	s.http = &http.Server{
		Handler: newAuth(cfg).wrap(handler), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cfg.Certificate}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
		ErrorLog:  slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	err := daemon.Serve(ctx, s.http, tls.NewListener(s.cfg.Listener, s.http.TLSConfig), stopGrace)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
