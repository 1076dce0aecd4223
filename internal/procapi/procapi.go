// Package procapi is the wire between procd, PID 1 of a sandbox, and the host.
//
// procd dials the unix socket that noded listens on ([Socket]) and then is the
// HTTP/2 server of that one connection; noded is the client. A request's JSON
// body and a success's JSON body are the `data` of the REST contract, so that
// the API server forwards them without translation; an error is an [Error] with
// its HTTP status. A context's live bytes travel as [Frame]s over one
// full-duplex request.
//
// Everything that arrives from procd is data from a hostile place: readers bound
// its size and check its shape, and never derive a path, an id or a permission
// from it. The package owns no state and imports package warm's types and the
// standard library alone.
package procapi

import "time"

// Where things are inside every sandbox.
const (
	// Dir is bound read-only from the slot's directory on the host.
	Dir = "/run/s0"
	// Socket is where noded listens and procd dials. The path is the identity:
	// no secret is exchanged.
	Socket = Dir + "/node.sock"
	// TokenFile is what noded shows first on each connection to a sandbox that is a
	// virtual machine, where procd listens: see GuestFlag. Only root may read it.
	TokenFile = Dir + "/token"
	// Binary is procd itself, the sandbox's PID 1.
	Binary = Dir + "/bin/procd"
	// InstanceFile has one line: the sandbox's id and generation. Who finds another
	// one there than before is a clone, or has been resumed: what it took for unique or
	// random, and keeps in memory, may be in other sandboxes, too.
	InstanceFile = Dir + "/instance"
	// CABundle has the certificate authorities that the node believes and, when a policy
	// has the sandbox's TLS opened, the one that answers it then. KnownHosts is for ssh
	// what that is for TLS, and there only when a policy asks for it.
	CABundle   = Dir + "/ca-bundle.pem"
	KnownHosts = Dir + "/ssh_known_hosts"
	// Workspace is where relative paths resolve and processes start.
	Workspace = "/workspace"
	// EventPort is the loopback port inside the sandbox for events and envd.
	EventPort = 49983
)

// A sandbox that is a virtual machine sees no socket of the host's. There procd is
// started with GuestFlag: it listens on GuestPort of the machine's vsock, and noded
// dials.
const (
	GuestFlag  = "--guest"
	GuestPort  = 49984
	TokenBytes = 32 // of a token, which is text
)

// Limits that both ends enforce.
const (
	MaxJSONBytes  = 16 << 20  // a JSON body in either direction
	MaxFileBytes  = 100 << 20 // one file written through the API
	MaxArgs       = 4096      // argv entries of a command
	MaxArgBytes   = 1 << 20   // argv and environment together
	LogBytes      = 4 << 20   // output that a context keeps for replay, in bytes
	MaxContexts   = 256       // live contexts of a sandbox
	MaxInputBytes = 1 << 20   // one input call

	MaxKept      = 512       // contexts that outlive their processes
	MaxKeptBytes = 256 << 10 // of what is told of them, as JSON
)

// Paths of procd's HTTP API. Below Contexts and Files they are the contract's
// paths with `/api/v1/sandboxes/{id}` taken off.
const (
	PathHello    = "/hello"    // GET → Hello
	PathInit     = "/init"     // POST Init → {}
	PathEnv      = "/env"      // PUT Env → {}
	PathHangUp   = "/hangup"   // POST → the end of the connection
	PathKept     = "/kept"     // GET → KeptContexts
	PathContexts = "/contexts" // and /contexts/{ctx}[/restart|input|exec|resize|signal|stats|attach]
	PathFiles    = "/files"    // and /files/{stat,list,move,watch,archive,search}
	PathTunnel   = "/tunnel"   // POST: one TCP connection to a port inside
	PathEvents   = "/events"   // GET: what happened inside, for noded alone
	PathLogs     = "/logs"     // GET: what processes printed
	PathMounts   = "/mounts"   // POST, DELETE Mount → {}: for noded alone
)

// A request to PathHangUp is answered by the end of the connection, which procd
// closes itself: noded is about to save the sandbox, and what is open then would
// never be closed for either end. procd dials again at once and in quick succession,
// until noded, perhaps of another node, answers the image's next life.

// TimeoutHeader on a request that waits for a process says how long it may, in
// milliseconds, up to MaxTimeout; without it, [DefaultTimeout]. Then the answer
// is 408 exec_timeout, and the process goes on.
const TimeoutHeader = "S0-Timeout"

// Bounds of a wait for a process.
const (
	DefaultTimeout = 30 * time.Second
	MaxTimeout     = 24 * time.Hour
)

// EnvSandboxID is the variable that tells every process which sandbox it is in.
const EnvSandboxID = "SANDBOX0_SANDBOX_ID"

// Hello is procd's first answer on a connection.
type Hello struct {
	Version string `json:"version"` // procd's build
	BootID  string `json:"boot_id"` // new whenever procd starts; kept across noded restarts
	Ready   bool   `json:"ready"`   // warm processes, if any, are healthy
}

// Init tells procd which sandbox it is, before anybody claims it. It is applied
// once per generation: a repeated Init of the same generation changes nothing, an
// older one is refused. What a claim changes afterwards travels as [Env].
type Init struct {
	SandboxID  string            `json:"sandbox_id"`
	Generation uint64            `json:"generation"`
	Env        map[string]string `json:"env,omitempty"`      // the template's, and EnvSandboxID
	Hostname   string            `json:"hostname,omitempty"` // set inside
	Now        time.Time         `json:"now,omitzero"`       // the host's clock, for a restored clock to step to
	Mounts     []Mount           `json:"mounts,omitempty"`   // those that are not there yet, before anything is started
	Warm       []WarmProcess     `json:"warm,omitempty"`     // to be started now
	Kept       []KeptContext     `json:"kept,omitempty"`     // of an earlier life, whose files alone there are
}

// KeptContext is what it takes to have a context again, under its id, in a sandbox that
// starts from its files without its processes: a REPL gets a new interpreter, and a
// command is one that has ended.
type KeptContext struct {
	ID        string        `json:"id"`
	CreatedAt time.Time     `json:"created_at"`
	Request   CreateContext `json:"request"`
	Exit      *Exit         `json:"exit,omitempty"` // nil: it had not ended
}

// KeptContexts is the answer to GET /kept: as many as the bounds allow, oldest first.
type KeptContexts struct {
	Contexts []KeptContext `json:"contexts"`
}

// Env replaces the environment that [Init] gave, for processes that start from now on.
type Env struct {
	Env map[string]string `json:"env"`
	// Mounts are made first, those that are not there yet.
	Mounts []Mount `json:"mounts,omitempty"`
	// RestartWarm restarts the warm processes that would see something else if they
	// started now: another environment, or what is mounted with this. The answer
	// comes when the old ones are dead and the new ones started; their probes are not
	// waited for.
	RestartWarm bool `json:"restart_warm,omitempty"`
}

// Error is procd's error body: the contract's code and a message.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// PTYSize is a terminal's size in character cells.
type PTYSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Prompt tells when a REPL waits for input.
type Prompt struct {
	CustomPrompt string `json:"custom_prompt,omitempty"`
}

// Ready tells when a REPL may be written to first.
type Ready struct {
	Mode           string `json:"mode,omitempty"` // prompt_token or startup_delay
	Token          string `json:"token,omitempty"`
	StartupDelayMS int    `json:"startup_delay_ms,omitempty"`
}

// Candidate is one program that can serve a REPL; the first that exists is used.
type Candidate struct {
	Name string   `json:"name"`
	Args []string `json:"args,omitempty"`
}

// EnvVar is one variable of a REPL's own environment.
type EnvVar struct {
	Name      string `json:"name"`
	Value     string `json:"value,omitempty"`
	ValueFrom string `json:"value_from,omitempty"`
}

// REPLConfig describes a custom REPL.
type REPLConfig struct {
	Name        string      `json:"name"`
	DisplayName string      `json:"display_name,omitempty"`
	Description string      `json:"description,omitempty"`
	Candidates  []Candidate `json:"candidates"`
	Env         []EnvVar    `json:"env,omitempty"`
	DefaultTerm string      `json:"default_term,omitempty"`
	Prompt      *Prompt     `json:"prompt,omitempty"`
	Ready       *Ready      `json:"ready,omitempty"`
}

// REPLRequest is the `repl` part of a [CreateContext].
type REPLRequest struct {
	Alias  string      `json:"alias,omitempty"`
	Input  string      `json:"input,omitempty"`
	Config *REPLConfig `json:"repl_config,omitempty"`
}

// CMDRequest is the `cmd` part of a [CreateContext]: an argv, never a shell line.
type CMDRequest struct {
	Command []string `json:"command"`
}

// CreateContext is the contract's CreateContextRequest.
type CreateContext struct {
	Type           string            `json:"type"` // repl or cmd
	REPL           *REPLRequest      `json:"repl,omitempty"`
	CMD            *CMDRequest       `json:"cmd,omitempty"`
	WaitUntilDone  bool              `json:"wait_until_done,omitempty"`
	Cwd            string            `json:"cwd,omitempty"`
	EnvVars        map[string]string `json:"env_vars,omitempty"`
	PTYSize        *PTYSize          `json:"pty_size,omitempty"`
	IdleTimeoutSec int32             `json:"idle_timeout_sec,omitempty"`
	TTLSec         int32             `json:"ttl_sec,omitempty"`
}

// Context is the contract's ContextResponse.
type Context struct {
	ID        string            `json:"id"`
	Type      string            `json:"type"`
	Alias     string            `json:"alias,omitempty"`
	Command   []string          `json:"command,omitempty"`
	Cwd       string            `json:"cwd,omitempty"`
	EnvVars   map[string]string `json:"env_vars"`
	Running   bool              `json:"running"`
	Paused    bool              `json:"paused"`
	CreatedAt time.Time         `json:"created_at"`
	OutputRaw *string           `json:"output_raw,omitempty"`
	Stdout    *string           `json:"stdout,omitempty"`
	Stderr    *string           `json:"stderr,omitempty"`
	ExitCode  *int              `json:"exit_code,omitempty"`
	State     string            `json:"state,omitempty"` // running, paused, stopped, killed, crashed
	Truncated uint64            `json:"truncated_bytes,omitempty"`
}

// ContextList is the answer to GET /contexts.
type ContextList struct {
	Contexts []Context `json:"contexts"`
}

// ExecRequest and InputRequest carry bytes for a context as a JSON string.
type ExecRequest struct {
	Data string `json:"data"`
}

// ExecResult is what one exec printed. Of output that the log or an answer can't
// hold the beginning is missing, and Truncated says how much.
type ExecResult struct {
	OutputRaw string  `json:"output_raw"`
	Stdout    *string `json:"stdout,omitempty"`
	Stderr    *string `json:"stderr,omitempty"`
	ExitCode  *int    `json:"exit_code,omitempty"`
	State     string  `json:"state,omitempty"`
	Truncated uint64  `json:"truncated_bytes,omitempty"`
}

// SignalRequest names a signal: TERM, SIGTERM or 15.
type SignalRequest struct {
	Signal string `json:"signal"`
}

// ContextStats is a context and the resource usage of its process tree, all zero
// once the process has ended.
type ContextStats struct {
	Type    string `json:"type"`
	Alias   string `json:"alias,omitempty"`
	Running bool   `json:"running"`
	Paused  bool   `json:"paused"`

	PID       int   `json:"pid"`
	Processes int   `json:"processes"`
	Threads   int   `json:"threads"`
	CPUNanos  int64 `json:"cpu_nanos"`
	RSSBytes  int64 `json:"rss_bytes"`
	VMSBytes  int64 `json:"vms_bytes"`
}

// FileInfo is the contract's FileInfo.
type FileInfo struct {
	Name       string    `json:"name"`
	Path       string    `json:"path"`
	Type       string    `json:"type"` // file, dir, symlink
	Size       int64     `json:"size"`
	Mode       string    `json:"mode"` // "%04o"
	ModTime    time.Time `json:"mod_time"`
	IsLink     bool      `json:"is_link"`
	LinkTarget string    `json:"link_target,omitempty"`
}

// FileList is the answer to GET /files/list.
type FileList struct {
	Entries []FileInfo `json:"entries"`
}

// MoveRequest renames a path.
type MoveRequest struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
}
