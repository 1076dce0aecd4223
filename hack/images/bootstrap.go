package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// A suite is where packages come from: the machine's own distribution, through
// the mirror that the machine itself uses.
type suite struct {
	Mirror   string
	Codename string
	Proxy    string
}

// hostSuite asks apt, so that a machine with a private mirror needs no setting of ours.
func hostSuite(ctx context.Context) (suite, error) {
	codename, err := codenameOf("/etc/os-release")
	if err != nil {
		return suite{}, err
	}
	mirror, err := hostMirror(ctx, codename)
	if err != nil {
		return suite{}, err
	}
	proxy, err := output(ctx, "apt-config", "shell", "P", "Acquire::http::Proxy")
	if err != nil {
		return suite{}, fmt.Errorf("asking apt for its proxy: %w", err)
	}
	return suite{Mirror: mirror, Codename: codename, Proxy: shellValue(proxy)}, nil
}

// hostMirror is where apt gets the release from. A machine that never updated
// its lists does not know yet which source that is.
func hostMirror(ctx context.Context, codename string) (string, error) {
	for _, update := range []bool{false, true} {
		if update {
			fmt.Println("template image: updating apt's lists")
			if _, err := output(ctx, "apt-get", "update", "-q"); err != nil {
				return "", err
			}
		}
		out, err := output(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Identifier: Packages")
		if err != nil {
			return "", fmt.Errorf("asking apt for its mirrors: %w", err)
		}
		if mirror, ok := mirrorFor(out, codename); ok {
			return mirror, nil
		}
	}
	return "", fmt.Errorf("apt has no source for %s main: add one to /etc/apt/sources.list.d", codename)
}

// mirrorFor finds the repository of a release's main component in lines of
// "uri codename component".
func mirrorFor(targets, codename string) (string, bool) {
	for line := range strings.Lines(targets) {
		f := strings.Fields(line)
		if len(f) == 3 && f[1] == codename && f[2] == "main" {
			return f[0], true
		}
	}
	return "", false
}

// shellValue takes the value out of apt-config's P='value'.
func shellValue(s string) string {
	_, v, _ := strings.Cut(strings.TrimSpace(s), "=")
	return strings.Trim(v, "'")
}

func codenameOf(osRelease string) (string, error) {
	b, err := os.ReadFile(osRelease)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(v, `"`), nil
		}
	}
	return "", fmt.Errorf("%s names no VERSION_CODENAME: want Debian 12+ or Ubuntu 22.04+", osRelease)
}

// bootstrap installs the recipe's packages into rootfs. debootstrap's output
// goes to a log that is shown when it fails; progress is one line for each phase.
func bootstrap(ctx context.Context, r recipe, s suite, rootfs string) error {
	if _, err := exec.LookPath("debootstrap"); err != nil {
		return errors.New("debootstrap is missing: apt-get install debootstrap")
	}
	cmd := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--merged-usr",
		"--include="+strings.Join(r.Packages, ","), s.Codename, rootfs, s.Mirror)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	if s.Proxy != "" {
		cmd.Env = append(cmd.Env, "http_proxy="+s.Proxy)
	}
	r1, w1 := io.Pipe()
	cmd.Stdout, cmd.Stderr = w1, w1
	tail := make(chan []string, 1)
	go func() { tail <- follow(r1) }()
	err := cmd.Run()
	w1.Close()
	if last := <-tail; err != nil {
		return fmt.Errorf("debootstrap: %w; its last lines:\n%s", err, strings.Join(last, "\n"))
	}
	return nil
}

var phase = regexp.MustCompile(`^I: (Retrieving InRelease|Resolving dependencies|Retrieving|Extracting|Installing core|Unpacking|Configuring the base|Configuring)\b`)

// follow prints a line whenever debootstrap enters another phase, and returns
// the last lines for an error's sake.
func follow(r io.Reader) []string {
	var last []string
	var shown string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		last = append(last, lines.Text())
		last = last[max(0, len(last)-20):]
		if m := phase.FindStringSubmatch(lines.Text()); m != nil && m[1] != shown {
			shown = m[1]
			fmt.Printf("  %s…\n", strings.ToLower(shown))
		}
	}
	return last
}

// clean removes what only costs space or differs from build to build. What is
// left of /usr/share/doc are the licences.
func clean(rootfs string) error {
	for _, glob := range []string{
		"var/cache/apt/*", "var/cache/ldconfig/*", "var/cache/debconf/*-old", "var/lib/apt/lists/*", "var/lib/dpkg/*-old", "var/log/*.log", "var/log/apt/*",
		"usr/share/man/*", "usr/share/info/*", "usr/share/locale/*", "usr/share/lintian", "etc/hostname", "etc/resolv.conf",
		"etc/passwd-", "etc/shadow-", "etc/group-", "etc/gshadow-", "dev/*", "proc/*", "sys/*", "run/*", "tmp/*",
		// pip may install into the system here: the whole machine is the user's own.
		"usr/lib/python3*/EXTERNALLY-MANAGED",
	} {
		found, err := filepath.Glob(filepath.Join(rootfs, glob))
		if err != nil {
			return err
		}
		for _, f := range found {
			if err := os.RemoveAll(f); err != nil {
				return err
			}
		}
	}
	if err := pruneDocs(filepath.Join(rootfs, "usr/share/doc")); err != nil {
		return err
	}
	return fixFiles(rootfs)
}

func pruneDocs(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "copyright" {
			return err
		}
		return os.Remove(path)
	})
}

var shadowDay = regexp.MustCompile(`(?m)^([^:\n]*:[^:\n]*):\d+:`)

// fixFiles writes the files that must exist with content of ours.
func fixFiles(rootfs string) error {
	shadow := filepath.Join(rootfs, "etc/shadow")
	b, err := os.ReadFile(shadow)
	if err != nil {
		return err
	}
	if err := os.WriteFile(shadow, shadowDay.ReplaceAll(b, []byte("$1:19000:")), 0o640); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"etc/machine-id": "", // filled by whoever boots, never shared
		"etc/hosts":      "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
	} {
		if err := os.WriteFile(filepath.Join(rootfs, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(rootfs, "workspace"), 0o755)
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
