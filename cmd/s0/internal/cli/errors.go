package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
	"s0.run/cmd/s0/internal/session"
)

// explain is what the user reads of an error: what went wrong, and on a second
// line what to do about it where we know. A server's or a sandbox's words are shown
// and not obeyed by the terminal.
func explain(err error, s *session.Session) string {
	var text strings.Builder
	for line := range strings.Lines("s0: " + strings.TrimRight(describe(err), "\n")) {
		text.WriteString(output.Plain(strings.NewReplacer("\n", "", "\t", "    ").Replace(line)) + "\n")
	}
	if h := hint(err, s); h != "" {
		text.WriteString("    " + output.Plain(h) + "\n")
	}
	return text.String()
}

// describe leaves out what Go's network errors say twice.
func describe(err error) string {
	var dial *net.OpError
	var lost *lostError
	switch {
	case errors.As(err, &lost):
		return fmt.Sprintf("following the command: %s; it may still run: `s0 sandbox context -s %s get %s`", describe(lost.err), lost.at.sandbox, lost.at.context)
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.As(err, &dial) && dial.Op == "dial" && dial.Addr != nil:
		return fmt.Sprintf("cannot reach %s: %s", dial.Addr, cause(dial))
	}
	return err.Error()
}

func cause(err error) string {
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	return err.Error()
}

func hint(err error, s *session.Session) string {
	var refused *client.APIError
	var usage *usage
	var lookup *net.DNSError
	var signIn *signInError
	var missing *client.OutputLostError
	switch {
	case errors.As(err, &missing):
		return "write it to a file in the sandbox and fetch that with `s0 sandbox files -s ID download`"
	case errors.As(err, &signIn) && errors.As(err, &refused) && refused.StatusCode == http.StatusUnauthorized:
		return "check the email address and the password; `make up` printed the first user's"
	case errors.As(err, &signIn) && errors.As(err, &refused) && refused.StatusCode == http.StatusForbidden:
		return "" // the server has said why, and no team has a say in it
	case errors.As(err, &usage):
		return "see `" + usage.command + " --help`"
	case errors.As(err, &refused):
		return apiHint(refused, s)
	case errors.Is(err, session.ErrSignedOut):
		return signInHint()
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("is the server up? Start it with `make up`, or name another with --api-url or %s", session.EnvURL)
	case errors.As(err, &lookup):
		return fmt.Sprintf("check --api-url, %s and the profile's api-url: no such host is known", session.EnvURL)
	}
	return ""
}

func signInHint() string {
	return fmt.Sprintf("sign in with `s0 auth login`, or put an API key into %s", session.EnvToken)
}

// hints are what to do about a server's no, by its code.
var hints = map[string]string{
	"exec_timeout":    "it still runs: `s0 sandbox context -s ID list` shows it, `s0 sandbox context -s ID signal CTX INT` stops it",
	"attempt_running": "say --replace to end it first",
	"path_not_file":   "`s0 sandbox files -s ID ls` lists a directory, `s0 sandbox files -s ID download -r` copies one",
	"quota_exceeded":  "`s0 quota list` shows what your team may have",
}

func apiHint(e *client.APIError, s *session.Session) string {
	var advice []string
	if e.RetryAfter > 0 {
		advice = append(advice, fmt.Sprintf("try again in %d s", int(e.RetryAfter/time.Second)))
	}
	switch {
	case hints[e.Code] != "":
		advice = append(advice, hints[e.Code])
	case e.StatusCode == http.StatusUnauthorized:
		advice = append(advice, signInHint())
	case e.StatusCode == http.StatusForbidden:
		advice = append(advice, "your role in this team does not allow it; an admin of the team can")
	case e.Code == "" && s != nil:
		advice = append(advice, fmt.Sprintf("is %s an s0 server? --api-url and %s name another", s.URL(), session.EnvURL))
	}
	return strings.Join(advice, "; ")
}

// signInError is a failure to sign in, where "sign in" is no advice.
type signInError struct{ error }

func (e *signInError) Unwrap() error { return e.error }

// usage is a mistake in the command line.
type usage struct {
	command string
	err     error
}

func (u *usage) Error() string { return u.err.Error() }

func usageError(cmd *cobra.Command, err error) error {
	return &usage{command: cmd.CommandPath(), err: err}
}

// want checks the number of arguments and names those that are missing.
func want(names ...string) cobra.PositionalArgs { return wantUpTo(0, names...) }

// wantUpTo is want for arguments behind which there may be some more.
func wantUpTo(more int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usageError(cmd, fmt.Errorf("%s is missing", strings.Join(names[len(args):], " and ")))
		case len(args) > len(names)+more:
			return usageError(cmd, fmt.Errorf("%q is one argument too many", args[len(names)+more]))
		}
		return nil
	}
}

// wantSome is want for one or more of the same.
func wantSome(name string) cobra.PositionalArgs { return wantUpTo(math.MaxInt/2, name) }
