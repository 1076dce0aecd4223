package noded

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"s0.run/internal/sandbox"
)

// runcAnswers bounds the question which version a runc is.
const runcAnswers = 10 * time.Second

// runtimeClasses are the classes that the node offers: gVisor always, kata where the
// machine can have virtual machines and the shim that makes them, runc where its
// operator allows it.
func runtimeClasses(ctx context.Context, cfg Config) ([]string, error) {
	classes := []string{string(sandbox.GVisor)}
	if !cfg.Simulate {
		if err := checkKata(cfg.ContainerdSocket, kvmDevice); err != nil {
			cfg.Log.Info("runtime class kata is not offered", "reason", err)
		} else {
			classes = append(classes, string(sandbox.Kata))
		}
	}
	if !cfg.AllowRunc {
		return classes, nil
	}
	if !cfg.Simulate && !cfg.AllowOldRunc {
		if err := checkRunc(ctx); err != nil {
			return nil, fmt.Errorf("runtime class runc: %w", err)
		}
	}
	return append(classes, string(sandbox.Runc)), nil
}

// checkRunc refuses a runc that is missing, or that lets what runs in it write to
// the host through /proc and consoles (C04).
func checkRunc(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, runcAnswers)
	defer cancel()
	out, err := exec.CommandContext(ctx, "runc", "--version").Output()
	if err != nil {
		return fmt.Errorf("asking runc for its version: %w; install runc, or leave out --allow-runc", err)
	}
	return checkRuncVersion(string(out))
}

// runcFloors are the first releases without CVE-2025-31133, CVE-2025-52565 and
// CVE-2025-52881, one for each line; later lines never had them.
var runcFloors = [][3]int{{1, 2, 8}, {1, 3, 3}}

var errOldRunc = errors.New("want 1.2.8, 1.3.3, 1.4.0 or newer: older ones let sandboxes out (CVE-2025-31133); update runc, leave out --allow-runc, or add --allow-old-runc for development")

// checkRuncVersion reads the answer of runc --version.
func checkRuncVersion(answer string) error {
	first, _, _ := strings.Cut(answer, "\n")
	text, ok := strings.CutPrefix(first, "runc version ")
	if !ok {
		return fmt.Errorf("its version can't be read: %.80q", first)
	}
	version, err := parseVersion(text)
	if err != nil {
		return fmt.Errorf("its version %.40q can't be read: %w", text, err)
	}
	for _, floor := range runcFloors {
		if version[0] == floor[0] && version[1] == floor[1] && version[2] >= floor[2] {
			return nil
		}
	}
	newest := runcFloors[len(runcFloors)-1]
	if version[0] > newest[0] || version[0] == newest[0] && version[1] > newest[1] {
		return nil
	}
	return fmt.Errorf("version %.40s: %w", text, errOldRunc)
}

// parseVersion reads major, minor and patch, and no further.
func parseVersion(s string) (v [3]int, err error) {
	parts := strings.SplitN(s, ".", len(v))
	if len(parts) != len(v) {
		return v, errors.New("want three numbers")
	}
	for i, part := range parts {
		digits := len(part) - len(strings.TrimLeft(part, "0123456789"))
		if v[i], err = strconv.Atoi(part[:digits]); err != nil {
			return v, err
		}
	}
	return v, nil
}
