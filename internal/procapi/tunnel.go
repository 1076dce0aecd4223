package procapi

// POST [PathTunnel] is one connection to a service inside the sandbox. The
// request's body is what goes to the service, the body of the 200 answer what
// comes from it, at the same time and as it comes. The end of the request's body
// closes the service's input; the end of the answer is the service's own end. A
// connection that broke breaks the answer off.
//
// The query names the service by exactly one of its parameters.
const (
	TunnelPort     = "port"     // TCP on the loopback, 1 to 65535
	TunnelFunction = "function" // the listener of a function: see [FunctionSocket]
)

// Codes of a tunnel that was not opened.
const (
	CodePortRefused    = "port_refused"     // 503: nothing listens
	CodeTooManyTunnels = "too_many_tunnels" // 429
)

// MaxTunnels bounds the open tunnels of one sandbox.
const MaxTunnels = 1024

// FunctionSocket is the abstract unix socket on which a function's runner
// listens: no port of the tenant's is taken, and it goes with the process.
func FunctionSocket(service string) string { return "@s0/function/" + service }
