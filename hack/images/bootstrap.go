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
	"syscall"
	"time"
)

// stopGrace is how long debootstrap may clean up when it is told to stop.
const stopGrace = 10 * time.Second

// A suite is where packages come from: the machine's own distribution, through
// the mirror that the machine itself uses.
type suite struct {
	Mirror     string // "": debootstrap's own default
	Codename   string
	Components string // separated by commas
	Proxy      string
}

// hostSuite asks apt, so that a machine with a private mirror needs no setting of ours.
func hostSuite(ctx context.Context) (suite, error) {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return suite{}, err
	}
	release := string(b)
	codename := osRelease(release, "VERSION_CODENAME")
	if codename == "" {
		return suite{}, errors.New("/etc/os-release names no VERSION_CODENAME: want Debian 12+ or Ubuntu 22.04+")
	}
	mirror, err := hostMirror(ctx, codename)
	if err != nil {
		return suite{}, err
	}
	proxy, err := output(ctx, "apt-config", "shell", "P", "Acquire::http::Proxy")
	if err != nil {
		return suite{}, fmt.Errorf("asking apt for its proxy: %w", err)
	}
	return suite{Mirror: mirror, Codename: codename, Components: components(release), Proxy: shellValue(proxy)}, nil
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
// "uri codename component". Of one that only apt can use, such as a list of
// mirrors, debootstrap's default is the best substitute.
func mirrorFor(targets, codename string) (mirror string, ok bool) {
	for line := range strings.Lines(targets) {
		f := strings.Fields(line)
		if len(f) != 3 || f[1] != codename || f[2] != "main" {
			continue
		}
		ok = true
		if scheme, _, _ := strings.Cut(f[0], ":"); scheme == "http" || scheme == "https" || scheme == "file" {
			return f[0], true
		}
	}
	return "", ok
}

// components are where the recipe's packages are: Ubuntu keeps some of them in
// universe.
func components(release string) string {
	if osRelease(release, "ID") == "ubuntu" {
		return "main,universe"
	}
	return "main"
}

// shellValue takes the value out of apt-config's P='value'.
func shellValue(s string) string {
	_, v, _ := strings.Cut(strings.TrimSpace(s), "=")
	return strings.Trim(v, "'")
}

// osRelease reads one value of an os-release file; "" when it is not there.
func osRelease(content, key string) string {
	for line := range strings.Lines(content) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}

// bootstrap installs the recipe's packages into rootfs. debootstrap's output
// goes to a log that is shown when it fails; progress is one line for each phase.
func bootstrap(ctx context.Context, r recipe, s suite, rootfs string) error {
	if _, err := exec.LookPath("debootstrap"); err != nil {
		return errors.New("debootstrap is missing: apt-get install debootstrap")
	}
	args := []string{"--variant=minbase", "--merged-usr", "--components=" + s.Components,
		"--include=" + strings.Join(r.Packages, ","), s.Codename, rootfs}
	if s.Mirror != "" {
		args = append(args, s.Mirror)
	}
	cmd := exec.CommandContext(ctx, "debootstrap", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it unmounts what it has mounted
	cmd.WaitDelay = stopGrace
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
