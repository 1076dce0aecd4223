package pods

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// expander replaces $(NAME) by a variable's value, as Kubernetes does: $$ is a dollar,
// and what is not known stays as it is.
func expander(env []variable) func(string) string {
	values := asMap(env)
	return func(s string) string {
		var b strings.Builder
		for {
			i := strings.IndexByte(s, '$')
			if i < 0 || i+1 == len(s) {
				return b.String() + s
			}
			b.WriteString(s[:i])
			rest := s[i+1:]
			name, after, closed := strings.Cut(strings.TrimPrefix(rest, "("), ")")
			value, known := values[name]
			switch {
			case rest[0] == '$':
				b.WriteByte('$')
				s = rest[1:]
			case rest[0] == '(' && closed && known:
				b.WriteString(value)
				s = after
			default:
				b.WriteByte('$')
				s = rest
			}
		}
	}
}

// subscript splits metadata.labels['key'].
func subscript(field string) (key, of string, ok bool) {
	of, rest, ok := strings.Cut(field, "['")
	key, found := strings.CutSuffix(rest, "']")
	return key, of, ok && found
}

// lines are a map's entries as files of the downward API have them.
func lines(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%s=%q\n", k, m[k])
	}
	return b.String()
}

// resourceOf reads one of a container's own limits or requests, in units of its divisor.
func resourceOf(c *corev1.Container, ref *corev1.ResourceFieldSelector) (string, error) {
	kind, name, ok := strings.Cut(ref.Resource, ".")
	list := c.Resources.Limits
	if kind == "requests" {
		list = c.Resources.Requests
	}
	q, found := list[corev1.ResourceName(name)]
	if !ok || !found || ref.ContainerName != "" && ref.ContainerName != c.Name {
		return "", fmt.Errorf("container %s has no %s", c.Name, ref.Resource)
	}
	divisor := ref.Divisor.MilliValue()
	if divisor == 0 {
		divisor = 1000
	}
	return strconv.FormatInt((q.MilliValue()+divisor-1)/divisor, 10), nil
}
