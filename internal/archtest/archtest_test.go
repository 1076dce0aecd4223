package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const module = "s0.run"

// A rule says what the packages below `in` may import. Paths without a dot in
// their first element are the standard library's and always allowed unless
// denied. Entries match themselves and everything below them.
type rule struct {
	in    string   // a folder of the module; the longest that matches a package rules it
	own   []string // our packages beside those below the folder's first element
	third []string // third parties
	deny  []string // forbidden even so, with everything below
}

var leaves = []string{"internal/sandbox", "internal/policy", "internal/errdefs", "internal/daemon", "internal/failpoint", "internal/publicnet", "internal/sealed", "internal/warm"}

// rules is the import table of the design. A component's internal packages obey
// their component's rule unless a longer one is listed.
var rules = []rule{
	// Shared leaves.
	{in: "internal/warm"},
	{in: "internal/sandbox", own: []string{"internal/warm"}},
	{in: "internal/policy"},
	{in: "internal/sealed"},
	{in: "internal/publicnet"},
	{in: "internal/errdefs"},
	{in: "internal/imageref"},
	{in: "internal/regauth"},
	{in: "internal/procapi/answer", own: []string{"internal/errdefs"}},
	{in: "internal/files", own: []string{"internal/errdefs", "internal/procapi"}, third: []string{"golang.org/x/sys"}},
	{in: "internal/procapi", own: []string{"internal/warm"}},
	{in: "internal/shimapi"},
	{in: "internal/vsock", third: []string{"golang.org/x/sys"}},
	{in: "internal/failpoint"},
	{in: "internal/nodeapi", own: []string{"internal/sandbox", "internal/sealed", "internal/warm"}, third: []string{"connectrpc.com/connect", "google.golang.org/protobuf"}},
	{in: "internal/netdapi", own: []string{"internal/sandbox", "internal/errdefs", "internal/sealed"}},
	{in: "internal/volumeapi", own: []string{"internal/errdefs"}},
	{in: "internal/nodecert", third: []string{"github.com/google/uuid"}},
	{in: "internal/daemon", third: []string{"github.com/spf13/pflag", "go.yaml.in/yaml/v3"}},
	{in: "internal/archtest"},

	// Components.
	{in: "api", own: append(leaves, "internal/imageref", "internal/nodeapi", "internal/nodecert", "internal/procapi", "internal/regauth"), third: []string{
		"connectrpc.com/connect", "github.com/coreos/go-oidc/v3", "github.com/golang-jwt/jwt/v5", "github.com/google/uuid", "github.com/gorilla/websocket",
		"github.com/jackc/pgx/v5", "github.com/oapi-codegen/runtime", "github.com/prometheus/client_golang",
		"golang.org/x/crypto", "golang.org/x/oauth2", "golang.org/x/sync", "golang.org/x/time", "google.golang.org/protobuf",
	}},
	{in: "api/internal/capture", own: append(leaves, "internal/imageref", "internal/nodeapi"), third: []string{"github.com/google/go-containerregistry", "github.com/google/uuid"}},
	{in: "api/internal/volumesync", own: append(leaves, "internal/nodeapi", "internal/procapi"), third: []string{"github.com/google/uuid", "golang.org/x/text"}},
	{in: "api/internal/replicasets", own: append(leaves, "internal/nodeapi"), third: []string{"go.yaml.in/yaml/v3"}},
	{in: "api/internal/apidoc", third: []string{"go.yaml.in/yaml/v3"}},
	{in: "api/client", third: []string{"github.com/gorilla/websocket", "github.com/oapi-codegen/runtime"}},
	{in: "noded", own: append(leaves, "internal/imageref", "internal/netdapi", "internal/nodeapi", "internal/nodecert", "internal/procapi", "internal/volumeapi", "internal/vsock"), third: []string{
		"connectrpc.com/connect", "github.com/prometheus/client_golang", "golang.org/x/sync", "golang.org/x/sys",
		"github.com/vishvananda/netlink", "google.golang.org/protobuf",
	}},
	{in: "noded/internal/runtime", own: append(leaves, "internal/procapi", "internal/shimapi"), third: containerd},
	{in: "noded/internal/images", own: append(leaves, "internal/imageref", "internal/nodeapi"), third: append(containerd, "github.com/containerd/continuity", "github.com/klauspost/compress")},
	{in: "noded/internal/objects", third: []string{"github.com/minio/minio-go/v7"}},
	{in: "noded/internal/archive", own: leaves, third: []string{"github.com/klauspost/compress", "github.com/prometheus/client_golang", "golang.org/x/sync", "golang.org/x/sys", "golang.org/x/time"}},
	{in: "noded/internal/journal", own: leaves, third: []string{"go.etcd.io/bbolt"}},
	{in: "netd", own: append(leaves, "internal/netdapi"), third: []string{"golang.org/x/sys"}},
	{in: "netd/internal/bpf", own: leaves, third: []string{"github.com/cilium/ebpf", "golang.org/x/sys"}},
	{in: "netd/internal/dial", own: leaves, third: []string{"golang.org/x/net/proxy", "golang.org/x/sys"}},
	{in: "netd/internal/dnsproxy", own: leaves, third: []string{"github.com/miekg/dns", "golang.org/x/time"}},
	{in: "netd/internal/inject", own: append(leaves, "internal/sealed"), third: []string{"golang.org/x/net/http/httpguts"}},
	{in: "netd/internal/proxy", own: leaves, third: []string{"golang.org/x/sync"}},
	{in: "netd/internal/sshproxy", own: leaves, third: []string{"golang.org/x/crypto/ssh"}},
	{in: "netd/internal/sniff", third: []string{"golang.org/x/crypto/cryptobyte"}},
	{in: "netd/internal/dataplane", own: append(leaves, "internal/netdapi"), third: []string{"github.com/google/nftables", "github.com/vishvananda/netlink", "github.com/vishvananda/netns", "golang.org/x/sys"}},
	{in: "volumed", own: append(leaves, "internal/files", "internal/procapi", "internal/volumeapi"), third: []string{"golang.org/x/sys"}},
	{in: "volumed/internal/s3", third: []string{"github.com/minio/minio-go/v7/pkg/signer", "github.com/minio/minio-go/v7/pkg/s3utils"}},
	{in: "volumed/internal/bucketfs", third: []string{"github.com/hanwen/go-fuse/v2"}},
	{in: "registry", own: []string{"internal/daemon", "internal/errdefs", "internal/imageref", "internal/regauth"}},
	{in: "registry/internal/store", third: []string{"go.etcd.io/bbolt"}},
	{in: "procd", own: []string{"internal/procapi", "internal/errdefs", "internal/files", "internal/vsock", "internal/warm"}, third: []string{"golang.org/x/sys"}},
	{in: "shim", own: []string{"internal/errdefs", "internal/shimapi"}, third: append(containerd, "github.com/containerd/ttrpc", "github.com/containerd/console", "github.com/containerd/plugin")},

	// Mains, and the one-machine server that assembles the components.
	{in: "cmd/s0/internal/sync", own: []string{"api/client"}, third: []string{"github.com/fsnotify/fsnotify", "github.com/google/uuid", "golang.org/x/sys", "golang.org/x/text", "modernc.org/sqlite"}},
	{in: "cmd/s0", own: []string{"api/client"}, third: []string{"github.com/google/go-containerregistry", "github.com/spf13", "go.yaml.in/yaml/v3", "golang.org/x"}},
	{in: "cmd/s0d", own: append(leaves, "internal/netdapi", "internal/imageref", "internal/nodeapi", "internal/regauth", "api", "netd", "noded", "registry", "volumed", "internal/volumeapi", "internal/shimapi"), third: []string{
		"github.com/spf13", "golang.org/x/sync", "golang.org/x/sys", "github.com/jackc/pgx/v5",
	}, deny: []string{module + "/api/internal", module + "/netd/internal", module + "/noded/internal", module + "/registry/internal", module + "/volumed/internal"}},
	{in: "cmd/procd", own: []string{"procd", "internal/procapi"}},
	{in: "cmd/containerd-shim-s0-v1", own: []string{"shim"}, third: []string{"github.com/containerd/containerd/v2/pkg/shim"}},
	{in: "hack/kube", own: []string{"internal/s0test/kubetest"}},
	{in: "hack", own: []string{"api/client"}, third: []string{"github.com/google/go-containerregistry", "golang.org/x/sys"}},
}

var containerd = []string{
	"github.com/containerd/containerd/v2", "github.com/containerd/containerd/api", "github.com/containerd/cgroups/v3",
	"github.com/containerd/errdefs", "github.com/containerd/typeurl/v2", "github.com/containerd/platforms",
	"github.com/opencontainers", "golang.org/x/sync", "golang.org/x/sys", "google.golang.org/protobuf",
}

// Test harnesses import what they test.
var unruled = []string{"internal/s0test", "test"}

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

var list = sync.OnceValues(func() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", "./...")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
})

func packages(t *testing.T) []pkg {
	t.Helper()
	all, err := list()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	if len(all) < 10 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

// below reports whether path is root or lies below it.
func below(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}

func anyBelow(path string, roots []string) bool {
	for _, r := range roots {
		if below(path, r) {
			return true
		}
	}
	return false
}

func ruleOf(folder string) *rule {
	var best *rule
	for i := range rules {
		if r := &rules[i]; below(folder, r.in) && (best == nil || len(r.in) > len(best.in)) {
			best = r
		}
	}
	return best
}

// component is what a package's own imports may stay within without a rule:
// `api` for api/internal/store, `cmd/s0` for cmd/s0/internal/x.
func component(folder string) string {
	parts := strings.Split(folder, "/")
	n := 1
	if parts[0] == "cmd" || parts[0] == "internal" || parts[0] == "hack" {
		n = 2
	}
	return strings.Join(parts[:min(n, len(parts))], "/")
}

func (r *rule) allows(folder, imp string) bool {
	if anyBelow(imp, r.deny) {
		return false
	}
	if own, ok := strings.CutPrefix(imp, module+"/"); ok {
		return below(own, component(folder)) || anyBelow(own, r.own)
	}
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".") || anyBelow(imp, r.third)
}

func TestImportTable(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		folder := strings.TrimPrefix(p.ImportPath, module+"/")
		if anyBelow(folder, unruled) {
			continue
		}
		r := ruleOf(folder)
		if r == nil {
			t.Errorf("%s has no rule: add one to the table", folder)
			continue
		}
		for _, imp := range p.Imports {
			if !r.allows(folder, imp) {
				t.Errorf("%s must not import %s (rule %s)", folder, imp, r.in)
			}
		}
	}
}

// The rules themselves must bite: each of these imports is forbidden.
func TestImportTableRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ folder, imp string }{
		{"api/internal/store", module + "/noded"},
		{"api", "github.com/containerd/containerd/v2/client"},
		{"noded/internal/lifecycle", "github.com/containerd/containerd/v2/client"},
		{"noded/internal/slots", "go.etcd.io/bbolt"},
		{"noded", module + "/api/client"},
		{"noded/internal/server", "github.com/jackc/pgx/v5"},
		{"procd/internal/rpc", "github.com/prometheus/client_golang/prometheus"},
		{"procd", module + "/internal/daemon"},
		{"shim", module + "/internal/nodeapi"},
		{"internal/sandbox", "golang.org/x/sys/unix"},
		{"cmd/s0", module + "/api/internal/store"},
		{"cmd/s0d", module + "/noded/internal/journal"},
	} {
		if ruleOf(c.folder).allows(c.folder, c.imp) {
			t.Errorf("%s may import %s", c.folder, c.imp)
		}
	}
}

func TestPackageDocs(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		documented := len(p.GoFiles) == 0 // tests alone
		for _, f := range p.GoFiles {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			documented = documented || parsed.Doc != nil && len(strings.Fields(parsed.Doc.Text())) > 5
		}
		if !documented {
			t.Errorf("%s has no package comment that says what it is for", p.ImportPath)
		}
	}
}

func TestNoReplaceInTheRootModule(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("go", "mod", "edit", "-json")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct{ Replace []any }
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	if len(mod.Replace) > 0 {
		t.Errorf("go.mod replaces %v", mod.Replace)
	}
}

// maxLines is where a file stops being one thing.
const maxLines = 800

func TestFilesStayReadable(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, f := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			generated := bytes.Contains(b[:min(len(b), 600)], []byte("DO NOT EDIT"))
			if n := bytes.Count(b, []byte("\n")); n > maxLines && !generated {
				t.Errorf("%s/%s has %d lines, the limit is %d", p.ImportPath, f, n, maxLines)
			}
		}
	}
}
