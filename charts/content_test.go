package charts

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"s0.run/internal/s0test/kubetest"
)

// selects reports whether all labels that are asked for are there.
func selects(want, have any) bool {
	labels, _ := want.(map[string]any)
	for k, v := range labels {
		if at(have, k) != v {
			return false
		}
	}
	return len(labels) > 0
}

// What selects pods selects some that the chart makes, and ports that are named are theirs:
// a policy, a budget or a service of nothing would look well and do nothing.
func TestSelectorsSelectSomething(t *testing.T) {
	t.Parallel()
	for _, example := range examples {
		all := objects(t, example, monitors)
		kinds := map[string]int{}
		for _, o := range all {
			selector, ports := selection(o)
			if kinds[o.kind()]++; selector == nil {
				continue
			}
			var pods []object
			for _, of := range all {
				if selects(selector, at(of, "spec", "template", "metadata", "labels")) {
					pods = append(pods, of)
				}
			}
			if len(pods) != 1 {
				t.Errorf("%s: %s %s selects %d sets of pods", example, o.kind(), o.name(), len(pods))
				continue
			}
			for _, port := range ports {
				if !slices.ContainsFunc(containers(pods[0]), func(c map[string]any) bool {
					return slices.ContainsFunc(list(c["ports"]), func(p any) bool { return at(p, "name") == port })
				}) {
					t.Errorf("%s: %s %s names port %v, which %s has not", example, o.kind(), o.name(), port, pods[0].name())
				}
			}
		}
		for _, kind := range []string{"NetworkPolicy", "RuntimeClass", "ServiceMonitor", "Service", "Deployment", "DaemonSet"} {
			if kinds[kind] == 0 {
				t.Errorf("%s: there is no %s", example, kind)
			}
		}
		if many := at(values(t, example), "api", "replicas") != 1.0; many != (kinds["PodDisruptionBudget"] == 1) {
			t.Errorf("%s: %d budgets", example, kinds["PodDisruptionBudget"])
		}
	}
}

// selection is what an object selects pods by, and the ports of theirs that it names.
func selection(o object) (labels any, ports []any) {
	switch o.kind() {
	case "Service":
		labels = at(o, "spec", "selector")
		for _, p := range list(at(o, "spec", "ports")) {
			ports = append(ports, at(p, "targetPort"))
		}
	case "PodDisruptionBudget":
		labels = at(o, "spec", "selector", "matchLabels")
	case "NetworkPolicy":
		labels = at(o, "spec", "podSelector", "matchLabels")
		for _, rule := range list(at(o, "spec", "ingress")) {
			for _, p := range list(at(rule, "ports")) {
				ports = append(ports, at(p, "port"))
			}
		}
	}
	return labels, ports
}

// A monitor scrapes a service that there is, at a port of its.
func TestServiceMonitorFindsItsService(t *testing.T) {
	t.Parallel()
	for _, example := range examples {
		all := objects(t, example, monitors)
		for _, m := range all {
			if m.kind() != "ServiceMonitor" {
				continue
			}
			found := 0
			for _, o := range all {
				if o.kind() != "Service" || !selects(at(m, "spec", "selector", "matchLabels"), at(o, "metadata", "labels")) {
					continue
				}
				found++
				for _, e := range list(at(m, "spec", "endpoints")) {
					if !slices.ContainsFunc(list(at(o, "spec", "ports")), func(p any) bool { return at(p, "name") == at(e, "port") }) {
						t.Errorf("%s: %s has no port %v", example, o.name(), at(e, "port"))
					}
				}
			}
			if found != 1 {
				t.Errorf("%s: %s finds %d services", example, m.name(), found)
			}
		}
	}
}

var (
	stages  = regexp.MustCompile(`(?s)\nFROM \S+ AS (\w+)\n(.*?)(?:\nFROM |$)`)
	copied  = regexp.MustCompile(`/src/build/bin/(\S+)`)
	starts  = regexp.MustCompile(`ENTRYPOINT \["([^"]+)"\]`)
	byOther = map[string]string{"setpriv": "util-linux"} // programs of packages
)

// What can be known of the images before they are built, which make test-docker does: each
// that the chart names is a stage, has what its containers start, and takes programs that
// are made.
func TestImagesHaveWhatPodsStart(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("..", "hack", "docker", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	text, images := string(b), map[string]string{}
	for rest := text; ; {
		m := stages.FindStringSubmatchIndex(rest)
		if m == nil {
			break
		}
		images[rest[m[2]:m[3]]] = rest[m[4]:m[5]]
		rest = rest[m[5]:]
	}
	has := func(image, program string) bool {
		of := images[image]
		for _, name := range copied.FindAllStringSubmatch(of, -1) {
			if name[1] == filepath.Base(program) {
				return true
			}
		}
		return byOther[program] != "" && strings.Contains(of, byOther[program])
	}
	for name, of := range images {
		for _, program := range copied.FindAllStringSubmatch(of, -1) {
			kubetest.Binary(t, program[1]) // or the test fails
		}
		if entry := starts.FindStringSubmatch(of); name != "build" && (entry == nil || !has(name, entry[1])) {
			t.Errorf("image %s starts %v, which it has not", name, entry)
		}
	}
	for _, example := range examples {
		for _, o := range objects(t, example) {
			for _, c := range containers(o) {
				if program, _ := commandOf(c); program == "" {
					continue // an image of others
				}
				ref := fmt.Sprint(c["image"])
				image := strings.Split(ref[strings.LastIndexByte(ref, '/')+1:], ":")[0]
				if images[image] == "" {
					t.Errorf("%s: there is no stage for %s", example, ref)
				}
				command := list(c["command"])
				for i, a := range command { // behind setpriv's -- is another
					if program := fmt.Sprint(a); (i == 0 || command[i-1] == "--") && !has(image, program) {
						t.Errorf("%s: image %s has no %s", example, image, program)
					}
				}
			}
		}
	}
}
