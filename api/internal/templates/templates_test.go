package templates

import (
	"encoding/json"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/google/uuid"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/s0test"
	"s0.run/internal/warm"
)

func decode(t *testing.T, s string) *openapi.TemplateSpec {
	t.Helper()
	var spec openapi.TemplateSpec
	if err := json.Unmarshal([]byte(s), &spec); err != nil {
		t.Fatal(err)
	}
	return &spec
}

func TestValidSpecs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spec        string
		memory, cpu int64
	}{
		"memory alone":   {`{"mainContainer":{"image":"a","resources":{"memory":"2Gi"}}}`, 2 << 30, 500},
		"cpu alone":      {`{"mainContainer":{"image":"a","resources":{"cpu":"1"}}}`, 4 << 30, 1000},
		"both":           {`{"mainContainer":{"image":"a","resources":{"cpu":"500m","memory":"2Gi"}},"pool":{"minIdle":0,"maxIdle":0}}`, 2 << 30, 500},
		"smallest":       {`{"mainContainer":{"image":"a","resources":{"memory":"128Mi"}}}`, 128 << 20, 31},
		"derived copies": {`{"mainContainer":{"image":"localhost:5000/x/y@sha256:0123","resources":{"cpu":"31m","memory":"128Mi"}},"runtimeClassName":"gvisor"}`, 128 << 20, 31},
	} {
		spec := decode(t, c.spec)
		if err := Validate(spec); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		slot, err := slotSpec(spec)
		if err != nil || slot.MemoryBytes != c.memory || slot.CPUMillis != c.cpu || slot.DiskBytes != 8<<30 {
			t.Errorf("%s: %+v %v", name, slot, err)
		}
	}
}

func TestInvalidSpecs(t *testing.T) {
	t.Parallel()
	const container = `"mainContainer":{"image":"a","resources":{"memory":"2Gi"}}`
	for name, c := range map[string]struct{ spec, says string }{
		"no image":          {`{"mainContainer":{"image":"","resources":{"memory":"2Gi"}}}`, "image"},
		"image with spaces": {`{"mainContainer":{"image":"a b","resources":{"memory":"2Gi"}}}`, "image"},
		"image as a flag":   {`{"mainContainer":{"image":"--x","resources":{"memory":"2Gi"}}}`, "image"},
		"no memory":         {`{"mainContainer":{"image":"a","resources":{}}}`, "memory is required"},
		"other ratio":       {`{"mainContainer":{"image":"a","resources":{"cpu":"1","memory":"2Gi"}}}`, "cpu × 4Gi"},
		"too little":        {`{"mainContainer":{"image":"a","resources":{"memory":"64Mi"}}}`, "memory"},
		"too much":          {`{"mainContainer":{"image":"a","resources":{"memory":"64Gi"}}}`, "memory"},
		"nothing":           {`{"mainContainer":{"image":"a","resources":{"memory":"0"}}}`, "greater than 0"},
		"max below min":     {`{` + container + `,"pool":{"minIdle":2,"maxIdle":1}}`, "pool"},
		"negative pool":     {`{` + container + `,"pool":{"minIdle":-1,"maxIdle":1}}`, "pool"},
		"huge pool":         {`{` + container + `,"pool":{"minIdle":1,"maxIdle":1000000}}`, "pool"},
		"env twice":         {`{"mainContainer":{"image":"a","resources":{"memory":"2Gi"},"env":[{"name":"A","value":"1"},{"name":"A","value":"2"}]}}`, "twice"},
		"A18 env name":      {`{` + container + `,"envVars":{"A\nB":"1"}}`, "name"},
		"A18 env value":     {`{` + container + `,"envVars":{"A":"\u0000"}}`, "NUL"},
		"A18 tag":           {`{` + container + `,"tags":["a\u0007"]}`, "printable"},
		"privileged":        {`{"mainContainer":{"image":"a","resources":{"memory":"2Gi"},"securityContext":{"privileged":true}}}`, "securityContext"},
		"pod":               {`{` + container + `,"pod":{"serviceAccountName":"x"}}`, "pod"},
		"sidecars":          {`{` + container + `,"sidecars":[{}]}`, "sidecars"},
		"warm: no command":  {`{` + container + `,"warmProcesses":[{"name":"web","type":"cmd"}]}`, "spec.warmProcesses: web: command is required"},
		"warm: a command":   {`{` + container + `,"warmProcesses":[{"type":"repl","command":["python3"]}]}`, "process-1: a warm process of type repl must not have a command"},
		"warm: type":        {`{` + container + `,"warmProcesses":[{"name":"web","type":"daemon"}]}`, "want repl or cmd"},
		"warm: twice":       {`{` + container + `,"warmProcesses":[{"name":"a","type":"repl"},{"name":"a","type":"repl"}]}`, "twice"},
		"warm: two actions": {warmProbe(`"process":{},"exec":{"command":["true"]}`), "web: probes.readiness: want exactly one of"},
		"warm: no action":   {warmProbe(`"periodSeconds":1`), "want exactly one of"},
		"warm: empty exec":  {warmProbe(`"exec":{"command":[]}`), "exec: command is required"},
		"warm: other host":  {warmProbe(`"httpGet":{"port":80,"host":"169.254.169.254"}`), "localhost alone"},
		"warm: other port":  {warmProbe(`"tcpSocket":{"port":80,"host":"example.com"}`), "localhost alone"},
		"warm: no port":     {warmProbe(`"tcpSocket":{"port":0}`), "port"},
		"warm: scheme":      {warmProbe(`"httpGet":{"port":80,"scheme":"ftp"}`), "want HTTP or HTTPS"},
		"warm: negative":    {warmProbe(`"process":{},"periodSeconds":-1`), "periodSeconds"},
		"A18 warm: header":  {warmProbe(`"httpGet":{"port":80,"httpHeaders":[{"name":"A","value":"b\r\nC: d"}]}`), "control characters"},
		"runc":              {`{` + container + `,"runtimeClassName":"runc"}`, "runtimeClassName"},
		"maxTTL":            {`{` + container + `,"lifecycle":{"maxTTL":1}}`, "lifecycle"},
		"ephemeral":         {`{"mainContainer":{"image":"a","resources":{"memory":"2Gi","ephemeralStorage":"2Ti"}}}`, "ephemeralStorage"},
	} {
		err := Validate(decode(t, c.spec))
		if !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(errdefs.From(err).Message, c.says) {
			t.Errorf("%s: %v, want an error about %s", name, err, c.says)
		}
	}
	if err := Validate(decode(t, `{`+container+`,"network":{"mode":"block-all"}}`)); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("R5: a policy that nothing enforces: %v", err)
	}
}

func warmProbe(probe string) string {
	return `{"mainContainer":{"image":"a","resources":{"memory":"2Gi"}},"warmProcesses":[{"name":"web","type":"cmd","command":["a"],"probes":{"readiness":{` + probe + `}}}]}`
}

func TestWarmProcesses(t *testing.T) {
	t.Parallel()
	spec := decode(t, `{"mainContainer":{"image":"a","resources":{"memory":"2Gi"}},"warmProcesses":[
		{"type":"repl","alias":"python","restartOnClaim":false},
		{"name":"web","type":"cmd","command":["python3","-m","http.server"],"cwd":"/srv","envVars":{"A":"b"},"restartOnClaim":true,"probes":{
			"startup":{"httpGet":{"port":8000,"scheme":"https","host":"127.0.0.1","httpHeaders":[{"name":"X","value":"y"}]},"failureThreshold":30},
			"readiness":{"exec":{"command":["check"]},"periodSeconds":1,"timeoutSeconds":2,"successThreshold":3,"initialDelaySeconds":4},
			"liveness":{"tcpSocket":{"port":8000}}}}]}`)
	if err := Validate(spec); err != nil {
		t.Fatal(err)
	}
	slot, err := slotSpec(spec)
	if err != nil {
		t.Fatal(err)
	}
	want := []warm.Process{
		{Name: "process-1", Type: warm.REPL, Alias: "python", KeepOnClaim: true},
		{
			Name: "web", Type: warm.CMD, Command: []string{"python3", "-m", "http.server"}, Cwd: "/srv", Env: map[string]string{"A": "b"},
			Startup: &warm.Probe{
				HTTP:          &warm.HTTPGet{Path: "/", Port: 8000, TLS: true, Headers: []warm.Header{{Name: "X", Value: "y"}}},
				PeriodSeconds: 10, TimeoutSeconds: 5, SuccessThreshold: 1, FailureThreshold: 30,
			},
			Readiness: &warm.Probe{Exec: []string{"check"}, InitialDelaySeconds: 4, PeriodSeconds: 1, TimeoutSeconds: 2, SuccessThreshold: 3, FailureThreshold: 3},
			Liveness:  &warm.Probe{TCPPort: 8000, PeriodSeconds: 10, TimeoutSeconds: 5, SuccessThreshold: 1, FailureThreshold: 3},
		},
	}
	if !reflect.DeepEqual(slot.Warm, want) {
		t.Errorf("%+v, want %+v", slot.Warm, want)
	}
	spec.WarmProcesses = spec.WarmProcesses[:1]
	if other, err := slotSpec(spec); err != nil || other.Hash() == slot.Hash() {
		t.Errorf("other warm processes have the same slots: %v", err)
	}
}

func TestCatalog(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := NewCatalog(s, "local.test", slog.New(slog.DiscardHandler))
	builtin, err := Builtin("registry/default:1", 1, 5)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.PutPublicTemplate(t.Context(), "default", builtin); err != nil {
		t.Fatal(err)
	}
	team := uuid.New()
	unloaded, err := c.Find(t.Context(), team, "default")
	if err != nil || !unloaded.Public() {
		t.Fatalf("a name that is not in memory must be looked up: %v", err)
	}
	if _, err := c.Find(t.Context(), team, "other"); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("unknown: %v", err)
	}
	if err := c.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := c.Find(t.Context(), team, "default")
	if err != nil || got.Slot.Image != "registry/default:1" || got.MinIdle != 1 || got.MaxIdle != 5 || len(c.All()) != 1 {
		t.Fatalf("%+v: %v", got, err)
	}
	if got.PoolKey != unloaded.PoolKey || !got.OfPool(got.PoolKey) || got.OfPool("x") {
		t.Fatalf("pool key %q", got.PoolKey)
	}
	changed, err := Builtin("registry/default:2", 1, 5)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.PutPublicTemplate(t.Context(), "default", changed); err != nil {
		t.Fatal(err)
	}
	if err := c.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again, _ := c.Find(t.Context(), team, "default"); again.PoolKey == got.PoolKey || !again.OfPool(got.PoolKey) {
		t.Fatalf("another spec must have another pool of the same template: %q %q", again.PoolKey, got.PoolKey)
	}
}
