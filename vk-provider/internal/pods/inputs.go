package pods

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// variable is one variable of a container, in the order of its spec.
type variable struct{ name, value string }

func asMap(env []variable) map[string]string {
	m := map[string]string{}
	for _, v := range env {
		m[v.name] = v.value
	}
	return m
}

// inputs are what a pod takes from elsewhere in Kubernetes.
type inputs struct {
	env    map[string][]variable // by container
	mounts map[string]mounted    // by path inside
}

// errMissing is what is not there yet and may come.
type errMissing struct{ reason, message string }

func (e *errMissing) Error() string { return e.message }

// resolve reads what a pod takes from config maps, secrets and itself, and waits for
// what is not there; false: the pod is to go.
func (p *Pods) resolve(ctx context.Context, pod *pod) (in inputs, ok bool) {
	said := ""
	ok = p.attempt(ctx, pod, func() bool {
		r := p.resolver(ctx, pod)
		var err error
		if in, err = r.inputs(); err == nil {
			return false
		}
		if reason := "CreateContainerConfigError"; err.Error() != said {
			said = err.Error()
			var missing *errMissing
			if errors.As(err, &missing) {
				p.event(pod, corev1.EventTypeWarning, missing.reason, missing.message)
			}
			p.notYet(ctx, pod, reason, err)
		}
		return true
	})
	return in, ok
}

// resolver reads each object once.
type resolver struct {
	ctx        context.Context
	p          *Pods
	api        *corev1.Pod
	configMaps map[string]*corev1.ConfigMap
	secrets    map[string]*corev1.Secret
}

func (p *Pods) resolver(ctx context.Context, pod *pod) *resolver {
	return &resolver{ctx: ctx, p: p, api: p.api(pod), configMaps: map[string]*corev1.ConfigMap{}, secrets: map[string]*corev1.Secret{}}
}

func (r *resolver) inputs() (inputs, error) {
	in := inputs{env: map[string][]variable{}}
	for _, c := range slices.Concat(r.api.Spec.InitContainers, r.api.Spec.Containers) {
		env, err := r.containerEnv(&c)
		if err != nil {
			return in, err
		}
		in.env[c.Name] = env
	}
	var err error
	in.mounts, err = r.mounts()
	return in, err
}

// configMap and secret read an object; nil without an error: it is optional and missing.
func (r *resolver) configMap(name string, optional *bool) (*corev1.ConfigMap, error) {
	if cm, ok := r.configMaps[name]; ok {
		return cm, nil
	}
	cm, err := r.p.cfg.Kube.CoreV1().ConfigMaps(r.api.Namespace).Get(r.ctx, name, metav1.GetOptions{})
	if err = r.missing(err, "ConfigMap", name, optional); err != nil || cm.GetName() == "" {
		return nil, err
	}
	r.configMaps[name] = cm
	return cm, nil
}

func (r *resolver) secret(name string, optional *bool) (*corev1.Secret, error) {
	if s, ok := r.secrets[name]; ok {
		return s, nil
	}
	s, err := r.p.cfg.Kube.CoreV1().Secrets(r.api.Namespace).Get(r.ctx, name, metav1.GetOptions{})
	if err = r.missing(err, "Secret", name, optional); err != nil || s.GetName() == "" {
		return nil, err
	}
	r.secrets[name] = s
	return s, nil
}

func (r *resolver) missing(err error, kind, name string, optional *bool) error {
	if !apierrors.IsNotFound(err) {
		return err
	}
	if optional != nil && *optional {
		return nil
	}
	return &errMissing{"Mandatory" + kind + "NotFound", fmt.Sprintf("%s %q not found", kind, name)}
}

func (r *resolver) containerEnv(c *corev1.Container) ([]variable, error) {
	var env []variable
	for _, from := range c.EnvFrom {
		values, err := r.envFrom(from)
		if err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(values)) {
			env = append(env, variable{from.Prefix + name, values[name]})
		}
	}
	for _, e := range c.Env {
		value, ok, err := expander(env)(e.Value), true, error(nil)
		if e.ValueFrom != nil {
			value, ok, err = r.valueFrom(e.ValueFrom, c)
		}
		if err != nil {
			return nil, err
		}
		if ok {
			env = append(env, variable{e.Name, value})
		}
	}
	return env, nil
}

func (r *resolver) envFrom(from corev1.EnvFromSource) (map[string]string, error) {
	values := map[string]string{}
	if ref := from.ConfigMapRef; ref != nil {
		cm, err := r.configMap(ref.Name, ref.Optional)
		if err != nil {
			return nil, err
		}
		if cm != nil {
			maps.Copy(values, cm.Data)
		}
	}
	if ref := from.SecretRef; ref != nil {
		s, err := r.secret(ref.Name, ref.Optional)
		if err != nil {
			return nil, err
		}
		if s != nil {
			for k, v := range s.Data {
				values[k] = string(v)
			}
		}
	}
	return values, nil
}

// valueFrom reads one value; ok is false where it is optional and missing.
func (r *resolver) valueFrom(from *corev1.EnvVarSource, c *corev1.Container) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = r.field(from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = resourceOf(c, from.ResourceFieldRef)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, err := r.configMap(ref.Name, ref.Optional)
		if cm == nil || err != nil {
			return "", false, err
		}
		value, ok = cm.Data[ref.Key]
		return value, ok, r.missingKey(ok, "ConfigMap", ref.Name, ref.Key, ref.Optional)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, err := r.secret(ref.Name, ref.Optional)
		if s == nil || err != nil {
			return "", false, err
		}
		b, ok := s.Data[ref.Key]
		return string(b), ok, r.missingKey(ok, "Secret", ref.Name, ref.Key, ref.Optional)
	}
	return "", false, errors.New("a variable's value comes from where nobody knows")
}

func (r *resolver) missingKey(ok bool, kind, name, key string, optional *bool) error {
	if ok || optional != nil && *optional {
		return nil
	}
	return &errMissing{"Mandatory" + kind + "NotFound", fmt.Sprintf("%s %q has no key %q", kind, name, key)}
}

// field reads a field of the pod's own. The sandbox's address is not known before it is there.
func (r *resolver) field(name string) (string, error) {
	if key, of, ok := subscript(name); ok {
		switch of {
		case "metadata.labels":
			return r.api.Labels[key], nil
		case "metadata.annotations":
			return r.api.Annotations[key], nil
		}
	}
	switch name {
	case "metadata.name":
		return r.api.Name, nil
	case "metadata.namespace":
		return r.api.Namespace, nil
	case "metadata.uid":
		return string(r.api.UID), nil
	case "spec.nodeName":
		return r.p.cfg.NodeName, nil
	case "spec.serviceAccountName":
		return r.api.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return r.p.cfg.HostIP, nil
	}
	return "", fmt.Errorf("field %s is not known before a sandbox runs", name)
}
