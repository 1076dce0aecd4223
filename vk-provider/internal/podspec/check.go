package podspec

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Check refuses what a sandbox can't or must not have. It takes off the pod what is
// allowed, field by field; whatever is left over is refused by name, so that a field
// that a later Kubernetes invents is refused, too (H01).
func Check(pod *corev1.Pod) *Refusal {
	rest := pod.Spec.DeepCopy()
	stripScheduling(rest)
	stripLife(rest)
	rest.Volumes = slices.DeleteFunc(rest.Volumes, allowedVolume)
	for _, containers := range [][]corev1.Container{rest.InitContainers, rest.Containers} {
		for i := range containers {
			stripContainer(&containers[i])
		}
	}
	rest.InitContainers = slices.DeleteFunc(rest.InitContainers, isEmpty[corev1.Container])
	rest.Containers = slices.DeleteFunc(rest.Containers, isEmpty[corev1.Container])
	if names := leftOver(rest); len(names) > 0 {
		return refuse(ReasonNotAllowed, "a sandbox can't have %s", strings.Join(names, ", "))
	}
	return checkCommands(pod)
}

func checkCommands(pod *corev1.Pod) *Refusal {
	if Pooled(pod) {
		return nil
	}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if len(c.Command) == 0 {
			return refuse(ReasonUnsupported, "container %s has no command: what its image would run by itself is not known to this node", c.Name)
		}
		if _, r := ProbesOf(&c); r != nil {
			return r
		}
	}
	return checkMounts(pod)
}

// checkMounts refuses what one root filesystem can't show to several containers.
func checkMounts(pod *corev1.Pod) *Refusal {
	at, empty := map[string]string{}, emptyDirs(pod)
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, m := range c.VolumeMounts {
			dir := path.Clean("/" + m.MountPath)
			if dir == "/" {
				return refuse(ReasonUnsupported, "volume %q can't be mounted at /: what containers run is there", m.Name)
			}
			if other, taken := at[dir]; taken && other != m.Name {
				return refuse(ReasonUnsupported, "containers of one sandbox share its root filesystem: %s can't be both volume %q and volume %q", dir, other, m.Name)
			}
			for other, name := range at {
				if name == m.Name && empty[name] && nested(dir, other) {
					return refuse(ReasonUnsupported, "volume %q can't be mounted at both %s and %s: it would be within itself", name, other, dir)
				}
			}
			at[dir] = m.Name
		}
	}
	return nil
}

func emptyDirs(pod *corev1.Pod) map[string]bool {
	all := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		all[v.Name] = v.EmptyDir != nil
	}
	return all
}

// nested reports whether one of two clean paths is below the other.
func nested(a, b string) bool { return strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/") }

// stripScheduling takes off what others decide by: the scheduler, admission.
func stripScheduling(s *corev1.PodSpec) {
	s.NodeName, s.NodeSelector, s.SchedulerName, s.Tolerations, s.Affinity = "", nil, "", nil, nil
	s.TopologySpreadConstraints, s.Priority, s.PriorityClassName, s.PreemptionPolicy = nil, nil, "", nil
	s.SchedulingGates, s.Overhead = nil, nil
	s.ServiceAccountName, s.DeprecatedServiceAccount, s.AutomountServiceAccountToken, s.EnableServiceLinks = "", "", nil, nil
	if s.OS != nil && s.OS.Name == corev1.Linux {
		s.OS = nil
	}
	if s.RuntimeClassName != nil && *s.RuntimeClassName == RuntimeClass {
		s.RuntimeClassName = nil
	}
	stripNames(s)
}

// stripNames takes off what says who is asked for names: the node's own resolver is,
// whichever server a sandbox sends its question to.
func stripNames(s *corev1.PodSpec) {
	switch s.DNSPolicy {
	case corev1.DNSClusterFirst, corev1.DNSDefault:
		s.DNSPolicy = ""
	case corev1.DNSNone: // which comes with servers
		s.DNSPolicy = ""
		if s.DNSConfig != nil {
			s.DNSConfig.Nameservers = nil
		}
	}
	if s.DNSConfig != nil && isEmpty(*s.DNSConfig) {
		s.DNSConfig = nil
	}
}

// stripLife takes off what this provider does.
func stripLife(s *corev1.PodSpec) {
	s.RestartPolicy, s.TerminationGracePeriodSeconds, s.ActiveDeadlineSeconds = "", nil, nil
	s.Hostname, s.Subdomain = "", ""
	if s.HostUsers != nil && !*s.HostUsers {
		s.HostUsers = nil
	}
	if sc := s.SecurityContext; sc != nil {
		if p := sc.SeccompProfile; p != nil && p.Type == corev1.SeccompProfileTypeRuntimeDefault {
			sc.SeccompProfile = nil // the sandbox's kernel is one
		}
		if isEmpty(*sc) {
			s.SecurityContext = nil
		}
	}
}

func stripContainer(c *corev1.Container) {
	c.Name, c.Image, c.ImagePullPolicy, c.Command, c.Args, c.WorkingDir = "", "", "", nil, nil, ""
	c.Env, c.EnvFrom, c.TerminationMessagePath, c.TerminationMessagePolicy = nil, nil, "", ""
	c.Stdin, c.StdinOnce, c.TTY = false, false, false
	c.Ports = slices.DeleteFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.HostPort == 0 && p.HostIP == "" })
	c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.SubPath == "" && m.SubPathExpr == "" && (m.MountPropagation == nil || *m.MountPropagation == corev1.MountPropagationNone)
	})
	for _, list := range []corev1.ResourceList{c.Resources.Limits, c.Resources.Requests} {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
			delete(list, name)
		}
	}
	stripProbes(c)
	stripSecurity(c)
	c.Resources.Limits, c.Resources.Requests = orNil(c.Resources.Limits), orNil(c.Resources.Requests)
	if len(c.Ports) == 0 {
		c.Ports = nil
	}
	if len(c.VolumeMounts) == 0 {
		c.VolumeMounts = nil
	}
}

func orNil(list corev1.ResourceList) corev1.ResourceList {
	if len(list) == 0 {
		return nil
	}
	return list
}

// stripSecurity takes off what asks for less, or for what every sandbox is anyway.
func stripSecurity(c *corev1.Container) {
	sc := c.SecurityContext
	if sc == nil {
		return
	}
	for _, p := range []**bool{&sc.Privileged, &sc.AllowPrivilegeEscalation, &sc.ReadOnlyRootFilesystem, &sc.RunAsNonRoot} {
		if *p != nil && !**p {
			*p = nil
		}
	}
	if sc.ProcMount != nil && *sc.ProcMount == corev1.DefaultProcMount {
		sc.ProcMount = nil
	}
	if p := sc.SeccompProfile; p != nil && p.Type == corev1.SeccompProfileTypeRuntimeDefault {
		sc.SeccompProfile = nil
	}
	if caps := sc.Capabilities; caps != nil && len(caps.Add) == 0 {
		sc.Capabilities = nil
	}
	if isEmpty(*sc) {
		c.SecurityContext = nil
	}
}

// allowedVolume reports whether a volume is one that this provider fills.
func allowedVolume(v corev1.Volume) bool {
	if TokenVolume(v) {
		return true
	}
	v.Name = ""
	if e := v.EmptyDir; e != nil && e.Medium == corev1.StorageMediumDefault {
		v.EmptyDir = nil
	}
	v.ConfigMap, v.Secret, v.DownwardAPI = nil, nil, nil
	if p := v.Projected; p != nil && !slices.ContainsFunc(p.Sources, func(s corev1.VolumeProjection) bool {
		s.ConfigMap, s.Secret, s.DownwardAPI = nil, nil, nil
		return !isEmpty(s)
	}) {
		v.Projected = nil
	}
	return isEmpty(v)
}

const (
	tokenVolume = "kube-api-access-"
	tokenPath   = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// TokenVolume reports whether a volume is what admission gives every pod: a token of
// its service account. A sandbox gets none, and nobody asked for this one.
func TokenVolume(v corev1.Volume) bool {
	return strings.HasPrefix(v.Name, tokenVolume) && v.Projected != nil
}

// TokenMount reports whether a mount is that volume's, where admission puts it.
func TokenMount(m corev1.VolumeMount) bool {
	return strings.HasPrefix(m.Name, tokenVolume) && m.MountPath == tokenPath
}

// isEmpty reports whether a value says nothing.
func isEmpty[T any](v T) bool {
	b, err := json.Marshal(v)
	return err == nil && len(leaves("", decode(b))) == 0
}

// leftOver names the fields of a spec that say something, as its author wrote them.
func leftOver(s *corev1.PodSpec) []string {
	b, err := json.Marshal(s)
	if err != nil {
		return []string{"what can't be read: " + err.Error()}
	}
	names := leaves("spec", decode(b))
	slices.Sort(names)
	names = slices.Compact(names)
	return names[:min(len(names), maxNamed)]
}

// maxNamed bounds how many fields a refusal names.
const maxNamed = 8

func decode(b []byte) (v any) {
	_ = json.Unmarshal(b, &v) // it was just marshalled
	return v
}

// leaves are the paths of all values that are not empty. An empty string, false and
// null say nothing; a number or an empty list of what may be listed does.
func leaves(path string, v any) []string {
	switch v := v.(type) {
	case nil:
		return nil
	case map[string]any:
		var all []string
		for key, value := range v {
			if key == "name" && len(v) > 1 { // of a volume or the like: says which, not what
				continue
			}
			all = append(all, leaves(strings.TrimPrefix(path+"."+key, "."), value)...)
		}
		return all
	case []any:
		var all []string
		for _, value := range v {
			all = append(all, leaves(path+"[]", value)...)
		}
		return all
	case string:
		if v == "" {
			return nil
		}
	}
	return []string{path}
}
