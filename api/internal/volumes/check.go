package volumes

import (
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// MaxMounts bounds the volumes of a sandbox.
const MaxMounts = 16

// maxPoint bounds a mount point, in bytes.
const maxPoint = 1024

// reserved are places of a sandbox that no volume may cover: the kernel's, and procd's own.
var reserved = []string{"/proc", "/sys", "/dev", procapi.Dir, "/var/lib/sandbox0/procd"}

// CheckPoint reports why a volume can't be mounted at a place.
func CheckPoint(point string) error {
	switch {
	case point == "" || len(point) > maxPoint || !utf8.ValidString(point) || strings.ContainsFunc(point, unicode.IsControl):
		return invalidPoint("want a path of at most %d printable bytes", maxPoint)
	case !path.IsAbs(point) || path.Clean(point) != point || strings.Contains(point, "\\"):
		return invalidPoint("want an absolute path without `.`, `..`, `\\`, repeated and trailing slashes")
	case point == "/":
		return invalidPoint("a volume can't be the sandbox's root")
	}
	for _, r := range reserved {
		if below(point, r) {
			return invalidPoint("%s is not for volumes", r)
		}
	}
	if below(procapi.Dir, point) {
		return invalidPoint("%s would cover %s", point, procapi.Dir)
	}
	return nil
}

// CheckPoints reports why volumes can't be mounted at these places together.
func CheckPoints(points []string) error {
	if len(points) > MaxMounts {
		return errdefs.New(errdefs.InvalidArgument, "a sandbox has at most %d mounts", MaxMounts)
	}
	for i, p := range points {
		if err := CheckPoint(p); err != nil {
			return err
		}
		for _, other := range points[:i] {
			switch {
			case p == other:
				return invalidPoint("%s is there twice", p)
			case below(p, other) || below(other, p):
				return invalidPoint("%s and %s overlap", other, p)
			}
		}
	}
	return nil
}

// below reports whether p is dir or lies in it.
func below(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func invalidPoint(format string, args ...any) error {
	return errdefs.New(errdefs.InvalidArgument, "mount_point: "+format, args...)
}

// Bounds of a bucket's description, in bytes.
const maxBucket, maxPrefix, maxEndpoint, maxKey = 63, 512, 512, 4096

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	regionName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
)

// Check completes a bucket that is to be a volume, says what is wrong with it, and answers
// what opens it. Errors never quote that.
func (b *Bucket) Check(accessKey, secretKey, sessionToken string) (Secret, error) {
	if b.Provider == "" {
		b.Provider = "aws"
	}
	switch {
	case b.Provider != "aws" && b.Provider != "ali" && b.Provider != "r2":
		return Secret{}, invalidBucket("provider must be aws, ali or r2")
	case !bucketName.MatchString(b.Bucket):
		return Secret{}, invalidBucket("bucket must be from 3 to %d lower-case letters, digits, dots and hyphens", maxBucket)
	case len(b.Prefix) > maxPrefix || !utf8.ValidString(b.Prefix) || strings.ContainsFunc(b.Prefix, unicode.IsControl) || strings.HasPrefix(b.Prefix, "/") || slices.Contains(strings.Split(b.Prefix, "/"), ".."):
		return Secret{}, invalidBucket("prefix must be at most %d printable bytes, without a slash at its begin and `..`", maxPrefix)
	case b.Region != "" && !regionName.MatchString(b.Region):
		return Secret{}, invalidBucket("region must be at most 64 lower-case letters, digits and hyphens")
	case b.Endpoint == "" && b.Provider != "aws":
		return Secret{}, invalidBucket("endpoint_url is required with provider %s", b.Provider)
	}
	if err := checkEndpoint(b.Endpoint); err != nil {
		return Secret{}, err
	}
	values := map[string]string{"access_key": accessKey, "secret_key": secretKey}
	if sessionToken != "" {
		values["session_token"] = sessionToken
	}
	for name, v := range values {
		if v == "" || len(v) > maxKey || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return Secret{}, invalidBucket("%s must be from 1 to %d printable ASCII characters", name, maxKey)
		}
	}
	return Secret{Values: values}, nil
}

// checkEndpoint wants a plain URL of HTTPS. Which addresses may be dialled is for the node
// to say, when it does.
func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || len(endpoint) > maxEndpoint || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return invalidBucket("endpoint_url must be a URL of scheme https or http and a host")
	}
	return nil
}

func invalidBucket(format string, args ...any) error {
	return errdefs.New(errdefs.InvalidArgument, "s3."+format, args...)
}

// CheckAccessMode reports why an access mode is none.
func CheckAccessMode(mode string) error {
	switch mode {
	case store.ReadWriteOnce, store.ReadOnlyMany, store.ReadWriteMany:
		return nil
	}
	return errdefs.New(errdefs.InvalidArgument, "access_mode must be RWO, ROX or RWX")
}
