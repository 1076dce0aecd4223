package netdapi_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/netdapi"
	"s0.run/internal/sandbox"
)

type fake struct {
	slots    []netdapi.Slot
	policies []netdapi.Policy
	detached []sandbox.ID
}

func (f *fake) Info() netdapi.Info { return netdapi.Info{Version: "v", Run: "r"} }
func (f *fake) Attach(_ context.Context, s netdapi.Slot) error {
	f.slots = append(f.slots, s)
	return nil
}

func (f *fake) SetPolicy(_ context.Context, p netdapi.Policy) error {
	f.policies = append(f.policies, p)
	if p.Team == "stale" {
		return errdefs.New(errdefs.Conflict, "older").WithCause(errors.New("secret cause"))
	}
	if p.Team == "broken" {
		return errors.New("secret cause")
	}
	return nil
}

func (f *fake) Detach(_ context.Context, id sandbox.ID, _ sandbox.Generation) error {
	f.detached = append(f.detached, id)
	return nil
}

func (f *fake) List() []netdapi.Known {
	known := make([]netdapi.Known, 0, len(f.slots))
	for _, s := range f.slots {
		known = append(known, netdapi.Known{Slot: s, Team: "t"})
	}
	return known
}

func (f *fake) Counters() (map[sandbox.ID]netdapi.Counters, error) {
	return map[sandbox.ID]netdapi.Counters{"x": {Denied: 7}}, nil
}

func (f *fake) CA(id sandbox.ID) (netdapi.CA, error) {
	return netdapi.CA{}, errdefs.New(errdefs.NotFound, "sandbox %s not found", id)
}

func (f *fake) TakeEvents(ctx context.Context, stored netdapi.Mark) netdapi.Events {
	if stored.Through == 3 {
		<-ctx.Done()
		return netdapi.Events{Mark: stored}
	}
	return netdapi.Events{Mark: netdapi.Mark{Run: "r", Through: stored.Through + 1}, Events: make([]netdapi.Event, 2)}
}

func serve(t *testing.T) (*fake, *netdapi.Client, http.Handler) {
	t.Helper()
	f := &fake{}
	h := netdapi.Handler(f, func(string, error) {})
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	c := netdapi.NewClient(path)
	t.Cleanup(c.Close)
	return f, c, h
}

func slot(t *testing.T) netdapi.Slot {
	id, err := sandbox.NewID("t")
	if err != nil {
		t.Fatal(err)
	}
	return netdapi.Slot{ID: id, Generation: 1, Ifindex: 5, IPv4: netip.MustParseAddr("10.0.0.2"), IPv6: netip.MustParseAddr("fd00::2"), MAC: "02:73:0a:00:00:02"}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	f, c, _ := serve(t)
	ctx, s := t.Context(), slot(t)
	if err := c.Attach(ctx, s); err != nil {
		t.Fatal(err)
	}
	if len(f.slots) != 1 || f.slots[0] != s {
		t.Errorf("attached %+v, want %+v", f.slots, s)
	}
	p := netdapi.Policy{ID: s.ID, Generation: 1, Team: "t", Policy: []byte(`{"mode":"block-all"}`), TeamBandwidth: netdapi.Bandwidth{Ingress: netdapi.Rate{Bytes: 5}}}
	if err := c.SetPolicy(ctx, p); err != nil {
		t.Fatal(err)
	}
	if f.policies[0].Digest() != p.Digest() || f.policies[0].TeamBandwidth.Ingress.Bytes != 5 {
		t.Errorf("policy arrived as %+v", f.policies[0])
	}
	if known, err := c.List(ctx); err != nil || len(known) != 1 || known[0].Slot != s {
		t.Errorf("List: %+v, %v", known, err)
	}
	if n, err := c.Counters(ctx); err != nil || n["x"].Denied != 7 {
		t.Errorf("Counters: %+v, %v", n, err)
	}
	if err := c.Detach(ctx, s.ID, 0); err != nil || f.detached[0] != s.ID {
		t.Errorf("Detach: %v, %v", f.detached, err)
	}
	if info, err := c.Info(ctx); err != nil || info.Run != "r" {
		t.Errorf("Info: %+v, %v", info, err)
	}
}

func TestErrorsKeepTheirKindAndHideTheirCause(t *testing.T) {
	t.Parallel()
	_, c, _ := serve(t)
	s := slot(t)
	for team, kind := range map[string]errdefs.Kind{"stale": errdefs.Conflict, "broken": errdefs.Internal} {
		err := c.SetPolicy(t.Context(), netdapi.Policy{ID: s.ID, Generation: 1, Team: team})
		var typed *errdefs.Error
		if !errors.As(err, &typed) || typed.Kind != kind || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", team, err)
		}
	}
	if _, err := c.CA(t.Context(), s.ID); err == nil {
		t.Error("CA of an unknown sandbox")
	}
	down := netdapi.NewClient(filepath.Join(t.TempDir(), "nobody"))
	if err := down.Attach(t.Context(), s); !errors.Is(err, netdapi.ErrDown) {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestEventsAreTakenOneBatchAfterAnother(t *testing.T) {
	t.Parallel()
	_, c, _ := serve(t)
	var mark netdapi.Mark
	for want := range uint64(3) {
		e, err := c.TakeEvents(t.Context(), mark)
		if err != nil || len(e.Events) != 2 || e.Mark.Through != want+1 || e.Mark.Run != "r" {
			t.Fatalf("took %+v, %v", e, err)
		}
		mark = e.Mark
	}
	if e, err := c.TakeEvents(t.Context(), mark); err != nil || len(e.Events) != 0 || e.Mark != mark {
		t.Errorf("took %+v, %v of what there is not", e, err)
	}
}

func TestWatchLastsAsLongAsNetd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: netdapi.Handler(&fake{}, func(string, error) {})}
	go srv.Serve(l)
	c := netdapi.NewClient(path)
	defer c.Close()
	up, ended := make(chan netdapi.Info, 1), make(chan error, 1)
	go func() { ended <- c.Watch(t.Context(), func(i netdapi.Info) { up <- i }) }()
	if i := <-up; i.Run != "r" {
		t.Errorf("it is %+v", i)
	}
	srv.Close()
	if err := <-ended; err == nil {
		t.Error("netd is gone, and the watch ended without an error")
	}
	if err := c.Watch(t.Context(), func(netdapi.Info) { t.Error("nobody is up") }); !errors.Is(err, netdapi.ErrDown) {
		t.Errorf("watching nobody: %v", err)
	}
}

func TestRefusesWhatItDoesNotUnderstand(t *testing.T) {
	t.Parallel()
	_, _, h := serve(t)
	id := slot(t).ID
	for _, c := range []struct{ path, body string }{
		{"/v1/attach", `{"id":"` + string(id) + `","generation":1}`},
		{"/v1/attach", `{"unknown":1}`},
		{"/v1/attach", `{} {}`},
		{"/v1/policy", `{"id":"../x","generation":1}`},
		{"/v1/policy", `{"id":"` + string(id) + `"}`},
		{"/v1/policy", `[`},
		{"/v1/policy", strings.Repeat(" ", 9<<20)},
		{"/v1/policy", `{"id":"` + string(id) + `","generation":1,"team":"` + strings.Repeat("x", 300) + `"}`},
		{"/v1/detach", `{"id":""}`},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, c.path, strings.NewReader(c.body)))
		if w.Code != http.StatusBadRequest {
			t.Errorf("%s %.60s: status %d, want 400", c.path, c.body, w.Code)
		}
	}
}

// A record of a flow has what the contract says, under those names.
func TestE24_ARecordHasTheContractsFields(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[netdapi.Event]()) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names[name] = true
	}
	const contract = "timestamp,flow_id,sandbox_id,team_id,src_ip,dest_ip,dest_port,transport,protocol,host,classifier_result,action,reason,outcome," +
		"duration_ms,egress_bytes,ingress_bytes,adapter,auth_rule_name,auth_ref,auth_failure_policy,auth_bypassed,auth_resolved,auth_cache_hit," +
		"auth_resolve_error,protocol_operations,error"
	for name := range strings.SplitSeq(contract, ",") {
		if !names[name] {
			t.Errorf("no field %s", name)
		}
	}
}
