package runtimes

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/services"
	"s0.run/internal/procapi"
)

//go:embed runner.py
var runner string

// boot reads the runner from its input, so that the list of processes shows
// something short.
const boot = "import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())).decode())"

// What a service's process is told, and is known by.
const (
	envService  = "SANDBOX0_SERVICE_ID"
	envPort     = "SANDBOX0_SERVICE_PORT"
	envRuntime  = "SANDBOX0_SERVICE_RUNTIME"
	envRevision = "SANDBOX0_SERVICE_REVISION" // ours: changes with what would be started
)

// plan is how a service is started.
type plan struct {
	service  openapi.SandboxAppService
	revision string
	create   procapi.CreateContext
	input    string // what the process is given to read first
}

// settings is what the runner reads after its program.
type settings struct {
	Service        string `json:"service"`
	Socket         string `json:"socket"`
	Handler        string `json:"handler"`
	MaxConcurrency int32  `json:"max_concurrency"`
	Code           string `json:"code"` // base64
}

// newPlan plans a service that can be started.
func newPlan(svc openapi.SandboxAppService) *plan {
	p := &plan{service: svc, revision: revision(svc)}
	env := maps.Clone(svc.Runtime.EnvVars)
	if env == nil {
		env = map[string]string{}
	}
	env[envService], env[envPort] = svc.ID, fmt.Sprint(*svc.Port)
	env[envRuntime], env[envRevision] = string(svc.Runtime.Type), p.revision
	p.create = procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: svc.Runtime.Command}, EnvVars: env}
	if svc.Runtime.Cwd != nil {
		p.create.Cwd = *svc.Runtime.Cwd
	}
	if svc.Runtime.Type == openapi.ServiceRuntimeTypeFunction {
		p.create.CMD.Command = []string{"python3", "-u", "-c", boot}
		p.input = fmt.Sprintf("%d\n%s%s\n", len(runner), runner, functionSettings(svc))
	}
	return p
}

func functionSettings(svc openapi.SandboxAppService) []byte {
	f := svc.Runtime.Function
	s := settings{
		Service: svc.ID, Socket: procapi.FunctionSocket(svc.ID), Handler: *f.Handler,
		Code: base64.StdEncoding.EncodeToString([]byte(services.Code(svc))),
	}
	if f.MaxConcurrency != nil {
		s.MaxConcurrency = *f.MaxConcurrency
	}
	return mustJSON(s)
}

// revision identifies what would be started.
func revision(svc openapi.SandboxAppService) string {
	h := sha256.New()
	h.Write(mustJSON(struct {
		Port    int32
		Runtime *openapi.ServiceRuntime
	}{*svc.Port, svc.Runtime}))
	if svc.Runtime.Type == openapi.ServiceRuntimeTypeFunction {
		h.Write([]byte(runner))
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("what was decoded from JSON must encode: " + err.Error())
	}
	return b
}
