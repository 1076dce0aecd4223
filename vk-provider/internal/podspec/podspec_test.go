package podspec

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/internal/warm"
)

// plain is a pod that may be a sandbox, as admission leaves it.
func plain() *corev1.Pod {
	grace, enable, priority, preempt := int64(30), true, int32(0), corev1.PreemptLowerPriority
	no := false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "main", Image: "example.com/a", Command: []string{"sleep"}, Args: []string{"100"}, ImagePullPolicy: corev1.PullAlways,
				TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
				Env:          []corev1.EnvVar{{Name: "A", Value: "b"}, {Name: "N", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}},
				Ports:        []corev1.ContainerPort{{Name: "http", ContainerPort: 80, Protocol: corev1.ProtocolTCP}},
				VolumeMounts: []corev1.VolumeMount{{Name: "kube-api-access-x", MountPath: tokenPath, ReadOnly: true}, {Name: "scratch", MountPath: "/scratch"}, {Name: "conf", MountPath: "/conf"}},
				Resources: corev1.ResourceRequirements{
					Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi"), corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceEphemeralStorage: resource.MustParse("1Gi")},
				},
				SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			}},
			Volumes: []corev1.Volume{
				{Name: "kube-api-access-x", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}},
				{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{Name: "conf", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}}}}},
			},
			RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, DNSPolicy: corev1.DNSClusterFirst, ServiceAccountName: "default",
			DeprecatedServiceAccount: "default", SecurityContext: &corev1.PodSecurityContext{}, SchedulerName: "default-scheduler", NodeName: "n", EnableServiceLinks: &enable,
			Tolerations: []corev1.Toleration{{Key: Taint, Operator: corev1.TolerationOpExists}}, Priority: &priority, PreemptionPolicy: &preempt,
		},
	}
}

func TestAnOrdinaryPodIsASandbox(t *testing.T) {
	t.Parallel()
	spec, r := SpecOf(plain())
	if r != nil {
		t.Fatal(r)
	}
	if spec.Image != "example.com/a" || spec.MemoryBytes != 256<<20 || spec.CPUMillis != 500 || spec.DiskBytes != 1<<30 || spec.RuntimeClass != sandbox.GVisor {
		t.Errorf("%+v", spec)
	}
}

// A pod may say by a class that it is one of ours, and whom it would ask for names: the
// node's resolver is asked all the same.
func TestAPodMayNameItsClassAndResolvers(t *testing.T) {
	t.Parallel()
	pod, class := plain(), RuntimeClass
	pod.Spec.RuntimeClassName = &class
	pod.Spec.DNSPolicy, pod.Spec.DNSConfig = corev1.DNSNone, &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1"}}
	if r := Check(pod); r != nil {
		t.Error(r)
	}
	if pod.Spec.RuntimeClassName == nil || pod.Spec.DNSConfig == nil {
		t.Error("the pod itself was changed")
	}
}

// H01: whatever reaches for the host, or is not known, is refused by name.
func TestH01_PodsOutsideTheAllowList(t *testing.T) {
	t.Parallel()
	yes, unmasked, root := true, corev1.UnmaskedProcMount, int64(0)
	both := corev1.MountPropagationBidirectional
	first := func(f func(*corev1.Container)) func(*corev1.Pod) {
		return func(p *corev1.Pod) { f(&p.Spec.Containers[0]) }
	}
	secured := func(f func(*corev1.SecurityContext)) func(*corev1.Pod) {
		return first(func(c *corev1.Container) { f(c.SecurityContext) })
	}
	volume := func(v corev1.VolumeSource) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "x", VolumeSource: v})
		}
	}
	for name, c := range map[string]struct {
		mutate func(*corev1.Pod)
		names  string
	}{
		"hostPath":          {volume(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}), "spec.volumes[].hostPath"},
		"nfs":               {volume(corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{Server: "s", Path: "/"}}), "spec.volumes[].nfs"},
		"persistent volume": {volume(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}), "persistentVolumeClaim"},
		"memory":            {volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}), "emptyDir.medium"},
		"token":             {volume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t"}}}}}), "serviceAccountToken"},
		"host network":      {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "spec.hostNetwork"},
		"host PIDs":         {func(p *corev1.Pod) { p.Spec.HostPID = true }, "spec.hostPID"},
		"host IPC":          {func(p *corev1.Pod) { p.Spec.HostIPC = true }, "spec.hostIPC"},
		"sysctls":           {func(p *corev1.Pod) { p.Spec.SecurityContext.Sysctls = []corev1.Sysctl{{Name: "a", Value: "1"}} }, "sysctls"},
		"a user":            {func(p *corev1.Pod) { p.Spec.SecurityContext.RunAsUser = &root }, "runAsUser"},
		"host aliases": {func(p *corev1.Pod) {
			p.Spec.HostAliases = []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"a"}}}
		}, "hostAliases"},
		"search domains": {func(p *corev1.Pod) {
			p.Spec.DNSPolicy, p.Spec.DNSConfig = corev1.DNSNone, &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1"}, Searches: []string{"example.com"}}
		}, "spec.dnsConfig.searches"},
		"the host's names": {func(p *corev1.Pod) { p.Spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet }, "spec.dnsPolicy"},
		"a runtime class":  {func(p *corev1.Pod) { p.Spec.RuntimeClassName = &p.Name }, "runtimeClassName"},
		"claims":           {func(p *corev1.Pod) { p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu"}} }, "resourceClaims"},
		"ephemeral container": {func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "i"}}}
		}, "ephemeralContainers"},
		"privileged":   {secured(func(s *corev1.SecurityContext) { s.Privileged = &yes }), "securityContext.privileged"},
		"capabilities": {secured(func(s *corev1.SecurityContext) { s.Capabilities.Add = []corev1.Capability{"SYS_ADMIN"} }), "capabilities.add"},
		"proc mount":   {secured(func(s *corev1.SecurityContext) { s.ProcMount = &unmasked }), "procMount"},
		"unconfined":   {secured(func(s *corev1.SecurityContext) { s.SeccompProfile.Type = corev1.SeccompProfileTypeUnconfined }), "seccompProfile"},
		"escalation":   {secured(func(s *corev1.SecurityContext) { s.AllowPrivilegeEscalation = &yes }), "allowPrivilegeEscalation"},
		"a device":     {first(func(c *corev1.Container) { c.VolumeDevices = []corev1.VolumeDevice{{Name: "d", DevicePath: "/dev/x"}} }), "volumeDevices"},
		"propagation":  {first(func(c *corev1.Container) { c.VolumeMounts[1].MountPropagation = &both }), "mountPropagation"},
		"a sub path":   {first(func(c *corev1.Container) { c.VolumeMounts[1].SubPath = ".." }), "subPath"},
		"host port":    {first(func(c *corev1.Container) { c.Ports[0].HostPort = 80 }), "hostPort"},
		"a GPU":        {first(func(c *corev1.Container) { c.Resources.Limits["nvidia.com/gpu"] = resource.MustParse("1") }), "nvidia.com/gpu"},
		"a probe of another host": {first(func(c *corev1.Container) {
			c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Host: "169.254.169.254", Port: intstr.FromInt32(80)}}}
		}), "livenessProbe.httpGet.host"},
		"a connection to another host": {first(func(c *corev1.Container) {
			c.StartupProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Host: "example.com", Port: intstr.FromInt32(80)}}}
		}), "startupProbe.tcpSocket.host"},
		"a hook": {first(func(c *corev1.Container) {
			c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"a"}}}}
		}), "lifecycle"},
		"a sidecar": {func(p *corev1.Pod) {
			always := corev1.ContainerRestartPolicyAlways
			c := p.Spec.Containers[0]
			c.Name, c.RestartPolicy = "s", &always
			p.Spec.InitContainers = []corev1.Container{c}
		}, "restartPolicy"},
		"no command": {first(func(c *corev1.Container) { c.Command = nil }), "no command"},
		"another image": {func(p *corev1.Pod) {
			c := p.Spec.Containers[0]
			c.Name, c.Image = "two", "example.com/b"
			p.Spec.Containers = append(p.Spec.Containers, c)
		}, "share its root filesystem"},
		"a runtime":      {func(p *corev1.Pod) { p.Annotations = map[string]string{AnnotationRun: "runcvm"} }, "runtime class"},
		"a foreign pool": {func(p *corev1.Pod) { p.Annotations = map[string]string{AnnotationPool: "k"} }, "namespace"},
	} {
		pod := plain()
		c.mutate(pod)
		_, r := SpecOf(pod)
		if Pooled(pod) {
			_, r = SlotOf(pod, "s0-pools")
		}
		if r == nil {
			t.Errorf("%s: a sandbox may have it", name)
		} else if !strings.Contains(r.Message, c.names) || r.Reason == "" {
			t.Errorf("%s: refused with %q, %q", name, r.Reason, r.Message)
		}
	}
}

func slotPod(t *testing.T, spec sandbox.Spec) *corev1.Pod {
	t.Helper()
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	pod := plain()
	pod.Namespace = "s0-pools"
	pod.Annotations = map[string]string{AnnotationPool: "t:v", AnnotationTeam: "team", AnnotationSpec: string(b)}
	c := &pod.Spec.Containers[0]
	c.Name, c.Image, c.Command, c.Args = PoolContainer, spec.Image, nil, nil
	return pod
}

func TestAPoolsPodIsASlot(t *testing.T) {
	t.Parallel()
	want := sandbox.Spec{Image: "example.com/a", MemoryBytes: 256 << 20, CPUMillis: 500, RuntimeClass: sandbox.GVisor, Env: map[string]string{"A": "b"}}
	slot, r := SlotOf(slotPod(t, want), "s0-pools")
	if r != nil || slot.PoolKey != "t:v" || slot.Team != "team" || slot.Spec.Hash() != want.Hash() {
		t.Fatalf("%+v, %v", slot, r)
	}
	bigger := want
	bigger.MemoryBytes *= 2 // than the scheduler has counted
	pod := slotPod(t, want)
	pod.Annotations[AnnotationSpec] = slotPod(t, bigger).Annotations[AnnotationSpec]
	if _, r := SlotOf(pod, "s0-pools"); r == nil {
		t.Error("a slot may be larger than its pod")
	}
	pod.Annotations[AnnotationSpec] = "{"
	if _, r := SlotOf(pod, "s0-pools"); r == nil {
		t.Error("a slot of nothing")
	}
}

func TestProbes(t *testing.T) {
	t.Parallel()
	pod, service, grace := plain(), "db", int64(3)
	c := &pod.Spec.Containers[0]
	c.StartupProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 90, Service: &service}}, FailureThreshold: 30, PeriodSeconds: 2}
	c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}, SuccessThreshold: 2, TimeoutSeconds: 7}
	c.LivenessProbe = &corev1.Probe{InitialDelaySeconds: 4, TerminationGracePeriodSeconds: &grace, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
		Path: "healthz", Port: intstr.FromString("http"), Scheme: corev1.URISchemeHTTPS, Host: "localhost", HTTPHeaders: []corev1.HTTPHeader{{Name: "A", Value: "b"}},
	}}}
	if _, r := SpecOf(pod); r != nil {
		t.Fatal(r)
	}
	got, r := ProbesOf(c)
	if r != nil {
		t.Fatal(r)
	}
	numbers := warm.Probe{PeriodSeconds: 10, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3}
	startup, readiness, liveness := numbers, numbers, numbers
	startup.GRPC, startup.FailureThreshold, startup.PeriodSeconds = &warm.GRPC{Port: 90, Service: "db"}, 30, 2
	readiness.Exec, readiness.SuccessThreshold, readiness.TimeoutSeconds = []string{"true"}, 2, 7
	liveness.HTTP, liveness.InitialDelaySeconds = &warm.HTTPGet{Path: "/healthz", Port: 80, TLS: true, Headers: []warm.Header{{Name: "A", Value: "b"}}}, 4
	want := procapi.SessionProbes{Startup: &procapi.SessionProbe{Probe: startup}, Readiness: &procapi.SessionProbe{Probe: readiness}, Liveness: &procapi.SessionProbe{Probe: liveness, GraceSeconds: &grace}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	c.LivenessProbe.HTTPGet.Port = intstr.FromString("none")
	if _, r := SpecOf(pod); r == nil || r.Reason != ReasonInvalid || !strings.Contains(r.Message, "livenessProbe of container main: httpGet: port") {
		t.Errorf("a port that is not there: %v", r)
	}
}

func FuzzCheck(f *testing.F) {
	b, _ := json.Marshal(plain())
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var pod corev1.Pod
		if json.Unmarshal(b, &pod) != nil || Check(&pod) != nil {
			return
		}
		s := pod.Spec
		if s.HostNetwork || s.HostPID || s.HostIPC || len(s.EphemeralContainers) > 0 {
			t.Fatalf("allowed: %s", b)
		}
		for _, v := range s.Volumes {
			if v.HostPath != nil {
				t.Fatalf("allowed: %s", b)
			}
		}
	})
}

// Containers that share a root filesystem can't have two volumes at one path; the same one
// they can.
func TestOnePathHasOneVolume(t *testing.T) {
	t.Parallel()
	pod := plain()
	second := pod.Spec.Containers[0].DeepCopy()
	second.Name = "second"
	pod.Spec.Containers = append(pod.Spec.Containers, *second)
	if _, r := SpecOf(pod); r != nil {
		t.Error(r)
	}
	pod.Spec.Containers[1].VolumeMounts[2].MountPath = "/scratch/"
	if _, r := SpecOf(pod); r == nil || r.Reason != ReasonUnsupported || !strings.Contains(r.Message, "/scratch") {
		t.Errorf("refused with %v", r)
	}
}

// An emptyDir that is mounted at several paths is one directory, so none of them can be
// within another.
func TestAnEmptyDirIsNotWithinItself(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		paths   [2]string
		volumes [2]string
		allowed bool
	}{
		{[2]string{"/a", "/a/b"}, [2]string{"e", "e"}, false},
		{[2]string{"/a/b/c", "a/"}, [2]string{"e", "e"}, false},
		{[2]string{"/a", "/"}, [2]string{"e", "e"}, false},
		{[2]string{"/", "/a"}, [2]string{"c", "e"}, false},
		{[2]string{"/x/..", "/a"}, [2]string{"e", "f"}, false},
		{[2]string{"/a", "/ab"}, [2]string{"e", "e"}, true},
		{[2]string{"/a", "/a"}, [2]string{"e", "e"}, true},
		{[2]string{"/a", "/a/b"}, [2]string{"e", "f"}, true},
		{[2]string{"/a", "/a/b"}, [2]string{"c", "c"}, true},
	} {
		pod := plain()
		empty := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
		pod.Spec.Volumes = []corev1.Volume{{Name: "e", VolumeSource: empty}, {Name: "f", VolumeSource: empty}, {Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}}}
		init := pod.Spec.Containers[0].DeepCopy()
		init.Name = "init"
		pod.Spec.InitContainers = []corev1.Container{*init}
		for i, of := range []*corev1.Container{&pod.Spec.InitContainers[0], &pod.Spec.Containers[0]} {
			of.VolumeMounts = []corev1.VolumeMount{{Name: c.volumes[i], MountPath: c.paths[i]}}
		}
		if _, r := SpecOf(pod); (r == nil) != c.allowed || r != nil && r.Reason != ReasonUnsupported {
			t.Errorf("%v at %v: %v", c.volumes, c.paths, r)
		}
	}
}
