// Package charts tests the chart beside it: with Helm's own linter and engine, with the
// programs that it starts, and with a Kubernetes API server that judges what comes of it.
package charts

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	commonutil "helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/yaml"

	"s0.run/internal/s0test/kubetest"
)

const (
	dir       = "s0"
	namespace = "s0-system"
	release   = "s0"
	monitors  = "monitoring.coreos.com/v1/ServiceMonitor"
)

var examples = []string{"minimal", "full"}

func values(t *testing.T, example string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(dir + "/examples/" + example + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	v := map[string]any{}
	if err := yaml.UnmarshalStrict(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// render is `helm template`.
func render(c *chart.Chart, v map[string]any, kinds ...string) (map[string]string, error) {
	capabilities := common.DefaultCapabilities.Copy()
	capabilities.APIVersions = append(capabilities.APIVersions, kinds...)
	all, err := commonutil.ToRenderValuesWithSchemaValidation(c, v, common.ReleaseOptions{Name: release, Namespace: namespace, Revision: 1, IsInstall: true}, capabilities, false)
	if err != nil {
		return nil, err
	}
	e := engine.Engine{Strict: true}
	return e.Render(c, all)
}

// object is one of Kubernetes'.
type object map[string]any

func (o object) kind() string { return fmt.Sprint(o["kind"]) }

func (o object) name() string { return fmt.Sprint(at(o, "metadata", "name")) }

// at is what is below keys of nested objects; nil: nothing.
func at(v any, keys ...string) any {
	for _, k := range keys {
		switch m := v.(type) {
		case map[string]any:
			v = m[k]
		case object:
			v = m[k]
		default:
			return nil
		}
	}
	return v
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

// objects are what an example makes.
func objects(t *testing.T, example string, kinds ...string) []object {
	t.Helper()
	files, err := render(load(t), values(t, example), kinds...)
	if err != nil {
		t.Fatal(err)
	}
	return parsed(t, files)
}

func parsed(t *testing.T, files map[string]string) (all []object) {
	t.Helper()
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(file, ".txt") {
			continue
		}
		for doc := range strings.SplitSeq(files[file], "\n---\n") {
			o := object{}
			if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
				t.Fatalf("%s: %v\n%s", file, err, doc)
			}
			if len(o) > 0 {
				all = append(all, o)
			}
		}
	}
	// As Helm does, for what is in them.
	first := func(o object) bool { return o.kind() == "Namespace" }
	rest := slices.DeleteFunc(slices.Clone(all), first)
	return append(slices.DeleteFunc(all, func(o object) bool { return !first(o) }), rest...)
}

func TestLint(t *testing.T) {
	t.Parallel()
	for _, example := range examples {
		result := lint.RunAll(dir, values(t, example), namespace)
		for _, m := range result.Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("%s: %v", example, m)
			}
		}
		for _, err := range result.Messages {
			if err.Err == nil {
				t.Error("a message without a cause")
			}
		}
	}
}

// What the schema refuses would otherwise be found out on a node.
func TestSchema(t *testing.T) {
	t.Parallel()
	c := load(t)
	for _, tt := range []struct {
		name string
		set  func(v map[string]any)
		says string
	}{
		{"no registry", func(v map[string]any) { delete(v, "images") }, "registry"},
		{"a typing error", func(v map[string]any) { v["replicas"] = 3 }, "replicas"},
		{"no database", func(v map[string]any) { delete(v, "database") }, "oneOf"},
		{"two databases", func(v map[string]any) { v["database"].(map[string]any)["existingSecret"] = "mine" }, "oneOf"},
		{"nobody certifies nodes", func(v map[string]any) { v["nodes"] = map[string]any{"joinSecret": "a"} }, "authoritySecret"},
		{"no node", func(v map[string]any) { v["api"] = map[string]any{"replicas": 0} }, "replicas"},
		{"a cluster's name", func(v map[string]any) { v["cluster"] = "Not a label" }, "cluster"},
		{"a colon in a path", func(v map[string]any) { v["node"] = map[string]any{"dataDir": "/a:b"} }, "dataDir"},
		{"an unknown template", func(v map[string]any) { v["templates"] = map[string]any{"other": "a"} }, "other"},
	} {
		v := values(t, "minimal")
		tt.set(v)
		if _, err := render(c, v); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want a word about %s", tt.name, err, tt.says)
		}
	}
}

func podSpec(o object) map[string]any {
	m, _ := at(o, "spec", "template", "spec").(map[string]any)
	return m
}

func containers(o object) (all []map[string]any) {
	for _, c := range slices.Concat(list(podSpec(o)["initContainers"]), list(podSpec(o)["containers"])) {
		all = append(all, c.(map[string]any))
	}
	return all
}

// Every program that the chart starts is one that there is, and knows each flag that it
// is given: it is asked for help with all of them.
func TestProgramsKnowTheirFlags(t *testing.T) {
	t.Parallel()
	asked := 0
	for _, example := range examples {
		for _, o := range objects(t, example) {
			for _, c := range containers(o) {
				program, args := commandOf(c)
				if program == "" {
					continue
				}
				asked++
				out, err := exec.Command(kubetest.Binary(t, program), append(args, "--help")...).CombinedOutput()
				if err != nil || !bytes.Contains(out, []byte("Usage:")) {
					t.Errorf("%s: %s %v: %v: %s", example, program, args, err, out)
				}
			}
		}
	}
	if asked < 15 {
		t.Errorf("only %d programs were asked", asked)
	}
}

// commandOf is the program of ours that a container starts; "": it is not ours.
func commandOf(c map[string]any) (program string, args []string) {
	for _, a := range append(list(c["command"]), list(c["args"])...) {
		args = append(args, fmt.Sprint(a))
	}
	image := fmt.Sprint(c["image"])
	switch {
	case strings.Contains(image, "/api:"): // whose entry point it is
		return "s0d", args
	case strings.Contains(image, "/vk:"):
		return "s0-vk", args
	case strings.Contains(image, "/node:"):
		return "s0d", args[slices.Index(args, "s0d")+1:]
	}
	return "", nil
}

// Secrets are files: others can see a command line, and whoever reads a pod its arguments.
func TestNoSecretIsAnArgument(t *testing.T) {
	t.Parallel()
	for _, example := range examples {
		var secrets []string
		all := objects(t, example)
		for _, o := range all {
			if o.kind() == "Secret" {
				for _, field := range []string{"data", "stringData"} {
					m, _ := o[field].(map[string]any)
					for _, v := range m {
						secrets = append(secrets, fmt.Sprint(v))
					}
				}
			}
		}
		if example == "minimal" && len(secrets) < 5 {
			t.Errorf("%d secrets are made", len(secrets))
		}
		for _, o := range all {
			if o.kind() == "Secret" {
				continue
			}
			b, err := yaml.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range secrets {
				if bytes.Contains(b, []byte(s)) {
					t.Errorf("%s %s has a secret in it", o.kind(), o.name())
				}
			}
		}
	}
}

// Who may do more than an ordinary container is known by name.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	for _, example := range examples {
		privileged := []string{}
		for _, o := range objects(t, example) {
			for _, c := range containers(o) {
				if at(c, "securityContext", "privileged") == true {
					privileged = append(privileged, fmt.Sprint(c["name"]))
					continue
				}
				if at(c, "securityContext", "readOnlyRootFilesystem") != true || at(c, "securityContext", "allowPrivilegeEscalation") != false || len(list(at(c, "securityContext", "capabilities", "drop"))) != 1 {
					t.Errorf("%s: container %s of %s: %v", example, c["name"], o.name(), c["securityContext"])
				}
			}
			if o.kind() == "Deployment" || o.kind() == "StatefulSet" {
				if spec := podSpec(o); spec["hostNetwork"] != nil || at(spec, "securityContext", "runAsNonRoot") != true {
					t.Errorf("%s: %s may be root or on its host's network", example, o.name())
				}
			}
		}
		want := []string{"containerd", "noded", "netd"}
		if example == "full" {
			want = append(want, "volumed")
		}
		if !slices.Equal(privileged, want) {
			t.Errorf("%s: privileged are %v, want %v", example, privileged, want)
		}
	}
}

// Monitors are made where the cluster knows them alone.
func TestServiceMonitorNeedsItsKind(t *testing.T) {
	t.Parallel()
	has := func(o object) bool { return o.kind() == "ServiceMonitor" }
	if slices.ContainsFunc(objects(t, "minimal"), has) || !slices.ContainsFunc(objects(t, "minimal", monitors), has) {
		t.Error("a ServiceMonitor without its kind, or none with it")
	}
}

// serviceMonitor is its kind, as far as the API server has to know it. The real one would
// be a module of its own.
const serviceMonitor = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: servicemonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  names: {kind: ServiceMonitor, plural: servicemonitors, singular: servicemonitor, listKind: ServiceMonitorList}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
`

// TestAPIServer has a real API server judge every object of every example, in server-side
// dry runs that refuse fields that it does not know, and then make them.
func TestAPIServer(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a control plane: see make test-chart")
	}
	cluster := kubetest.New(t)
	kubectl := func(stdin string, args ...string) (string, error) {
		cmd := cluster.Kubectl(t.Context(), args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(stdin string, args ...string) {
		t.Helper()
		if out, err := kubectl(stdin, args...); err != nil {
			t.Fatalf("kubectl %v: %v: %s", args, err, out)
		}
	}
	must(serviceMonitor, "apply", "-f", "-")
	must("", "wait", "--for=condition=Established", "--timeout=60s", "crd/servicemonitors.monitoring.coreos.com")
	for _, ns := range []string{namespace, "s0-pools", "sandbox-pools", "agents"} {
		must("", "create", "namespace", ns)
	}
	for _, example := range examples {
		for _, o := range objects(t, example, monitors) {
			text := manifest(t, o)
			for _, how := range [][]string{{"--dry-run=server"}, nil} {
				args := append(applying(o, "--force-conflicts", "--validate=strict"), how...)
				if out, err := kubectl(text, args...); err != nil || strings.Contains(out, "Warning") {
					t.Errorf("%s: %s %s %v: %v: %s", example, o.kind(), o.name(), how, err, out)
				}
			}
		}
	}
}

// applying are kubectl's arguments for an object, in the release's namespace unless it
// names another.
func applying(o object, more ...string) []string {
	args := append([]string{"apply", "--server-side", "-f", "-"}, more...)
	if at(o, "metadata", "namespace") == nil {
		args = append(args, "-n", namespace)
	}
	return args
}

func manifest(t *testing.T, o object) string {
	t.Helper()
	b, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
