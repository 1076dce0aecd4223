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
	"s0.run/internal/sandbox"
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

// plain are the rules of a team on nodes with gVisor alone.
var plain = Rules{Cluster: "local", Offers: func(c sandbox.RuntimeClass) bool { return c == sandbox.GVisor }}

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
		if err := plain.Validate(spec); err != nil {
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
		"no image":           {`{"mainContainer":{"image":"","resources":{"memory":"2Gi"}}}`, "image"},
		"image with spaces":  {`{"mainContainer":{"image":"a b","resources":{"memory":"2Gi"}}}`, "image"},
		"image as a flag":    {`{"mainContainer":{"image":"--x","resources":{"memory":"2Gi"}}}`, "image"},
		"no memory":          {`{"mainContainer":{"image":"a","resources":{}}}`, "memory is required"},
		"other ratio":        {`{"mainContainer":{"image":"a","resources":{"cpu":"1","memory":"2Gi"}}}`, "cpu × 4Gi"},
		"too little":         {`{"mainContainer":{"image":"a","resources":{"memory":"64Mi"}}}`, "memory"},
		"too much":           {`{"mainContainer":{"image":"a","resources":{"memory":"64Gi"}}}`, "memory"},
		"D03 cpu that wraps": {`{"mainContainer":{"image":"a","resources":{"cpu":"4294967796m","memory":"2Gi"}}}`, "8 of cpu"}, // 500m and 2⁶⁴ bytes' worth
		"wraps alone":        {`{"mainContainer":{"image":"a","resources":{"cpu":"4294967796m"}}}`, "8 of cpu"},
		"memory that wraps":  {`{"mainContainer":{"image":"a","resources":{"memory":"9223372036854775807"}}}`, "32Gi of memory"},
		"nothing":            {`{"mainContainer":{"image":"a","resources":{"memory":"0"}}}`, "greater than 0"},
		"max below min":      {`{` + container + `,"pool":{"minIdle":2,"maxIdle":1}}`, "pool"},
		"negative pool":      {`{` + container + `,"pool":{"minIdle":-1,"maxIdle":1}}`, "pool"},
		"huge pool":          {`{` + container + `,"pool":{"minIdle":1,"maxIdle":1000000}}`, "pool"},
		"env twice":          {`{"mainContainer":{"image":"a","resources":{"memory":"2Gi"},"env":[{"name":"A","value":"1"},{"name":"A","value":"2"}]}}`, "twice"},
		"A18 env name":       {`{` + container + `,"envVars":{"A\nB":"1"}}`, "name"},
		"A18 env value":      {`{` + container + `,"envVars":{"A":"\u0000"}}`, "NUL"},
		"A18 tag":            {`{` + container + `,"tags":["a\u0007"]}`, "printable"},
		"mount: relative":    {`{` + container + `,"volumeMounts":[{"name":"a","mountPath":"data"}]}`, "clean absolute"},
		"mount: dots":        {`{` + container + `,"volumeMounts":[{"name":"a","mountPath":"/data/../etc"}]}`, "clean absolute"},
		"mount: root":        {`{` + container + `,"volumeMounts":[{"name":"a","mountPath":"/"}]}`, "clean absolute"},
		"mount: reserved":    {`{` + container + `,"volumeMounts":[{"name":"a","mountPath":"/var/lib/sandbox0/procd"}]}`, "reserved"},
		"mount: above":       {`{` + container + `,"volumeMounts":[{"name":"a","mountPath":"/var/lib"}]}`, "reserved"},
		"mount: proc":        {`{` + container + `,"volumeMounts":[{"name":"a","mountPath":"/proc/sys"}]}`, "reserved"},
		"mount: name twice":  {`{` + container + `,"volumeMounts":[{"name":"a","mountPath":"/a"},{"name":"a","mountPath":"/b"}]}`, "twice"},
		"mount: path twice":  {`{` + container + `,"volumeMounts":[{"name":"a","mountPath":"/a"},{"name":"b","mountPath":"/a"}]}`, "twice"},
		"A18 mount name":     {`{` + container + `,"volumeMounts":[{"name":"a\nb","mountPath":"/a"}]}`, "DNS label"},
		"A18 mount path":     {`{` + container + `,"volumeMounts":[{"name":"a","mountPath":"/a\u0000b"}]}`, "clean absolute"},
		"net: lists":         {`{` + container + `,"network":{"mode":"allow-all","egress":{"allowedDomains":["a.test"]}}}`, "block-all alone"},
		"net: mixed":         {`{` + container + `,"network":{"mode":"block-all","egress":{"allowedDomains":["a.test"],"trafficRules":[{"action":"allow","domains":["b.test"]}]}}}`, "together"},
		"net: no matcher":    {`{` + container + `,"network":{"mode":"block-all","egress":{"trafficRules":[{"action":"allow"}]}}}`, "at least one"},
		"net: cidr":          {`{` + container + `,"network":{"mode":"block-all","egress":{"allowedCidrs":["10.0.0.300/8"]}}}`, "not a CIDR"},
		"net: domain":        {`{` + container + `,"network":{"mode":"block-all","egress":{"allowedDomains":["a b"]}}}`, "not a domain"},
		"net: ports":         {`{` + container + `,"network":{"mode":"block-all","egress":{"allowedPorts":[{"port":80,"endPort":79}]}}}`, "endPort must be"},
		"net: credentials":   {`{` + container + `,"network":{"mode":"block-all","credentialBindings":[{"ref":"a","sourceRef":"b","projection":{"type":"http_headers"}}]}}`, "credentialBindings[0]"},
		"sidecars":           {`{` + container + `,"sidecars":[{}]}`, "sidecars"},
		"warm: no command":   {`{` + container + `,"warmProcesses":[{"name":"web","type":"cmd"}]}`, "spec.warmProcesses: web: command is required"},
		"warm: a command":    {`{` + container + `,"warmProcesses":[{"type":"repl","command":["python3"]}]}`, "process-1: a warm process of type repl must not have a command"},
		"warm: type":         {`{` + container + `,"warmProcesses":[{"name":"web","type":"daemon"}]}`, "want repl or cmd"},
		"warm: twice":        {`{` + container + `,"warmProcesses":[{"name":"a","type":"repl"},{"name":"a","type":"repl"}]}`, "twice"},
		"warm: two actions":  {warmProbe(`"process":{},"exec":{"command":["true"]}`), "web: probes.readiness: want exactly one of"},
		"warm: no action":    {warmProbe(`"periodSeconds":1`), "want exactly one of"},
		"warm: empty exec":   {warmProbe(`"exec":{"command":[]}`), "exec: command is required"},
		"warm: other host":   {warmProbe(`"httpGet":{"port":80,"host":"169.254.169.254"}`), "localhost alone"},
		"warm: other port":   {warmProbe(`"tcpSocket":{"port":80,"host":"example.com"}`), "localhost alone"},
		"warm: no port":      {warmProbe(`"tcpSocket":{"port":0}`), "port"},
		"warm: scheme":       {warmProbe(`"httpGet":{"port":80,"scheme":"ftp"}`), "want HTTP or HTTPS"},
		"warm: negative":     {warmProbe(`"process":{},"periodSeconds":-1`), "periodSeconds"},
		"A18 warm: header":   {warmProbe(`"httpGet":{"port":80,"httpHeaders":[{"name":"A","value":"b\r\nC: d"}]}`), "control characters"},
		"C01 runc":           {`{` + container + `,"runtimeClassName":"runc"}`, "runc shares the kernel"},
		"kata":               {`{` + container + `,"runtimeClassName":"kata"}`, "no node has Kata"},
		"idleTimeout":        {`{` + container + `,"lifecycle":{"idleTimeout":1}}`, "lifecycle.idleTimeout"},
		"preStop":            {`{` + container + `,"lifecycle":{"preStop":{"command":["true"]}}}`, "lifecycle.preStop"},
		"negative ttl":       {`{` + container + `,"lifecycle":{"defaultTTL":-1}}`, "negative"},
		"ttl over the max":   {`{` + container + `,"lifecycle":{"defaultTTL":9,"maxTTL":8}}`, "maxTTL"},
		"ephemeral":          {`{"mainContainer":{"image":"a","resources":{"memory":"2Gi","ephemeralStorage":"2Ti"}}}`, "ephemeralStorage"},
	} {
		err := plain.Validate(decode(t, c.spec))
		if !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(errdefs.From(err).Message, c.says) {
			t.Errorf("%s: %v, want an error about %s", name, err, c.says)
		}
	}
}

const anImage = `"image":"a","resources":{"memory":"2Gi"}`

// What is the operator's alone is refused to others, and to him where it has no effect.
func TestAdminOnlyFields(t *testing.T) {
	t.Parallel()
	operator := plain
	operator.Operator = true
	for name, c := range map[string]struct {
		spec   string
		served bool
	}{
		"imagePullPolicy":        {`{"mainContainer":{` + anImage + `,"imagePullPolicy":"IfNotPresent"}}`, true},
		"another pull policy":    {`{"mainContainer":{` + anImage + `,"imagePullPolicy":"Always"}}`, false},
		"securityContext":        {`{"mainContainer":{` + anImage + `,"securityContext":{"privileged":true}}}`, false},
		"no securityContext":     {`{"mainContainer":{` + anImage + `,"securityContext":{}}}`, false},
		"pod":                    {`{"mainContainer":{` + anImage + `},"pod":{"serviceAccountName":"x"}}`, false},
		"clusterId":              {`{"mainContainer":{` + anImage + `},"clusterId":"local"}`, true},
		"clusterId of elsewhere": {`{"mainContainer":{` + anImage + `},"clusterId":"other"}`, false},
	} {
		if err := plain.Validate(decode(t, c.spec)); !errdefs.Is(err, errdefs.PermissionDenied) {
			t.Errorf("%s by a team: %v", name, err)
		}
		err := operator.Validate(decode(t, c.spec))
		if c.served && err != nil || !c.served && !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%s by the operator: %v", name, err)
		}
		shown := Shown(*decode(t, c.spec))
		if err := plain.Validate(&shown); err != nil {
			t.Errorf("%s: what a team is shown, it can't create again: %v", name, err)
		}
	}
}

func TestC01_RuntimeClassesAreThoseOfTheNodes(t *testing.T) {
	t.Parallel()
	for class, want := range map[string]bool{"gvisor": true, "runc": false, "kata": false} {
		spec := decode(t, `{"mainContainer":{`+anImage+`},"runtimeClassName":"`+class+`"}`)
		if err := plain.Validate(spec); (err == nil) != want {
			t.Errorf("%s where only gVisor is: %v", class, err)
		}
		everywhere := Rules{Offers: func(sandbox.RuntimeClass) bool { return true }}
		if err := everywhere.Validate(spec); err != nil {
			t.Errorf("%s where it is offered: %v", class, err)
		}
		if slot, err := slotSpec(spec); err != nil || string(slot.RuntimeClass) != class {
			t.Errorf("%s: its slots are %s: %v", class, slot.RuntimeClass, err)
		}
	}
}

func TestTTLs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		lifecycle string
		asked     *int32
		want      int32
		refused   bool
	}{
		{`{}`, nil, 0, false}, {`{}`, new(int32(9)), 9, false},
		{`{"defaultTTL":5}`, nil, 5, false}, {`{"defaultTTL":5}`, new(int32(0)), 0, false},
		{`{"maxTTL":8}`, nil, 8, false}, {`{"maxTTL":8}`, new(int32(8)), 8, false},
		{`{"maxTTL":8}`, new(int32(9)), 0, true}, {`{"maxTTL":8}`, new(int32(0)), 0, true},
		{`{"defaultTTL":5,"maxTTL":8}`, nil, 5, false},
	} {
		tmpl := &Template{Spec: *decode(t, `{"mainContainer":{`+anImage+`},"lifecycle":`+c.lifecycle+`}`)}
		if err := plain.Validate(&tmpl.Spec); err != nil {
			t.Fatal(err)
		}
		got, err := tmpl.TTL(c.asked)
		if errdefs.Is(err, errdefs.InvalidArgument) != c.refused || !c.refused && got != c.want {
			t.Errorf("%s, asked for %v: %d %v", c.lifecycle, c.asked, got, err)
		}
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
	if err := plain.Validate(spec); err != nil {
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
	put := func(image string) {
		t.Helper()
		if err := (Builtins{Images: map[string]string{"default": image}, PoolMin: 1, PoolMax: 5}).Put(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	put("registry/default:1")
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
	if err != nil || got.Slot.Image != "registry/default:1" || got.MinIdle != 1 || got.MaxIdle != 5 || len(c.All()) != len(builtins) {
		t.Fatalf("%+v: %v", got, err)
	}
	if got.PoolKey != unloaded.PoolKey || !got.OfPool(got.PoolKey) || got.OfPool("x") {
		t.Fatalf("pool key %q", got.PoolKey)
	}
	put("registry/default:2")
	if err := c.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again, _ := c.Find(t.Context(), team, "default"); again.PoolKey == got.PoolKey || !again.OfPool(got.PoolKey) {
		t.Fatalf("another spec must have another pool of the same template: %q %q", again.PoolKey, got.PoolKey)
	}
}

// A builtin template without an image is listed, keeps nothing warm and says what
// to run; a template with a policy is stored, and nothing is made from it (R5).
func TestWhatIsUnavailable(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := NewCatalog(s, "local.test", slog.New(slog.DiscardHandler))
	put := func(images map[string]string) *Template {
		t.Helper()
		if err := (Builtins{Images: images}).Put(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if err := c.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		browser, err := c.Find(t.Context(), uuid.New(), "browser")
		if err != nil {
			t.Fatal(err)
		}
		return browser
	}
	if b := put(map[string]string{"default": "a"}); b.MaxIdle != 0 || b.Unavailable == nil || !strings.Contains(b.Unavailable.Message, "make images-all") {
		t.Errorf("not built: %+v", b)
	}
	if b := put(map[string]string{"default": "a", "browser": "b"}); b.MaxIdle != 2 || b.Unavailable != nil || b.Slot.Image != "b" || len(b.Slot.Warm) != 1 {
		t.Errorf("built: %+v", b)
	}
	policed, err := c.Decode(store.Template{Spec: json.RawMessage(`{"mainContainer":{` + anImage + `},"pool":{"minIdle":1,"maxIdle":1},"network":{"mode":"block-all"}}`)})
	if err != nil || policed.MaxIdle != 1 || policed.Unavailable != nil { // claims see to it that somebody enforces it
		t.Errorf("with a policy: %+v, %v", policed, err)
	}
	for _, capture := range []store.Capture{{State: store.CaptureCreating}, {State: store.CaptureFailed, Message: "no room"}} {
		made, err := c.Decode(store.Template{Spec: json.RawMessage(`{"mainContainer":{` + anImage + `},"pool":{"minIdle":1,"maxIdle":1}}`), Capture: &capture})
		if err != nil || made.MaxIdle != 0 || !errdefs.Is(made.Unavailable, errdefs.Conflict) || !strings.Contains(made.Unavailable.Message, capture.Message) {
			t.Errorf("%s: %+v, %v", capture.State, made, err)
		}
	}
}
