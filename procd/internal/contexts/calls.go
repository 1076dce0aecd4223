package contexts

import (
	"context"
	"errors"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
	"s0.run/procd/internal/repl"
)

func (e *entry) current() *Live {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.live
}

// Exec writes data to a context and answers what it printed until it was done
// with it. A REPL that ends meanwhile answers its exit code.
func (t *Table) Exec(ctx context.Context, id, data string) (procapi.ExecResult, error) {
	if data == "" {
		return procapi.ExecResult{}, invalid("data is required")
	}
	if err := checkInput(data); err != nil {
		return procapi.ExecResult{}, err
	}
	live, err := t.use(id)
	if err != nil {
		return procapi.ExecResult{}, err
	}
	if live.Process.State() == proc.StatePaused {
		return procapi.ExecResult{}, paused(id)
	}
	res, err := live.exec(ctx, data)
	if errors.Is(err, repl.ErrExited) {
		err = nil
	}
	return res, failed(id, "exec_failed", err)
}

func checkInput(data string) error {
	if len(data) > procapi.MaxInputBytes {
		return invalid("data: more than %d bytes", procapi.MaxInputBytes)
	}
	return nil
}

// Input writes data to a context's process exactly as it is.
func (t *Table) Input(ctx context.Context, id, data string) error {
	if err := checkInput(data); err != nil {
		return err
	}
	live, err := t.use(id)
	if err != nil {
		return err
	}
	_, err = live.Input(ctx, []byte(data))
	return failed(id, "write_failed", err)
}

// Input writes data. The turn is a REPL's, for [repl.Session.Await].
func (l *Live) Input(ctx context.Context, data []byte) (repl.Turn, error) {
	if l.Session != nil {
		return l.Session.Input(ctx, data)
	}
	return repl.Turn{}, l.Process.Write(data)
}

// Resize sets the size of a context's terminal.
func (t *Table) Resize(id string, size procapi.PTYSize) error {
	live, err := t.use(id)
	if err != nil {
		return err
	}
	return failed(id, "resize_failed", live.Resize(size))
}

// Resize sets the terminal's size.
func (l *Live) Resize(size procapi.PTYSize) error {
	if size.Rows == 0 || size.Cols == 0 {
		return invalid("rows and cols must be above 0")
	}
	return l.Process.Resize(size)
}

// Signal signals a context's process.
func (t *Table) Signal(id, name string) error {
	live, err := t.use(id)
	if err != nil {
		return err
	}
	return failed(id, "signal_failed", live.Signal(name))
}

// Signal signals the process.
func (l *Live) Signal(name string) error {
	sig, err := proc.ParseSignal(name)
	if err != nil {
		return invalid("unknown signal %.32q", name)
	}
	return l.Process.Signal(sig)
}

// Stats sums up what a context's processes use.
func (t *Table) Stats(id string) (procapi.ContextStats, error) {
	e, err := t.get(id)
	if err != nil {
		return procapi.ContextStats{}, err
	}
	c, s := e.describe(), e.current().Process.Stats()
	s.Type, s.Alias, s.Running, s.Paused = c.Type, c.Alias, c.Running, c.Paused
	return s, nil
}

// Attach returns the context's process for somebody who follows it, which keeps
// it from being idle until detach is called. The process may have ended.
func (t *Table) Attach(id string) (live *Live, detach func(), err error) {
	e, err := t.get(id)
	if err != nil {
		return nil, nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.attached++
	e.used, e.fresh = t.cfg.Now(), false
	return e.live, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.attached--
		e.used = t.cfg.Now()
	}, nil
}
