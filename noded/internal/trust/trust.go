// Package trust is what sandboxes are told to believe: files in a slot's directory, which
// the sandbox sees, and can't write, at procapi.Dir.
//
// Every slot has a bundle of the certificate authorities that the node itself believes,
// from its beginning: where a policy has TLS opened it becomes one that has the
// sandbox's own authority, too, and what was told of the path while there was such a
// policy goes on working after. A file appears whole. The package owns these files, which
// only a sandbox's end removes, and no policy: who has to believe whom it is told.
package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"s0.run/internal/policy"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

// systemBundles are where distributions keep theirs, as crypto/x509 looks for them.
var systemBundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

const (
	rootsFile  = "roots.pem"
	unfinished = ".trust-" // begins the names of files that are being written
	// mode lets every user inside read what his programs are told to.
	mode = 0o444
	// maxRoots bounds what is read for a bundle.
	maxRoots = 4 << 20
)

// Dir is the directory that holds one for each slot, under its id. What they share is in
// another beside it.
type Dir string

func (d Dir) shared() string { return filepath.Join(filepath.Dir(string(d)), "trust") }

// Identity is who answers a sandbox in others' places.
type Identity struct {
	Certificate string // PEM
	HostKey     string // of SSH, a line as in authorized_keys; empty: nobody does
}

// Prepare takes over what the node believes now, for slots that begin from then on, and
// clears up what an earlier noded left half written.
func (d Dir) Prepare() error {
	left, err := filepath.Glob(filepath.Join(d.shared(), unfinished+"*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return d.refresh()
}

func (d Dir) refresh() error {
	roots, err := systemRoots()
	if err != nil {
		return fmt.Errorf("reading the machine's certificate authorities: %w", err)
	}
	if err := os.MkdirAll(d.shared(), 0o700); err != nil {
		return err
	}
	return d.write(filepath.Join(d.shared(), rootsFile), roots)
}

// systemRoots is empty for a machine that believes nobody: its sandboxes' bundles have
// their own authority alone.
func systemRoots() ([]byte, error) {
	paths := systemBundles
	if named := os.Getenv("SSL_CERT_FILE"); named != "" {
		paths = []string{named}
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, err
		case !info.Mode().IsRegular() || info.Size() > maxRoots:
			return nil, fmt.Errorf("%s is no file of at most %d bytes", path, maxRoots)
		}
		return os.ReadFile(path)
	}
	return nil, nil
}

// Begin gives a slot, whose directory is there, the node's bundle: a file of its own, for one
// that slots shared would tell each, by the number of its names and the time of its last
// change, when others begin and end.
func (d Dir) Begin(id sandbox.ID) error {
	roots, err := os.ReadFile(filepath.Join(d.shared(), rootsFile))
	if errors.Is(err, fs.ErrNotExist) { // there is none yet
		if err = d.refresh(); err == nil {
			roots, err = os.ReadFile(filepath.Join(d.shared(), rootsFile))
		}
	}
	if err != nil {
		return err
	}
	return d.write(d.in(id, procapi.CABundle), roots)
}

// Believe has a sandbox believe who answers it. A sandbox whose directory is gone, or not
// there yet, has nobody to believe anything.
func (d Dir) Believe(id sandbox.ID, who Identity, ssh []policy.Server) error {
	roots, err := os.ReadFile(filepath.Join(d.shared(), rootsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Its own comes first: what looks for an issuer then has the short way.
	err = d.write(d.in(id, procapi.CABundle), append([]byte(who.Certificate), roots...))
	if hosts := knownHosts(who.HostKey, ssh); err == nil && hosts != "" {
		err = d.write(d.in(id, procapi.KnownHosts), []byte(hosts))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// knownHosts has the key for where it answers. Elsewhere ssh goes on as without it.
func knownHosts(key string, servers []policy.Server) string {
	var out strings.Builder
	for _, s := range servers {
		if key != "" {
			fmt.Fprintf(&out, "%s %s\n", strings.Join(patterns(s), ","), strings.TrimSpace(key))
		}
	}
	return out.String()
}

// patterns are a server's as ssh has them: a port but 22 makes a host's name [name]:port.
func patterns(s policy.Server) (all []string) {
	names := []string{"*"}
	if len(s.Domains) > 0 {
		names = nil
	}
	for _, domain := range s.Domains {
		domain = strings.ToLower(strings.TrimSuffix(domain, "."))
		names = append(names, domain)
		if apex, wild := strings.CutPrefix(domain, "*."); wild {
			names = append(names, apex)
		}
	}
	for _, name := range names {
		if len(s.Ports) == 0 {
			all = append(all, name, "["+name+"]:*")
		}
		for _, p := range s.Ports {
			switch {
			case p.EndPort > p.Port:
				all = append(all, name, "["+name+"]:*")
			case p.Port == 22:
				all = append(all, name)
			default:
				all = append(all, fmt.Sprintf("[%s]:%d", name, p.Port))
			}
		}
	}
	return all
}

// Paths are all that a slot's directory may have of this package.
func (d Dir) Paths(id sandbox.ID) []string {
	return []string{d.in(id, procapi.CABundle), d.in(id, procapi.KnownHosts)}
}

// in is a file inside the sandbox as the host sees it.
func (d Dir) in(id sandbox.ID, path string) string {
	return filepath.Join(string(d), string(id), filepath.Base(path))
}

// write makes a file appear whole. What is half written lies beside the slots, where
// no sandbox sees it.
func (d Dir) write(path string, data []byte) (err error) {
	f, err := os.CreateTemp(d.shared(), unfinished)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Environment names the files for the programs that a sandbox's owner runs. What he
// names himself is another's.
func Environment(p *policy.Policy) map[string]string {
	env := map[string]string{}
	if p.Intercepts() {
		for _, name := range bundleVariables {
			env[name] = procapi.CABundle
		}
	}
	if len(p.AnswersSSH()) > 0 {
		env["GIT_SSH_COMMAND"] = `ssh -o "GlobalKnownHostsFile=` + procapi.KnownHosts + ` /etc/ssh/ssh_known_hosts"`
	}
	return env
}

// bundleVariables are what programs look for a bundle's path in: the contract's, and those
// of package managers and runtimes that heed none of them.
var bundleVariables = []string{
	"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE",
	"PIP_CERT", "DENO_CERT", "CARGO_HTTP_CAINFO", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
}
