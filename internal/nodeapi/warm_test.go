package nodeapi

import (
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"s0.run/internal/sandbox"
	"s0.run/internal/warm"
)

func TestWarmProcessesSurviveTheWire(t *testing.T) {
	t.Parallel()
	probe := func(p warm.Probe) *warm.Probe { p = p.WithDefaults(); return &p }
	want := sandbox.Spec{
		Image: "i", MemoryBytes: sandbox.MinMemoryBytes, CPUMillis: 500, RuntimeClass: sandbox.GVisor,
		Warm: []warm.Process{
			{Name: "python", Type: warm.REPL, Alias: "python3", KeepOnClaim: true, Startup: probe(warm.Probe{Process: true, InitialDelaySeconds: 2})},
			{
				Name: "web", Type: warm.CMD, Command: []string{"serve", "-x"}, Cwd: "/srv", Env: map[string]string{"A": "b"},
				Startup:   probe(warm.Probe{Exec: []string{"check"}, FailureThreshold: 9}),
				Readiness: probe(warm.Probe{HTTP: &warm.HTTPGet{Path: "/", Port: 8000, TLS: true, Headers: []warm.Header{{Name: "A", Value: "b"}}}, SuccessThreshold: 2}),
				Liveness:  probe(warm.Probe{TCPPort: 8000, PeriodSeconds: 3, TimeoutSeconds: 4}),
			},
		},
	}
	b, err := proto.Marshal(SpecToWire(want))
	if err != nil {
		t.Fatal(err)
	}
	var w Spec
	if err := proto.Unmarshal(b, &w); err != nil {
		t.Fatal(err)
	}
	got, err := SpecFromWire(&w)
	if err != nil || !reflect.DeepEqual(got, want) || got.Hash() != want.Hash() {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	w.Warm[1].Startup.PeriodSeconds = 0
	if _, err := SpecFromWire(&w); err == nil {
		t.Error("a probe without a period was accepted")
	}
}
