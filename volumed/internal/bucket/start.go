package bucket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/sealed"
	"s0.run/internal/volumeapi"
	"s0.run/volumed/internal/cage"
	"s0.run/volumed/internal/s3"
)

const (
	// startTimeout is for a process that looks into its bucket first.
	startTimeout = 25 * time.Second
	// nobody is who the processes are.
	nobody = 65534
	// mountOptions: the kernel judges by what the files' modes say, and nobody else.
	mountOptions = "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
)

// The descriptors that a process begins with, behind the standard ones.
const jailFD, deviceFD, controlFD = 3, 4, 5

// environment: it reads nothing of the machine's, and little memory is all that it needs.
var environment = []string{"TZ=UTC", "GOMAXPROCS=4", "GOMEMLIMIT=96MiB", "GODEBUG=containermaxprocs=0,updatemaxprocs=0"}

// settings are what a process is told, once.
type settings struct {
	Volume       string    `json:"volume"`
	Bucket       s3.Bucket `json:"bucket"`
	UID          uint32    `json:"uid"`
	GID          uint32    `json:"gid"`
	AccessKey    string    `json:"access_key"`
	SecretKey    string    `json:"secret_key"`
	SessionToken string    `json:"session_token"`
}

// outcome is what it answers when it serves, or can't.
type outcome struct {
	Failed  string `json:"failed"`  // why; for tenants
	Lasting bool   `json:"lasting"` // and it will not be otherwise the next time
}

func bucketOf(v volumeapi.Volume) s3.Bucket {
	b := v.Bucket
	return s3.Bucket{Provider: b.Provider, Name: b.Name, Prefix: b.Prefix, Region: b.Region, Endpoint: b.Endpoint}
}

// start mounts a volume and starts its process. What it leaves behind a failure, the next
// start clears away.
func (m *Manager) start(ctx context.Context, v volumeapi.Volume, one *mounted) (err error) {
	told, err := m.settings(v)
	if err != nil {
		return err
	}
	p := m.place(v.ID)
	if err := p.clear(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.clear())
		}
	}()
	if err := p.make(); err != nil {
		return err
	}
	r, err := json.Marshal(one.record)
	if err == nil {
		err = os.WriteFile(p.record(), r, 0o600)
	}
	if err != nil {
		return err
	}
	dials, err := m.serveDials(p, one.To)
	if err != nil {
		return err
	}
	if !m.connect(v.ID, one, dials) {
		dials.close()
		return errdefs.New(errdefs.Unavailable, "the node's volumes are being restarted").WithRetryAfter(again)
	}
	if err = m.spawn(ctx, p, told); err != nil {
		dials.close()
	}
	return err
}

// settings opens what is sealed.
func (m *Manager) settings(v volumeapi.Volume) (settings, error) {
	b := v.Bucket
	keys, err := sealed.ReadKeyring(m.cfg.Keys)
	if err != nil {
		return settings{}, fmt.Errorf("opening the credential of volume %s: %w", v.ID, err)
	}
	of := sealed.Of{Team: v.Team, Source: v.ID, Kind: b.Kind, Version: b.Version}
	secret, err := keys.OpenSecret(of, sealed.Blob{Key: b.Key, Data: b.Sealed})
	if err != nil {
		return settings{}, fmt.Errorf("opening the credential of volume %s: %w", v.ID, err)
	}
	return settings{
		Volume: v.ID, Bucket: bucketOf(v), UID: v.UID, GID: v.GID,
		AccessKey: secret.Values["access_key"], SecretKey: secret.Values["secret_key"], SessionToken: secret.Values["session_token"],
	}, nil
}

// spawn mounts at a place, and has a process of its own serve that.
func (m *Manager) spawn(ctx context.Context, p place, told settings) error {
	jail, err := os.Open(p.jail())
	if err != nil {
		return err
	}
	defer jail.Close()
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer device.Close()
	if err := unix.Mount("s0-bucket", p.at(), "fuse", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf(mountOptions, device.Fd())); err != nil {
		return fmt.Errorf("mounting: %w", err)
	}
	ours, theirs, err := pair()
	if err != nil {
		return err
	}
	defer ours.Close()
	cmd := m.command(jail, device, theirs)
	started := cage.Start(cmd, nobody, nobody)
	err = errors.Join(started, theirs.Close(), device.Close()) // the mount is the process's
	if err == nil {
		err = exchange(ctx, ours, told)
	}
	switch {
	case started != nil:
	case err != nil: // no process is left where the next one is to be
		_, _ = cmd.Process.Kill(), cmd.Wait()
	default:
		go func() { _ = cmd.Wait() }() // it outlives us, or ends with its mount
	}
	return err
}

func (m *Manager) command(files ...*os.File) *exec.Cmd {
	cmd := exec.Command(m.cfg.Command[0], m.cfg.Command[1:]...)
	cmd.Dir, cmd.Env, cmd.Stderr, cmd.ExtraFiles = "/", environment, os.Stderr, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	return cmd
}

// exchange tells a process what to do, and waits until it does.
func exchange(ctx context.Context, with *net.UnixConn, told settings) error {
	until := time.Now().Add(startTimeout)
	if earlier, ok := ctx.Deadline(); ok && earlier.Before(until) {
		until = earlier
	}
	b, err := json.Marshal(told)
	if err == nil {
		err = with.SetDeadline(until)
	}
	defer context.AfterFunc(ctx, func() { _ = with.SetDeadline(time.Now()) })()
	if err == nil {
		_, err = with.Write(b)
	}
	if err = errors.Join(err, with.CloseWrite()); err != nil {
		return errdefs.New(errdefs.Unavailable, "the bucket could not be opened").WithCause(err)
	}
	var said outcome
	if err := json.NewDecoder(io.LimitReader(with, maxTold)).Decode(&said); err != nil {
		return errdefs.New(errdefs.Unavailable, "the bucket could not be opened").WithRetryAfter(again).WithCause(err)
	}
	switch {
	case said.Failed == "":
		return nil
	case said.Lasting:
		return errdefs.New(errdefs.InvalidArgument, "%.200s", said.Failed)
	}
	return errdefs.New(errdefs.Unavailable, "%.200s", said.Failed).WithRetryAfter(again)
}

func pair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	our, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	defer our.Close()
	conn, err := net.FileConn(our)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return conn.(*net.UnixConn), theirs, nil
}
