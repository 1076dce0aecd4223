// The probe program is what tests run inside a sandbox: small, static, and each
// of its words does one thing that a test looks at.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/s0test/fsx"
	"s0.run/internal/s0test/posix"
)

const forever = 24 * time.Hour

var words = map[string]func(args []string) error{
	"sleep":   func([]string) error { time.Sleep(forever); return nil },
	"exit":    exit,
	"cat":     cat,
	"echo":    func(a []string) error { _, err := fmt.Println(a); return err },
	"term":    term,
	"count":   count,
	"eat":     eat,
	"fork":    fork,
	"write":   func(a []string) error { return os.WriteFile(a[0], []byte(a[1]), 0o600) },
	"fill":    fill,
	"read":    read,
	"ls":      ls,
	"dial":    dial,
	"bind":    func(a []string) error { return syscall.Mount(a[0], a[1], "", syscall.MS_BIND, "") },
	"umount":  func(a []string) error { return syscall.Unmount(a[0], 0) },
	"mkdir":   func(a []string) error { return os.Mkdir(a[0], 0o700) },
	"symlink": func(a []string) error { return os.Symlink(a[0], a[1]) },
	"chmod":   func(a []string) error { return os.Chmod(a[0], 0o777) },
	"rm":      func(a []string) error { return os.Remove(a[0]) },
	"hold":    hold,
	"kill":    kill,
	"tty":     tty,
	"stat":    stat,
	"posix":   checkPOSIX,
	"fsx":     walk,
	"swap":    swap,
	"make":    makeFiles,
	"numbers": numbers,
	"small":   smallFiles,
	"large":   oneFile,
	"env":     func([]string) error { fmt.Println(strings.Join(os.Environ(), "\n")); return nil },
}

func main() {
	if filepath.Base(os.Args[0]) == "procd" {
		agent()
	}
	if len(os.Args) < 2 || words[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "probe: unknown word")
		os.Exit(64)
	}
	if err := words[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func exit(a []string) error {
	n, err := strconv.Atoi(a[0])
	if err != nil {
		return err
	}
	os.Exit(n)
	return nil
}

// cat copies its input, which must not be empty.
func cat([]string) error {
	n, err := io.Copy(os.Stdout, os.Stdin)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// count writes into a file how many SIGUSR1 have come, which only its memory knows.
func count(a []string) error {
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, syscall.SIGUSR1)
	for n := 0; ; n++ {
		if err := os.WriteFile(a[0]+".new", []byte(strconv.Itoa(n)), 0o600); err != nil {
			return err
		}
		if err := os.Rename(a[0]+".new", a[0]); err != nil {
			return err
		}
		<-ch
	}
}

// term ends with status 42 on SIGTERM.
func term([]string) error {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM)
	fmt.Println("ready")
	<-ch
	os.Exit(42)
	return nil
}

// eat touches so many MiB and keeps them.
func eat(a []string) error {
	n, err := strconv.Atoi(a[0])
	if err != nil {
		return err
	}
	var all [][]byte
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
	fmt.Println("ate", len(all))
	time.Sleep(forever)
	return nil
}

// fork starts so many sleeping children and says how many it got.
func fork(a []string) error {
	n, err := strconv.Atoi(a[0])
	if err != nil {
		return err
	}
	got := 0
	for range n {
		if err = exec.Command("/proc/self/exe", "sleep").Start(); err != nil {
			break
		}
		got++
	}
	fmt.Println("forked", got, err)
	time.Sleep(time.Second)
	return nil
}

// fill writes so many MiB to a file.
func fill(a []string) error {
	n, err := strconv.Atoi(a[1])
	if err != nil {
		return err
	}
	f, err := os.Create(a[0])
	if err != nil {
		return err
	}
	defer f.Close()
	for range n {
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			return err
		}
	}
	return f.Close()
}

// hold leaves a process that has a file open for writing, and prints its pid.
func hold(a []string) error {
	f, err := os.Create(a[0])
	if err != nil {
		return err
	}
	defer f.Close()
	child := exec.Command("/proc/self/exe", "sleep")
	child.Stdin = f
	if err := child.Start(); err != nil {
		return err
	}
	fmt.Println(child.Process.Pid)
	return nil
}

// kill kills a process and waits until it has nothing open any more.
func kill(a []string) error {
	pid, err := strconv.Atoi(a[0])
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	for {
		if open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err != nil || len(open) == 0 {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// stat prints a path's mode and owner.
func stat(a []string) error {
	fi, err := os.Stat(a[0])
	if err != nil {
		return err
	}
	fmt.Println(fi.Mode())
	return nil
}

func read(a []string) error {
	b, err := os.ReadFile(a[0])
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(b)
	return err
}

func ls(a []string) error {
	entries, err := os.ReadDir(a[0])
	if err != nil {
		return err
	}
	for _, e := range entries {
		fmt.Println(e.Name())
	}
	return nil
}

// dial sends a line over a unix socket and prints the answer.
func dial(a []string) error {
	c, err := net.Dial("unix", a[0])
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, c)
	return err
}

// Answer is what the agent says of one command.
type Answer struct {
	Out  string
	Code int
}

// agent is what the probe is under procd's name: PID 1, which dials the host and
// runs what it is told, one JSON array of arguments after the other.
func agent() {
	for {
		if err := serve("/run/s0/node.sock"); err != nil {
			fmt.Fprintln(os.Stderr, "probe:", err)
		}
		time.Sleep(10 * time.Millisecond) // the host may come back
	}
}

func serve(socket string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	in, out := json.NewDecoder(c), json.NewEncoder(c)
	for {
		var args []string
		if err := in.Decode(&args); err != nil {
			return err
		}
		text, err := exec.Command("/proc/self/exe", args...).CombinedOutput()
		a := Answer{Out: string(text)}
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			a.Code = exit.ExitCode()
		} else if err != nil {
			a = Answer{Out: err.Error(), Code: -1}
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// tty prints the terminal's size.
func tty([]string) error {
	ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	if err != nil {
		return err
	}
	fmt.Println("size", ws.Row, ws.Col)
	return nil
}

// checkPOSIX checks a directory but for the cases that are named; it fails and says what is
// wrong.
func checkPOSIX(a []string) error {
	var failed []error
	for name, err := range posix.Run(a[0], a[1:]...) {
		failed = append(failed, fmt.Errorf("%s: %w", name, err))
	}
	return errors.Join(failed...)
}

// walk does so many random things to files of a directory, which it leaves, and checks them.
func walk(a []string) error {
	seed, err := strconv.ParseUint(a[1], 10, 64)
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(a[2])
	if err != nil {
		return err
	}
	w, err := fsx.New(a[0], seed)
	if err != nil {
		return err
	}
	return errors.Join(w.Steps(count), w.Check(a[0]), w.Close())
}

// swap has two names change places until it is killed, by a third: not every file system of
// gVisor's exchanges them. What others make in their places meanwhile goes.
func swap(a []string) error {
	move := func(from, to string) error {
		err := os.Rename(from, to)
		for tries := 0; err != nil && tries < 100; tries++ {
			if err = os.RemoveAll(to); err == nil {
				err = os.Rename(from, to)
			}
		}
		return err
	}
	aside := a[0] + ".aside"
	for {
		if err := errors.Join(move(a[0], aside), move(a[1], a[0]), move(aside, a[1])); err != nil {
			return err
		}
	}
}

// makeFiles makes empty files in a directory, at most so many, and says how many there are.
func makeFiles(a []string) error {
	n, err := strconv.Atoi(a[1])
	if err != nil {
		return err
	}
	made := 0
	for ; made < n && err == nil; made++ {
		err = syscall.Mknod(filepath.Join(a[0], strconv.Itoa(made)), syscall.S_IFREG|0o600, 0)
	}
	fmt.Println("made", made, err)
	return nil
}

// numbers writes one number after the other to a file, each to the disk before it says so in
// another file, until it is killed.
func numbers(a []string) error {
	to, err := os.OpenFile(a[0], os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	said, err := os.OpenFile(a[1], os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		b := fmt.Appendf(nil, "%020d", n)
		_, err := to.WriteAt(b, 0)
		if err = errors.Join(err, to.Sync()); err != nil {
			return err
		}
		if _, err := said.WriteAt(b, 0); err != nil {
			return err
		}
	}
}
