package fakenode

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"

	"s0.run/internal/procapi"
)

// Procd is a procd for sandboxes of a fake node: contexts that echo and files in
// memory, enough for every route to answer.
type Procd struct {
	Sessions Sessions
	Service  string // where every tunnel leads, set before it is used; "": nothing listens

	mu       sync.Mutex
	contexts map[string]*procapi.Context // by sandbox and id
	files    map[string][]byte           // by sandbox and path; nil: a directory
	made     int
	logs     map[string][]procapi.LogLine // by sandbox
	printed  chan struct{}                // closed when there are more
}

// NewProcd makes an empty Procd.
func NewProcd() *Procd {
	return &Procd{contexts: map[string]*procapi.Context{}, files: map[string][]byte{}}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(procapi.Error{Code: code, Message: strings.ReplaceAll(code, "_", " ")})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// ServeHTTP implements http.Handler.
func (p *Procd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sandbox := r.Header.Get(SandboxHeader)
	switch {
	case r.URL.Path == procapi.PathLogs:
		p.serveLogs(w, r, sandbox)
	case r.URL.Path == procapi.PathTunnel:
		p.tunnel(w, r)
	case strings.HasPrefix(r.URL.Path, procapi.PathSessions):
		p.Sessions.ServeHTTP(w, r)
	case strings.HasPrefix(r.URL.Path, procapi.PathFiles):
		p.serveFiles(w, r, sandbox)
	case r.URL.Path == procapi.PathContexts && r.Method == http.MethodPost:
		p.create(w, r, sandbox)
	case r.URL.Path == procapi.PathContexts:
		p.list(w, sandbox)
	default:
		id, op, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, procapi.PathContexts+"/"), "/")
		p.serveContext(w, r, sandbox+" "+id, op)
	}
}

func (p *Procd) create(w http.ResponseWriter, r *http.Request, sandbox string) {
	var req procapi.CreateContext
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest, "invalid_request")
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made++
	c := &procapi.Context{ID: fmt.Sprintf("ctx-%08x", p.made), Type: req.Type, Running: true, CreatedAt: time.Now().UTC(), State: "running"}
	if req.CMD != nil {
		out := strings.Join(req.CMD.Command, " ")
		c.Command, c.Stdout = req.CMD.Command, &out
	}
	p.contexts[sandbox+" "+c.ID] = c
	reply(w, http.StatusCreated, c)
}

func (p *Procd) list(w http.ResponseWriter, sandbox string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list procapi.ContextList
	for key, c := range p.contexts {
		if strings.HasPrefix(key, sandbox+" ") {
			list.Contexts = append(list.Contexts, *c)
		}
	}
	reply(w, http.StatusOK, list)
}

func (p *Procd) serveContext(w http.ResponseWriter, r *http.Request, key, op string) {
	p.mu.Lock()
	c := p.contexts[key]
	p.mu.Unlock()
	if c == nil {
		refuse(w, http.StatusNotFound, "context_not_found")
		return
	}
	switch op {
	case "exec":
		var req procapi.ExecRequest
		json.NewDecoder(r.Body).Decode(&req)
		reply(w, http.StatusOK, procapi.ExecResult{OutputRaw: req.Data, State: "running"})
	case "stats":
		reply(w, http.StatusOK, procapi.ContextStats{Type: c.Type, Running: true, PID: 7, Threads: 1, VMSBytes: 8192, Processes: 1, CPUNanos: 1000, RSSBytes: 4096})
	case "attach":
		if c.Type == "cmd" {
			echo(w, r)
			return
		}
		b, _ := json.Marshal(procapi.Exit{ExitCode: 0, State: "stopped"})
		w.Write(procapi.AppendFrame(nil, procapi.FrameExit, b))
	case "", "restart":
		if r.Method == http.MethodDelete {
			p.mu.Lock()
			delete(p.contexts, key)
			p.mu.Unlock()
		}
		reply(w, http.StatusOK, c)
	default:
		reply(w, http.StatusOK, struct{}{})
	}
}

// echo is a command that prints what it reads, until its reader is gone.
func echo(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	rc.Flush()
	var offset uint64
	for {
		typ, payload, err := procapi.ReadFrame(r.Body, nil)
		if err != nil {
			return
		}
		_, data, err := procapi.Input(payload)
		if typ != procapi.FrameInput || err != nil {
			continue
		}
		w.Write(procapi.AppendFrame(nil, procapi.FrameStdout, binary.BigEndian.AppendUint64(nil, offset), data))
		rc.Flush()
		offset += uint64(len(data))
	}
}

func (p *Procd) serveFiles(w http.ResponseWriter, r *http.Request, sandbox string) {
	path := r.URL.Query().Get("path")
	key := sandbox + " " + path
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	content, there := p.files[key]
	info := procapi.FileInfo{Name: path, Path: path, Type: "file", Size: int64(len(content)), Mode: "0644", ModTime: time.Now().UTC()}
	switch op := strings.TrimPrefix(r.URL.Path, procapi.PathFiles); {
	case op == "/list":
		var list procapi.FileList
		for k := range p.files {
			if name, ok := strings.CutPrefix(k, sandbox+" "); ok {
				list.Entries = append(list.Entries, procapi.FileInfo{Name: name, Path: name, Type: "file", Mode: "0644"})
			}
		}
		sort.Slice(list.Entries, func(i, j int) bool { return list.Entries[i].Name < list.Entries[j].Name })
		reply(w, http.StatusOK, list)
	case op == "/archive" && r.Method == http.MethodPut:
		reply(w, http.StatusOK, procapi.ArchiveResult{Files: 1})
	case op == "/search": // it finds nothing
		json.NewEncoder(w).Encode(procapi.SearchLine{Summary: &procapi.SearchSummary{}})
	case op == "/move":
		var m procapi.MoveRequest
		json.Unmarshal(body, &m)
		if _, ok := p.files[sandbox+" "+m.Source]; !ok {
			refuse(w, http.StatusNotFound, "file_not_found")
			return
		}
		p.files[sandbox+" "+m.Destination] = p.files[sandbox+" "+m.Source]
		delete(p.files, sandbox+" "+m.Source)
		reply(w, http.StatusOK, struct{}{})
	case r.Method == http.MethodDelete:
		delete(p.files, key)
		reply(w, http.StatusOK, struct{}{})
	case r.Method == http.MethodPost:
		if r.URL.Query().Get("mkdir") != "" {
			body = nil
		}
		p.files[key] = body
		reply(w, http.StatusOK, struct{}{})
	case !there:
		refuse(w, http.StatusNotFound, "file_not_found")
	case op == "/stat":
		reply(w, http.StatusOK, info)
	default:
		w.Write(content)
	}
}

func (p *Procd) tunnel(w http.ResponseWriter, r *http.Request) {
	conn, err := net.Dial("tcp", p.Service)
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, procapi.CodePortRefused)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(r.Context(), func() { conn.Close() })()
	go io.Copy(conn, r.Body) // ends with the connection or the body
	rc := http.NewResponseController(w)
	rc.Flush()
	buf := make([]byte, 32<<10)
	for {
		n, err := conn.Read(buf)
		w.Write(buf[:n])
		rc.Flush()
		if err != nil {
			return
		}
	}
}
