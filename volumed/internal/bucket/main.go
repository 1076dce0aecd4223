package bucket

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/volumed/internal/bucketfs"
	"s0.run/volumed/internal/cage"
	"s0.run/volumed/internal/s3"
)

const (
	// maxTold bounds what is said when a process begins.
	maxTold = 128 << 10
	// lookTimeout is of the look into the bucket; it is less than startTimeout.
	lookTimeout = 20 * time.Second
	gcPercent   = 50 // keeps a process small that holds little
	// maxData is what a process may come to have, whatever it is told of a bucket: several
	// times what it needs, for what was in use once is counted.
	maxData = 256 << 20
)

// Main is what a process does. It returns its exit code when its mount is gone.
func Main(args []string) int {
	signal.Ignore(unix.SIGPIPE) // who reads its log may go before
	logger := slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("daemon", "volume-bucket")
	if err := run(args, logger); err != nil {
		logger.Error("ended", "error", err)
		return 1
	}
	return 0
}

func run(args []string, logger *slog.Logger) error {
	if len(args) != 0 {
		return errors.New("volumed starts this by itself")
	}
	if err := boundMemory(maxData); err != nil {
		return err
	}
	debug.SetGCPercent(gcPercent)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	roots, err := x509.SystemCertPool() // they are out of reach in a moment
	if err != nil {
		logger.Warn("no certificate authorities are known", "error", err)
		roots = x509.NewCertPool()
	}
	if err := cage.Enter(jailFD); err != nil {
		return err
	}
	control := os.NewFile(controlFD, "control")
	defer control.Close()
	var told settings
	if err := json.NewDecoder(io.LimitReader(control, maxTold)).Decode(&told); err != nil {
		return errors.New("volumed has not said what to do") // the error may quote it
	}
	server, err := begin(told, roots, logger.With("volume", told.Volume))
	said := outcome{}
	if err != nil {
		said.Failed, said.Lasting = explain(err)
		logger.Warn("a bucket can't be opened", "volume", told.Volume, "error", err)
	}
	if err := errors.Join(json.NewEncoder(control).Encode(said), control.Close()); err != nil || server == nil {
		return err
	}
	server.Serve()
	return nil
}

// boundMemory has this process end when it wants so much more memory than it has.
func boundMemory(more uint64) error {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return err
	}
	var pages [6]uint64 // the last are its data; space that is only reserved is none
	for i, n := range strings.Fields(string(b))[:len(pages)] {
		if pages[i], err = strconv.ParseUint(n, 10, 64); err != nil {
			return err
		}
	}
	most := pages[5]*uint64(os.Getpagesize()) + more
	return unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: most, Max: most})
}

// begin looks into the bucket, and takes up the mount.
func begin(told settings, roots *x509.CertPool, logger *slog.Logger) (*bucketfs.Server, error) {
	client, err := s3.New(s3.Config{
		Bucket: told.Bucket, Credential: s3.NewCredential(told.AccessKey, told.SecretKey, told.SessionToken), Roots: roots,
		Dial: func(ctx context.Context) (net.Conn, error) { return ask(ctx, "/"+socketName) },
	})
	if err != nil {
		return nil, err
	}
	prefix := told.Bucket.Prefix
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	if _, err := client.List(ctx, prefix, "", 1); err != nil {
		return nil, err
	}
	return bucketfs.New(bucketfs.Config{
		Store: client, Prefix: prefix, UID: told.UID, GID: told.GID, Log: logger,
	}, os.NewFile(deviceFD, "fuse"))
}

// explain says to a tenant why his bucket can't be opened.
func explain(err error) (why string, lasting bool) {
	for known, why := range map[error]string{
		s3.ErrDenied:   "access to the bucket is denied",
		s3.ErrNoBucket: "there is no such bucket",
		s3.ErrNotFound: "there is no such bucket",
		s3.ErrRegion:   "the bucket is in another region",
		errForbidden:   errForbidden.Error(),
	} {
		if errors.Is(err, known) {
			return why, true
		}
	}
	return "the bucket's store does not answer as one", false
}
