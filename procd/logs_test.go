package procd

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"s0.run/internal/procapi"
)

func logsPath(query url.Values) string { return procapi.PathLogs + "?" + query.Encode() }

func logMessages(p procapi.LogPage) (all []string) {
	for _, l := range p.Lines {
		all = append(all, l.Stream+":"+l.Message)
	}
	return all
}

// Not parallel: what other tests print would push these lines out.
func TestLogs(t *testing.T) {
	c := connect(t)
	ended := create(t, c, sh("echo one; read x; echo two >&2; read x; printf three"))
	q := url.Values{procapi.LogContext: {ended.ID}}
	for line := range 2 { // what comes by two streams has no order but that of being read
		var p procapi.LogPage
		next := url.Values{procapi.LogContext: {ended.ID}, procapi.LogWait: {"20000"}, procapi.LogStream: {[]string{"stdout", "stderr"}[line]}}
		if c.Call(t, "GET", logsPath(next), nil, &p); len(p.Lines) != 1 {
			t.Fatalf("%+v", p)
		}
		c.Call(t, "POST", at(ended.ID, "/input"), procapi.ExecRequest{Data: "\n"}, nil)
	}
	c.Attach(t, ended.ID, "").ToEnd(t)
	var whole procapi.LogPage
	c.Call(t, "GET", logsPath(q), nil, &whole)
	if got := fmt.Sprint(logMessages(whole)); got != "[stdout:one stderr:two stdout:three]" || whole.More || len(whole.Epoch) != 16 {
		t.Fatalf("%s: %+v", got, whole)
	}
	for i, l := range whole.Lines {
		if l.ContextID != ended.ID || l.PID == 0 || time.Since(l.Time) > time.Minute || i > 0 && l.Seq <= whole.Lines[i-1].Seq {
			t.Errorf("line %d: %+v", i, l)
		}
	}
	first := whole.Lines[0]
	for want, more := range map[string]url.Values{
		"[stderr:two]":                 {procapi.LogStream: {"stderr"}},
		"[stdout:one]":                 {procapi.LogLimit: {"1"}},
		"[stderr:two stdout:three]":    {procapi.LogAfter: {fmt.Sprint(whole.Epoch, ".", first.Seq)}},
		"[]":                           {procapi.LogSince: {time.Now().Add(time.Hour).Format(time.RFC3339)}},
		"[stdout:one stderr:two]":      {procapi.LogUntil: {whole.Lines[2].Time.Format(time.RFC3339Nano)}},
		fmt.Sprint(logMessages(whole)): {procapi.LogAfter: {"0000000000000000." + fmt.Sprint(first.Seq)}}, // another procd's
	} {
		more.Set(procapi.LogContext, ended.ID)
		var p procapi.LogPage
		if c.Call(t, "GET", logsPath(more), nil, &p); fmt.Sprint(logMessages(p)) != want {
			t.Errorf("%v: %v, want %s", more, logMessages(p), want)
		}
	}

	// The lines outlive their context, and a question may wait for new ones.
	c.Call(t, "DELETE", at(ended.ID, ""), nil, nil)
	var left procapi.LogPage
	if c.Call(t, "GET", logsPath(q), nil, &left); len(left.Lines) != 3 {
		t.Errorf("without the context: %+v", left)
	}
	late := create(t, c, sh("sleep 0.3; echo late"))
	var waited procapi.LogPage
	c.Call(t, "GET", logsPath(url.Values{procapi.LogContext: {late.ID}, procapi.LogWait: {"20000"}}), nil, &waited)
	if got := fmt.Sprint(logMessages(waited)); got != "[stdout:late]" {
		t.Errorf("%s", got)
	}

	for _, bad := range []url.Values{
		{procapi.LogLimit: {"0"}}, {procapi.LogLimit: {"1001"}}, {procapi.LogLimit: {"x"}}, {procapi.LogAfter: {"x"}}, {procapi.LogAfter: {whole.Epoch}},
		{procapi.LogStream: {"stdin"}}, {procapi.LogSince: {"yesterday"}}, {procapi.LogWait: {"-1"}}, {procapi.LogWait: {"3600000"}},
	} {
		if status, e := c.Refused(t, "GET", logsPath(bad), nil); status != 400 || e.Code != "invalid_request" {
			t.Errorf("%v: %d %+v", bad, status, e)
		}
	}
}
