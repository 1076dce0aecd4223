// The demo program shows, on the s0 that runs on this machine, what a sandbox
// is: it claims one from the warm pool, lets Python remember a variable, runs a
// shell command, writes and reads a file, and deletes it. Everything goes
// through the public API.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"s0.run/api/client"
)

// timeout is for the whole demo; a healthy one takes a second.
const timeout = 2 * time.Minute

func main() {
	api := flag.String("api", "http://127.0.0.1:30080", "base URL of the API")
	key := flag.String("key-file", "/var/lib/s0/admin.key", "file that holds an API key")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := run(ctx, *api, *key, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, api, keyFile string, out io.Writer) error {
	key, err := os.ReadFile(keyFile)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no API key in %s: start s0 with `make up`, or name a key's file with -key-file", keyFile)
	}
	if err != nil {
		return err
	}
	c, err := client.New(client.Config{BaseURL: api, Token: strings.TrimSpace(string(key))})
	if err != nil {
		return err
	}
	if _, err := c.Metadata(ctx); err != nil { // the connection is made before anything is measured
		return fmt.Errorf("asking the API at %s (is s0 up?): %w", api, err)
	}

	d := &demo{ctx: ctx, c: c, out: out}
	if err := d.claim(); err != nil {
		return err
	}
	err = d.show()
	return errors.Join(err, d.remove())
}

// A demo is one sandbox's short life.
type demo struct {
	ctx context.Context
	c   *client.Client
	out io.Writer
	id  string
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) claim() error {
	began := time.Now()
	sb, err := d.c.CreateSandbox(d.ctx, client.ClaimRequest{Template: "default"})
	if err != nil {
		return fmt.Errorf("claiming a sandbox: %w", err)
	}
	d.id = sb.SandboxID
	d.say("claimed %s in %.1f ms", d.id, time.Since(began).Seconds()*1000)
	return nil
}

func (d *demo) show() error {
	for _, step := range []func() error{d.python, d.shell, d.file} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// python runs two lines in one interpreter: the second sees the first's variable.
func (d *demo) python() error {
	alias := "python"
	repl, err := d.c.CreateContext(d.ctx, d.id, client.CreateContextRequest{Type: "repl", REPL: &client.REPLRequest{Alias: &alias}})
	if err != nil {
		return fmt.Errorf("starting Python: %w", err)
	}
	d.say("\nPython remembers:")
	var answer string
	for _, line := range []string{"x = 41", "print(x + 1)"} {
		began := time.Now()
		res, err := d.c.ExecContext(d.ctx, d.id, repl.ID, line)
		if err != nil {
			return fmt.Errorf("running %q: %w", line, err)
		}
		d.say("  >>> %-38s (%.1f ms)", line, time.Since(began).Seconds()*1000)
		if answer = printed(res.OutputRaw, line); answer != "" {
			d.say("  %s", answer)
		}
	}
	if answer != "42" {
		return fmt.Errorf("the Python context answered %q, want 42", answer)
	}
	return nil
}

// printed is what a line made the interpreter print: its terminal echoes the line first.
func printed(output, line string) string {
	return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(output), line))
}

func (d *demo) shell() error {
	const script = "pwd && ls -la"
	wait := true
	began := time.Now()
	res, err := d.c.CreateContext(d.ctx, d.id, client.CreateContextRequest{
		Type: "cmd", CMD: &client.CMDRequest{Command: []string{"sh", "-lc", script}}, WaitUntilDone: &wait,
	})
	if err != nil {
		return fmt.Errorf("running %q: %w", script, err)
	}
	d.say("\n$ %-42s (%.1f ms)", script, time.Since(began).Seconds()*1000)
	if res.Stdout != nil {
		d.say("%s", indent(*res.Stdout))
	}
	if res.ExitCode == nil {
		return fmt.Errorf("running %q: it did not end", script)
	}
	if *res.ExitCode != 0 {
		return fmt.Errorf("running %q: it ended with exit code %d", script, *res.ExitCode)
	}
	return nil
}

func (d *demo) file() error {
	const path, text = "/workspace/hello.txt", "hello from outside\n"
	if err := d.c.WriteFile(d.ctx, d.id, path, strings.NewReader(text)); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	r, err := d.c.ReadFile(d.ctx, d.id, path)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	if string(got) != text {
		return fmt.Errorf("%s holds %q, not what was written", path, got)
	}
	d.say("\nwrote %s and read it back: %s", path, got)
	return nil
}

func (d *demo) remove() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), 30*time.Second) // also after an interrupt
	defer cancel()
	if err := d.c.DeleteSandbox(ctx, d.id); err != nil {
		return fmt.Errorf("deleting %s: %w", d.id, err)
	}
	d.say("deleted %s", d.id)
	return nil
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ")
}
