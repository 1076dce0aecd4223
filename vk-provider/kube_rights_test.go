package vkprovider_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// rights are what the chart gives to whom: these tests run with nothing more.
var rights = []struct{ file, user, namespace string }{
	{"api-rules", apiUser, namespace},
	{"vk-rules", vkUser, ""},
	{"vk-lease-rules", vkUser, "kube-node-lease"},
	{"vk-input-rules", vkUser, "default"},
}

const (
	apiUser = "system:serviceaccount:s0-system:s0-api"
	vkUser  = "system:serviceaccount:s0-system:s0-node"
)

// grant gives everybody his rights.
func (s *stack) grant(t testing.TB) {
	t.Helper()
	for _, r := range rights {
		rules := chartRules(t, r.file)
		meta := metav1.ObjectMeta{Name: r.file, Namespace: r.namespace}
		subjects := []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: r.user}}
		rbac := s.kube.RbacV1()
		var err, berr error
		if r.namespace == "" {
			_, err = rbac.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
			_, berr = rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: r.file}}, metav1.CreateOptions{})
		} else {
			_, err = rbac.Roles(r.namespace).Create(t.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
			_, berr = rbac.RoleBindings(r.namespace).Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: r.file}}, metav1.CreateOptions{})
		}
		if err != nil || berr != nil {
			t.Fatalf("%s: %v, %v", r.file, err, berr)
		}
	}
}

func chartRules(t testing.TB, name string) (rules []rbacv1.PolicyRule) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "charts", "s0", "files", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.ToJSON(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &rules); err != nil || len(rules) == 0 {
		t.Fatalf("%s: %d rules, %v", name, len(rules), err)
	}
	return rules
}

// as is a kubeconfig of one who has the chart's rights.
func (s *stack) as(user string) string {
	s.t.Helper()
	path, err := s.cluster.Kubeconfig(user, "system:serviceaccounts", "system:serviceaccounts:s0-system", "system:authenticated")
	if err != nil {
		s.t.Fatal(err)
	}
	return path
}

// What the chart gives is enough for everything above, and no more than it names.
func (s *stack) testRights(t *testing.T) {
	for _, question := range []struct {
		user, verb, resource, in string
		want                     bool
	}{
		{vkUser, "get", "secrets", "default", true},
		{vkUser, "list", "secrets", "default", false},
		{vkUser, "get", "secrets", "kube-system", false},
		{vkUser, "create", "pods", namespace, false},
		{vkUser, "create", "pods/exec", "default", false},
		{vkUser, "delete", "nodes", "", false},
		{vkUser, "update", "nodes", "", false},
		{vkUser, "create", "serviceaccounts/token", "default", false},
		{apiUser, "patch", "replicasets.apps", namespace, true},
		{apiUser, "patch", "replicasets.apps", "default", false},
		{apiUser, "get", "secrets", namespace, false},
		{apiUser, "create", "pods", namespace, false},
	} {
		args := []string{"auth", "can-i", question.verb, question.resource, "--as=" + question.user}
		if question.in != "" {
			args = append(args, "-n", question.in)
		}
		out, _ := s.tryKubectl(nil, args...)
		if got := strings.HasPrefix(strings.TrimSpace(out), "yes"); got != question.want {
			t.Errorf("%s may %s %s in %q: %v: %s", question.user, question.verb, question.resource, question.in, got, out)
		}
	}
}
