package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"golang.org/x/sys/unix"

	"s0.run/internal/volumeapi"
	"s0.run/volumed"
)

// secondNode measures what a node has to do for a volume that it has never seen, over a
// metadata database in PostgreSQL: until it is mounted, and until the first file is read.
func (v *volumes) secondNode(ctx context.Context) (rows []row, err error) {
	const rounds, count = 5, 10_000
	objects, stop, err := objectStore()
	if err != nil {
		return nil, err
	}
	defer stop()
	meta := v.meta()
	first, err := v.node(ctx, "n1", meta, objects)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, first.end()) }()
	second, err := v.node(ctx, "n2", meta, objects)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, second.end()) }()
	var leaves, mounts, reads []time.Duration
	for i := range rounds {
		one := volumeapi.Volume{ID: fmt.Sprint("moved", i), Team: "bench", Epoch: 1}
		if _, err := first.api.Create(ctx, volumeapi.Create{Volume: one}); err != nil {
			return nil, err
		}
		m, err := first.api.Use(ctx, volumeapi.Use{Volume: one, Use: "bench"})
		if err != nil {
			return nil, err
		}
		if err := tree(m.Path, count); err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := errors.Join(first.api.Leave(ctx, volumeapi.Leave{ID: one.ID, Use: "bench"}), first.api.Release(ctx, one)); err != nil {
			return nil, err
		}
		leaves = append(leaves, time.Since(begin))
		one.Epoch++
		begin = time.Now()
		if m, err = second.api.Use(ctx, volumeapi.Use{Volume: one, Use: "bench"}); err != nil {
			return nil, err
		}
		mounts = append(mounts, time.Since(begin))
		begin = time.Now()
		if _, err := os.ReadFile(filepath.Join(m.Path, "d7", "7777")); err != nil {
			return nil, err
		}
		reads = append(reads, time.Since(begin))
		if err := second.api.Leave(ctx, volumeapi.Leave{ID: one.ID, Use: "bench"}); err != nil {
			return nil, err
		}
	}
	load := fmt.Sprintf("%d files, PostgreSQL, S3 in memory", count)
	return []row{
		rowOf("a node lets a volume go, with all of it to commit", load, leaves), rowOf("cold mount on a second node", load, mounts), rowOf("  the first file read there", load, reads),
	}, nil
}

// objectStore is an S3 bucket in memory.
func objectStore() (url string, stop func(), err error) {
	backend := s3mem.New()
	if err := backend.CreateBucket("volumes"); err != nil {
		return "", nil, err
	}
	srv := httptest.NewServer(gofakes3.New(backend, gofakes3.WithLogger(gofakes3.StdLog(log.New(io.Discard, "", 0)))).Server())
	return srv.URL + "/volumes", func() {
		srv.CloseClientConnections() // a JuiceFS keeps some
		srv.Close()
	}, nil
}

// A node is a volumed beside the stack's, with directories of its own.
type node struct {
	cmd *exec.Cmd
	api *volumeapi.Client
	run string
}

func (v *volumes) node(ctx context.Context, name, dsn, bucket string) (*node, error) {
	meta, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(v.dir, name)
	n := &node{run: filepath.Join(dir, "r"), api: volumeapi.NewClient(filepath.Join(dir, "sock"))}
	if err := os.MkdirAll(n.run, 0o700); err != nil {
		return nil, err
	}
	output, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer output.Close()
	n.cmd = exec.Command(filepath.Join(v.stack.Bin(), "s0d"), "volumed", "--node", name, "--data-dir", filepath.Join(dir, "d"), "--run-dir", n.run,
		"--socket", filepath.Join(dir, "sock"), "--juicefs", filepath.Join(v.stack.Bin(), "juicefs"), "--bucket", bucket,
		"--meta", fmt.Sprintf("postgres://%s@/%s?host=%s&sslmode=disable", meta.User, meta.Database, meta.Host))
	n.cmd.Env = append(os.Environ(), "ACCESS_KEY=tester", "SECRET_KEY=secret")
	n.cmd.Stdout, n.cmd.Stderr = output, output
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(time.Minute); ; {
		_, err := n.api.Info(ctx)
		if err == nil {
			return n, nil
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("node %s does not answer: %w", name, err), n.end())
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return nil, errors.Join(err, n.end())
		}
	}
}

// end ends a node. What it has mounted goes, and with that its JuiceFS.
func (n *node) end() error {
	n.api.Close()
	err := n.cmd.Process.Signal(unix.SIGTERM)
	_ = n.cmd.Wait() // it says in its log how it ended
	return errors.Join(err, volumed.Unmount(n.run))
}
