package contexts

import (
	"maps"
	"path/filepath"
	"strings"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
	"s0.run/procd/internal/repl"
)

// Types of contexts.
const (
	typeREPL = "repl"
	typeCMD  = "cmd"
)

const (
	defaultTerm = "xterm-256color"
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultHome = "/root"
)

var defaultSize = procapi.PTYSize{Rows: 24, Cols: 80}

// plan is what a request means: how to start its process, now and at a restart.
type plan struct {
	req  procapi.CreateContext
	dir  string
	repl repl.Definition // of a REPL
}

// newPlan checks a request. Nothing that the kernel or the process itself checks
// better is checked here.
func newPlan(req procapi.CreateContext, workspace string) (*plan, error) {
	p := &plan{req: req}
	var err error
	switch req.Type {
	case typeREPL:
		if req.CMD != nil {
			return nil, invalid("cmd is for type cmd")
		}
		p.repl, err = repl.Define(req.REPL, req.PTYSize != nil)
	case typeCMD:
		if req.REPL != nil {
			return nil, invalid("repl is for type repl")
		}
		err = checkCommand(req.CMD)
	default:
		return nil, invalid("unsupported process type")
	}
	if err == nil {
		err = checkCommon(&req)
	}
	if err == nil {
		p.dir, err = resolveDir(req.Cwd, workspace)
	}
	return p, err
}

func checkCommand(cmd *procapi.CMDRequest) error {
	if cmd == nil || len(cmd.Command) == 0 || cmd.Command[0] == "" {
		return invalid("cmd.command is required")
	}
	if len(cmd.Command) > procapi.MaxArgs {
		return invalid("cmd.command: more than %d arguments", procapi.MaxArgs)
	}
	for i, arg := range cmd.Command {
		if strings.ContainsRune(arg, 0) {
			return invalid("cmd.command[%d] contains a NUL byte", i)
		}
	}
	return nil
}

func checkCommon(req *procapi.CreateContext) error {
	switch {
	case req.PTYSize != nil && (req.PTYSize.Rows == 0 || req.PTYSize.Cols == 0):
		return invalid("pty_size: rows and cols must be above 0")
	case req.IdleTimeoutSec < 0:
		return invalid("idle_timeout_sec must not be negative")
	case req.TTLSec < 0:
		return invalid("ttl_sec must not be negative")
	case req.REPL != nil && len(req.REPL.Input) > procapi.MaxInputBytes:
		return invalid("repl.input: more than %d bytes", procapi.MaxInputBytes)
	}
	return checkEnv(req.EnvVars)
}

func checkEnv(env map[string]string) error {
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return invalid("environment variable %.64q: a name is not empty and has no \"=\", and neither has a NUL byte", name)
		}
	}
	return nil
}

func resolveDir(dir, workspace string) (string, error) {
	if strings.ContainsRune(dir, 0) {
		return "", invalid("cwd contains a NUL byte")
	}
	if filepath.IsAbs(dir) {
		return filepath.Clean(dir), nil
	}
	return filepath.Join(workspace, dir), nil
}

// config makes a process's configuration from the plan and the environment that
// processes have now.
func (p *plan) config(base map[string]string) (proc.Config, error) {
	cfg := proc.Config{Dir: p.dir, Size: p.req.PTYSize}
	env := p.environment(base)
	var err error
	if p.req.Type == typeREPL {
		err = p.findREPL(&cfg, env["PATH"])
	} else {
		err = p.findCommand(&cfg, env["PATH"])
	}
	if err != nil {
		return proc.Config{}, err
	}
	total := 0
	for name, value := range env {
		cfg.Env = append(cfg.Env, name+"="+value)
		total += len(name) + len(value) + 2
	}
	for _, arg := range cfg.Argv {
		total += len(arg) + 1
	}
	if total > procapi.MaxArgBytes {
		return proc.Config{}, invalid("arguments and environment: more than %d bytes", procapi.MaxArgBytes)
	}
	return cfg, nil
}

// environment lays the request's variables over the REPL's, those over the
// terminal's, and those over the sandbox's.
func (p *plan) environment(base map[string]string) map[string]string {
	env := maps.Clone(base)
	if p.req.Type == typeREPL {
		env["TERM"] = p.repl.Term
		maps.Copy(env, p.repl.Env)
	} else if p.req.PTYSize != nil {
		env["TERM"] = defaultTerm
	}
	maps.Copy(env, p.req.EnvVars)
	return env
}

func (p *plan) findCommand(cfg *proc.Config, path string) (err error) {
	cfg.Argv = p.req.CMD.Command
	// Nobody can know the id before the answer, so nobody could write.
	cfg.NoInput = p.req.WaitUntilDone
	cfg.Expect = !p.req.WaitUntilDone
	cfg.Path, err = proc.LookPath(cfg.Argv[0], p.dir, path)
	if err != nil {
		return startError(*cfg, err)
	}
	return nil
}

func (p *plan) findREPL(cfg *proc.Config, path string) error {
	if cfg.Size == nil {
		size := defaultSize
		size.Cols = max(size.Cols, p.repl.Columns)
		cfg.Size = &size
	}
	for _, c := range p.repl.Candidates {
		file, err := proc.LookPath(c.Name, p.dir, path)
		if err == nil {
			cfg.Path, cfg.Argv = file, append([]string{c.Name}, c.Args...)
			return nil
		}
	}
	return p.repl.Missing()
}

// parseEnv turns "name=value" strings into a map; what is no such string is left out.
func parseEnv(list []string) map[string]string {
	env := map[string]string{"PATH": defaultPath, "HOME": defaultHome}
	for _, s := range list {
		if name, value, ok := strings.Cut(s, "="); ok && name != "" {
			env[name] = value
		}
	}
	return env
}
