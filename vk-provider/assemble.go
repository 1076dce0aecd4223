package vkprovider

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/node"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	informersv1 "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	listersv1 "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"s0.run/internal/daemon"
	"s0.run/internal/nodeapi"
	"s0.run/vk-provider/internal/kubelet"
	"s0.run/vk-provider/internal/noded"
	"s0.run/vk-provider/internal/pods"
	"s0.run/vk-provider/internal/virtualnode"
)

// client is one with a budget of its own.
func client(kubeconfig string, qps float32, burst int) (kubernetes.Interface, error) {
	var rc *rest.Config
	var err error
	if kubeconfig == "" {
		rc, err = rest.InClusterConfig()
	} else {
		rc, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, err
	}
	rc.QPS, rc.Burst, rc.UserAgent = qps, burst, "s0-vk"
	return kubernetes.NewForConfig(rc)
}

// hello asks noded who it is; it may be starting as well.
func hello(ctx context.Context, peer *noded.Client, log *slog.Logger) (*nodeapi.InfoResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	for said := false; ; said = true {
		info, err := peer.RPC().Info(ctx, &nodeapi.InfoRequest{})
		if err == nil {
			return info, nil
		}
		if !said {
			log.Warn("noded does not answer yet", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("asking noded who it is: %w", err)
		case <-time.After(infoPause):
		}
	}
}

// complete fills in what follows from where the kubelet API listens.
func (c *Config) complete(l net.Listener) error {
	if c.Address == "" {
		host, _, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			return err
		}
		if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
			return errors.New("address: it must be told at which address Kubernetes reaches this node")
		}
		c.Address = host
	}
	return nil
}

func (c *Config) node(l net.Listener) virtualnode.Config {
	_, port, _ := net.SplitHostPort(l.Addr().String())
	n, _ := strconv.ParseInt(port, 10, 32)
	return virtualnode.Config{
		Name: c.NodeName, Address: c.Address, Port: int32(n), CPUMillis: c.CPUMillis, MemoryBytes: c.MemoryBytes, DiskBytes: c.DiskBytes,
		Labels: c.Labels, Version: c.Version,
	}
}

// told passes what noded tells to the pods, and whether it tells anything to the node.
type told struct {
	*pods.Pods
	node   *virtualnode.Node
	cordon *virtualnode.Cordon
}

// Synced implements noded.Listener.
func (t told) Synced(p noded.Picture) {
	t.Pods.Synced(p)
	t.node.Ready(true, "")
	t.cordon.Again()
}

// Lost implements noded.Listener.
func (t told) Lost(err error) {
	t.Pods.Lost(err)
	t.node.Ready(false, "noded's stream is lost: "+nodeapi.Text(err.Error()))
}

// quiet drops what VK records of every call that succeeds: each would be a write to
// Kubernetes, and a claim may cost one.
type quiet struct{ record.EventRecorder }

// Event implements record.EventRecorder.
func (q quiet) Event(object runtime.Object, kind, reason, message string) {
	if kind == corev1.EventTypeNormal && strings.HasPrefix(reason, "Provider") {
		return
	}
	q.EventRecorder.Event(object, kind, reason, message)
}

func events(kube kubernetes.Interface, nodeName string, s *daemon.Stack) record.EventRecorder {
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: kube.CoreV1().Events("")})
	s.Push(broadcaster.Shutdown)
	return quiet{broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "s0-vk", Host: nodeName})}
}

// podInformer follows this node's pods.
func podInformer(kube kubernetes.Interface, nodeName string) (informersv1.PodInformer, informers.SharedInformerFactory) {
	all := informers.NewSharedInformerFactoryWithOptions(kube, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", nodeName).String()
	}))
	informer := all.Core().V1().Pods()
	informer.Informer() // has to be asked for before the factory starts
	return informer, all
}

// tellCordon has noded told what becomes of this node in Kubernetes.
func tellCordon(kube kubernetes.Interface, nodeName string, cordon *virtualnode.Cordon) (informers.SharedInformerFactory, error) {
	mine := informers.NewSharedInformerFactoryWithOptions(kube, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", nodeName).String()
	}))
	set := func(obj any) {
		if node, ok := obj.(*corev1.Node); ok {
			cordon.Set(node.Spec.Unschedulable)
		}
	}
	_, err := mine.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: set, UpdateFunc: func(_, obj any) { set(obj) }})
	return mine, err
}

// follow keeps informers going.
func follow(all ...informers.SharedInformerFactory) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, of := range all {
			of.Start(ctx.Done())
		}
		<-ctx.Done()
		for _, of := range all {
			of.Shutdown()
		}
		return nil
	}
}

// tellChanged tells the pods what becomes of them in Kubernetes, in its order.
func tellChanged(informer cache.SharedIndexInformer, backed *pods.Pods) error {
	deleted := func(obj any) {
		// A tombstone whose last state was missed still says which pod it was.
		if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = t.Obj
		}
		if pod, ok := obj.(*corev1.Pod); ok {
			backed.Deleted(pod)
		}
	}
	changed := func(before, obj any) {
		was, ok := before.(*corev1.Pod)
		pod, both := obj.(*corev1.Pod)
		if !ok || !both {
			return
		}
		if was.UID != pod.UID { // another one has its name: its end was missed
			backed.Deleted(was)
		}
		backed.Changed(pod)
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: changed, DeleteFunc: deleted})
	return err
}

func serveKubelet(cfg Config, s *daemon.Stack, peer *noded.Client, backed *pods.Pods, lister listersv1.PodLister, l net.Listener) error {
	cert, err := certificate(cfg)
	if err != nil {
		return err
	}
	tokens, err := client(cfg.Kubeconfig, reviewQPS, reviewBurst)
	if err != nil {
		return err
	}
	access, err := client(cfg.Kubeconfig, reviewQPS, reviewBurst)
	if err != nil {
		return err
	}
	var cas *x509.CertPool
	if cfg.ClientCAFile != "" {
		pem, err := os.ReadFile(cfg.ClientCAFile)
		if err != nil {
			return err
		}
		if cas = x509.NewCertPool(); !cas.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s has no certificate", cfg.ClientCAFile)
		}
	}
	server := kubelet.New(kubelet.Config{
		Listener: l, Certificate: cert, ClientCAs: cas, NodeName: cfg.NodeName, TokenReviews: tokens, AccessReviews: access, Pods: backed, Node: peer, Log: cfg.Log,
		List: func(context.Context) ([]*corev1.Pod, error) { return lister.List(labels.Everything()) },
	})
	s.Start("kubelet API", server.Run)
	return nil
}

// certificate is the kubelet API's. Without a file it signs itself, for a year: whoever
// calls has no more reason to believe it than a kubelet's own.
func certificate(cfg Config) (tls.Certificate, error) {
	if cfg.CertFile != "" {
		return tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "system:node:" + cfg.NodeName, Organization: []string{"system:nodes"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), DNSNames: []string{cfg.NodeName},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(cfg.Address); ip != nil {
		template.IPAddresses = []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// controlled is what VK's controllers work on.
type controlled struct {
	kube     kubernetes.Interface
	informer informersv1.PodInformer
	recorder record.EventRecorder
	backed   *pods.Pods
	node     *virtualnode.Node
}

// control starts VK's controllers: with queues of our own limits, for theirs let ten
// events pass a second.
func control(ctx context.Context, cfg Config, s *daemon.Stack, c controlled) error {
	limiter := func() workqueue.TypedRateLimiter[any] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[any](firstRetry, lastRetry)
	}
	// VK wants listers of what it would resolve environments from; we do that ourselves,
	// and these informers never start.
	unused := informers.NewSharedInformerFactory(c.kube, 0).Core().V1()
	pc, err := node.NewPodController(node.PodControllerConfig{
		PodClient: c.kube.CoreV1(), PodInformer: c.informer, EventRecorder: c.recorder, Provider: c.backed,
		ConfigMapInformer: unused.ConfigMaps(), SecretInformer: unused.Secrets(), ServiceInformer: unused.Services(),
		SyncPodsFromKubernetesRateLimiter: limiter(), DeletePodsFromKubernetesRateLimiter: limiter(), SyncPodStatusFromProviderRateLimiter: limiter(),
		SkipDownwardAPIResolution: true,
	})
	if err != nil {
		return err
	}
	nc, err := node.NewNodeController(c.node, c.node.Object(), c.kube.CoreV1().Nodes(),
		node.WithNodeEnableLeaseV1(c.kube.CoordinationV1().Leases(corev1.NamespaceNodeLease), leaseSeconds), node.WithNodePingTimeout(pingTimeout))
	if err != nil {
		return err
	}
	s.Start("pod controller", func(ctx context.Context) error { return pc.Run(ctx, workers) })
	s.Start("node controller", func(ctx context.Context) error {
		if !answers(ctx, c.kube, cfg) { // else it would end at once
			return nil
		}
		return nc.Run(ctx)
	})
	if err := serveAdmin(cfg, s, pc); err != nil {
		return err
	}
	if cfg.Ready != nil {
		select {
		case <-pc.Ready():
			cfg.Ready(net.JoinHostPort(cfg.Address, strconv.Itoa(int(c.node.Object().Status.DaemonEndpoints.KubeletEndpoint.Port))))
		case <-pc.Done():
			return pc.Err()
		case <-ctx.Done():
		}
	}
	return nil
}

// answers waits until Kubernetes answers; false: ctx has ended.
func answers(ctx context.Context, kube kubernetes.Interface, cfg Config) bool {
	for pause := firstRetry; ctx.Err() == nil; pause = min(2*pause, registerRetry) {
		_, err := kube.CoreV1().Nodes().Get(ctx, cfg.NodeName, metav1.GetOptions{})
		if err == nil || apierrors.IsNotFound(err) {
			return true
		}
		cfg.Log.Warn("the node can't be registered yet", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	return false
}

// serveAdmin serves health and pprof on a unix socket (H05).
func serveAdmin(cfg Config, s *daemon.Stack, pc *node.PodController) error {
	if cfg.AdminSocket == "" {
		return nil
	}
	l, err := daemon.ListenUnix(cfg.AdminSocket)
	if err != nil {
		return err
	}
	mux := daemon.AdminMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-pc.Ready():
			fmt.Fprintln(w, "ok")
		default:
			http.Error(w, "pods are not synced yet", http.StatusServiceUnavailable)
		}
	})
	s.Start("admin", func(ctx context.Context) error {
		return daemon.Serve(ctx, &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, l, time.Second)
	})
	return nil
}
