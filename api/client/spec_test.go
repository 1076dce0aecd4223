package client_test

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"s0.run/api/client"
)

// Every operation of the spec has a method, and what that method sends is what
// the spec wants.
func TestMethodsMatchSpec(t *testing.T) {
	t.Parallel()
	spec := newSpecServer(t)
	c := spec.client(t)
	for name, callMethod := range methods(t.Context(), c) {
		if err := callMethod(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.Contains(spec.seen(), name) {
			t.Errorf("%s: the method called another operation", name)
		}
	}
	for _, op := range spec.operations() {
		if !slices.Contains(spec.seen(), op) {
			t.Errorf("the client has no method for %s", op)
		}
	}
}

// methods maps operation ids to calls of the methods that serve them.
func methods(ctx context.Context, c *client.Client) map[string]func() error {
	const sb, cx, se, f, vol = "local-abc", "ctx-00000001", "ses-00000001", "a b/ü?#%.txt", "00000000-0000-4000-8000-000000000001"
	session := client.ExecutionSessionSpec{Command: []string{"true"}}
	yes := true
	spec := client.TemplateSpec{MainContainer: client.ContainerSpec{Image: "debian"}}
	return map[string]func() error{
		"getMetadata":       result(func() (any, error) { return c.Metadata(ctx) }),
		"getReadiness":      func() error { return c.Ready(ctx) },
		"listAuthProviders": result(func() (any, error) { return c.AuthProviders(ctx) }),
		"login":             result(func() (any, error) { return c.Login(ctx, "a@example.com", "secret") }),
		"refreshToken":      result(func() (any, error) { return c.RefreshToken(ctx, "r") }),
		"startDeviceLogin":  result(func() (any, error) { return c.StartDeviceLogin(ctx, "corp") }),
		"pollDeviceLogin":   result(func() (any, error) { return c.PollDeviceLogin(ctx, "corp", "d") }),
		"exchangeLoginCode": result(func() (any, error) { return c.ExchangeLoginCode(ctx, "c", "https://example.com/") }),
		"logout":            func() error { return c.Logout(ctx, "r") },
		"changePassword":    func() error { return c.ChangePassword(ctx, "secret", "better secret") },
		"getCurrentUser":    result(func() (any, error) { return c.CurrentUser(ctx) }),
		"listQuotas":        result(func() (any, error) { return c.ListQuotas(ctx) }),
		"getQuota":          result(func() (any, error) { return c.GetQuota(ctx, "active_sandboxes") }),
		"setTeamQuota": result(func() (any, error) {
			return c.SetTeamQuota(ctx, "t", "active_sandboxes", client.SetQuotaRequest{Unlimited: &yes})
		}),
		"unsetTeamQuota":   result(func() (any, error) { return c.UnsetTeamQuota(ctx, "t", "active_sandboxes") }),
		"listUsageWindows": result(func() (any, error) { return c.ListUsageWindows(ctx, client.UsageQuery{}) }),
		"createRegistryCredentials": result(func() (any, error) {
			return c.CreateRegistryCredentials(ctx, "app:v1")
		}),
		"listTeams":   result(func() (any, error) { return c.ListTeams(ctx) }),
		"listAPIKeys": result(func() (any, error) { return c.ListAPIKeys(ctx) }),
		"register": result(func() (any, error) {
			return c.Register(ctx, client.RegisterRequest{Email: "a@example.com", Password: "12345678", Name: "A"})
		}),
		"issueRegionToken": result(func() (any, error) { return c.IssueRegionToken(ctx, "t") }),
		"getActiveTenant":  result(func() (any, error) { return c.ActiveTenant(ctx) }),
		"updateCurrentUser": result(func() (any, error) {
			return c.UpdateUser(ctx, client.UpdateUserRequest{Name: new("A")})
		}),
		"listIdentities": result(func() (any, error) { return c.ListIdentities(ctx) }),
		"deleteIdentity": func() error { return c.DeleteIdentity(ctx, "i") },
		"listSSHKeys":    result(func() (any, error) { return c.ListSSHKeys(ctx) }),
		"createSSHKey":   result(func() (any, error) { return c.CreateSSHKey(ctx, "k", "ssh-ed25519 AAAA") }),
		"deleteSSHKey":   func() error { return c.DeleteSSHKey(ctx, "k") },
		"createTeam":     result(func() (any, error) { return c.CreateTeam(ctx, client.CreateTeamRequest{Name: "T"}) }),
		"getTeam":        result(func() (any, error) { return c.GetTeam(ctx, "t") }),
		"updateTeam": result(func() (any, error) {
			return c.UpdateTeam(ctx, "t", client.UpdateTeamRequest{Name: new("T")})
		}),
		"deleteTeam":       func() error { return c.DeleteTeam(ctx, "t") },
		"transferTeam":     result(func() (any, error) { return c.TransferTeam(ctx, "t", "u") }),
		"listTeamMembers":  result(func() (any, error) { return c.ListTeamMembers(ctx, "t", "a&b") }),
		"addTeamMember":    result(func() (any, error) { return c.AddTeamMember(ctx, "t", "a@example.com", client.RoleViewer) }),
		"updateTeamMember": func() error { return c.UpdateTeamMember(ctx, "t", "u", client.RoleViewer) },
		"removeTeamMember": func() error { return c.RemoveTeamMember(ctx, "t", "u") },
		"listUsers": result(func() (any, error) {
			return c.ListUsers(ctx, client.ListUsersOptions{Query: "a", Limit: 7, Offset: 3})
		}),
		"updateUserRights": result(func() (any, error) {
			return c.UpdateUserRights(ctx, "u", client.UserRightsRequest{Disabled: &yes})
		}),
		"listRegions": result(func() (any, error) { return c.ListRegions(ctx) }),
		"getRegion":   result(func() (any, error) { return c.GetRegion(ctx, "r") }),
		"createRegion": result(func() (any, error) {
			return c.CreateRegion(ctx, client.CreateRegionRequest{ID: "aws-us-east-1", RegionalGatewayURL: "https://example.com"})
		}),
		"updateRegion": result(func() (any, error) {
			return c.UpdateRegion(ctx, "r", client.UpdateRegionRequest{Enabled: &yes})
		}),
		"deleteRegion": func() error { return c.DeleteRegion(ctx, "r") },
		"createAPIKey": result(func() (any, error) {
			return c.CreateAPIKey(ctx, client.CreateAPIKeyRequest{Name: "k", Roles: []client.Role{client.RoleAdmin}})
		}),
		"getCurrentAPIKey": result(func() (any, error) { return c.CurrentAPIKey(ctx) }),
		"deactivateAPIKey": func() error { return c.DeactivateAPIKey(ctx, "k") },
		"deleteAPIKey":     func() error { return c.DeleteAPIKey(ctx, "k") },
		"listTemplates":    result(func() (any, error) { return c.ListTemplates(ctx) }),
		"createTemplate":   result(func() (any, error) { return c.CreateTemplate(ctx, "t", spec) }),
		"createTemplateFromSandbox": result(func() (any, error) {
			return c.CreateTemplateFromSandbox(ctx, client.TemplateFromSandboxRequest{TemplateID: "t", SandboxID: sb})
		}),
		"getTemplate":    result(func() (any, error) { return c.GetTemplate(ctx, "t") }),
		"updateTemplate": result(func() (any, error) { return c.UpdateTemplate(ctx, "t", spec) }),
		"deleteTemplate": result(func() (any, error) { return c.DeleteTemplate(ctx, "t") }),
		"createSandbox":  result(func() (any, error) { return c.CreateSandbox(ctx, client.ClaimRequest{Template: "default"}) }),
		"listSandboxes": result(func() (any, error) {
			return c.ListSandboxes(ctx, client.ListSandboxesOptions{Status: client.SandboxStateRunning, TemplateID: "t", Paused: &yes, Limit: 7, Offset: 3})
		}),
		"getSandbox":       result(func() (any, error) { return c.GetSandbox(ctx, sb) }),
		"getSandboxStatus": result(func() (any, error) { return c.GetSandboxStatus(ctx, sb) }),
		"updateSandbox":    result(func() (any, error) { return c.UpdateSandbox(ctx, sb, client.SandboxUpdateConfig{}) }),
		"refreshSandbox":   result(func() (any, error) { return c.RefreshSandbox(ctx, sb, nil) }),
		"pauseSandbox":     result(func() (any, error) { return c.PauseSandbox(ctx, sb) }),
		"createSandboxSnapshot": result(func() (any, error) {
			return c.CreateSandboxSnapshot(ctx, sb, client.CreateSandboxRootFSSnapshotRequest{Name: new("s")})
		}),
		"listSandboxSnapshots":  result(func() (any, error) { return c.ListSandboxSnapshots(ctx, sb) }),
		"getSandboxSnapshot":    result(func() (any, error) { return c.GetSandboxSnapshot(ctx, "s") }),
		"deleteSandboxSnapshot": func() error { return c.DeleteSandboxSnapshot(ctx, "s") },
		"restoreSandboxRootFS":  result(func() (any, error) { return c.RestoreSandboxRootFS(ctx, sb, "s") }),
		"resumeSandbox":         result(func() (any, error) { return c.ResumeSandbox(ctx, sb) }),
		"forkSandbox":           result(func() (any, error) { return c.ForkSandbox(ctx, sb, client.ForkRequest{Count: new(2)}) }),
		"deleteSandbox":         func() error { return c.DeleteSandbox(ctx, sb) },
		"listSandboxEvents": result(func() (any, error) {
			return c.ListSandboxEvents(ctx, sb, client.SandboxEventsOptions{Action: "process.exited", Cursor: "e1", Limit: 7})
		}),
		"getSandboxServices": result(func() (any, error) { return c.SandboxServices(ctx, sb) }),
		"getSandboxNetwork":  result(func() (any, error) { return c.SandboxNetwork(ctx, sb) }),
		"updateSandboxNetwork": result(func() (any, error) {
			return c.UpdateSandboxNetwork(ctx, sb, client.SandboxNetworkPolicy{Mode: "block-all"})
		}),
		"listCredentialSources": result(func() (any, error) { return c.ListCredentialSources(ctx) }),
		"getCredentialSource":   result(func() (any, error) { return c.GetCredentialSource(ctx, "s") }),
		"createCredentialSource": result(func() (any, error) {
			return c.CreateCredentialSource(ctx, client.CredentialSourceWriteRequest{Name: "s", ResolverKind: "static_headers"})
		}),
		"updateCredentialSource": result(func() (any, error) {
			return c.UpdateCredentialSource(ctx, "s", client.CredentialSourceUpdateRequest{ResolverKind: "static_headers"})
		}),
		"deleteCredentialSource": func() error { return c.DeleteCredentialSource(ctx, "s") },
		"updateSandboxServices": result(func() (any, error) {
			return c.UpdateSandboxServices(ctx, sb, []client.SandboxAppService{{ID: "web", Port: new(int32(80))}})
		}),
		"getExposedPorts":    result(func() (any, error) { return c.ExposedPorts(ctx, sb) }),
		"updateExposedPorts": result(func() (any, error) { return c.UpdateExposedPorts(ctx, sb, []client.ExposedPort{{Port: 80}}) }),
		"clearExposedPorts":  result(func() (any, error) { return c.ClearExposedPorts(ctx, sb) }),
		"removeExposedPort":  result(func() (any, error) { return c.RemoveExposedPort(ctx, sb, 80) }),
		"listAuditRecords": result(func() (any, error) {
			return c.ListAuditRecords(ctx, client.AuditOptions{Operation: "createSandbox", Limit: 7})
		}),
		"listAllAuditRecords": result(func() (any, error) { return c.ListAllAuditRecords(ctx, client.AuditOptions{}) }),
		"listContexts":        result(func() (any, error) { return c.ListContexts(ctx, sb) }),
		"createContext": result(func() (any, error) {
			return c.CreateContext(ctx, sb, client.CreateContextRequest{Type: client.ContextTypeREPL})
		}),
		"getContext":        result(func() (any, error) { return c.GetContext(ctx, sb, cx) }),
		"deleteContext":     func() error { return c.DeleteContext(ctx, sb, cx) },
		"restartContext":    result(func() (any, error) { return c.RestartContext(ctx, sb, cx) }),
		"execContext":       result(func() (any, error) { return c.ExecContext(ctx, sb, cx, "1") }),
		"writeContextInput": func() error { return c.WriteContextInput(ctx, sb, cx, "") },
		"resizeContext":     func() error { return c.ResizeContext(ctx, sb, cx, client.PTYSize{Rows: 24, Cols: 80}) },
		"signalContext":     func() error { return c.SignalContext(ctx, sb, cx, "TERM") },
		"getContextStats":   result(func() (any, error) { return c.ContextStats(ctx, sb, cx) }),
		"listSandboxLogs":   result(func() (any, error) { return c.ListSandboxLogs(ctx, sb, client.SandboxLogsOptions{}) }),
		"listSandboxMetricSamples": result(func() (any, error) {
			return c.ListSandboxMetricSamples(ctx, sb, client.MetricSamplesOptions{})
		}),
		"getSandboxMetrics":        result(func() (any, error) { return c.SandboxMetrics(ctx, sb, client.MetricsOptions{}) }),
		"getSandboxMetricsCatalog": result(func() (any, error) { return c.SandboxMetricsCatalog(ctx, sb) }),
		"listSessions":             result(func() (any, error) { return c.ListSessions(ctx, sb) }),
		"createSession":            result(func() (any, error) { return c.CreateSession(ctx, sb, "key", session) }),
		"getSession":               result(func() (any, error) { return c.GetSession(ctx, sb, se) }),
		"updateSession":            result(func() (any, error) { return c.UpdateSession(ctx, sb, se, session) }),
		"deleteSession":            func() error { return c.DeleteSession(ctx, sb, se) },
		"createSessionAttempt":     result(func() (any, error) { return c.CreateSessionAttempt(ctx, sb, se, true) }),
		"setSessionDesiredState": result(func() (any, error) {
			return c.SetSessionState(ctx, sb, se, client.ExecutionSessionDesiredState("stopped"))
		}),
		"writeSessionInput": result(func() (any, error) {
			return c.WriteSessionInput(ctx, sb, se, client.ExecutionSessionInputRequest{InputID: "1", DataBase64: []byte("x")})
		}),
		"sendSessionSignal": func() error {
			return c.SignalSession(ctx, sb, se, client.ExecutionSessionSignalRequest{Signal: "TERM"})
		},
		"resizeSessionTerminal": func() error {
			return c.ResizeSession(ctx, sb, se, client.ExecutionSessionTerminalResizeRequest{Rows: 24, Cols: 80})
		},
		"listSessionEvents": result(func() (any, error) { return c.ListSessionEvents(ctx, sb, se, 7, 10) }),
		"readFile": func() error {
			r, err := c.ReadFile(ctx, sb, f)
			if err != nil {
				return err
			}
			return r.Close()
		},
		"writeFile":  func() error { return c.WriteFile(ctx, sb, f, strings.NewReader("x")) },
		"deleteFile": func() error { return c.DeleteFile(ctx, sb, f) },
		"statFile":   result(func() (any, error) { return c.StatFile(ctx, sb, f) }),
		"listFiles":  result(func() (any, error) { return c.ListFiles(ctx, sb, f) }),
		"moveFile":   func() error { return c.MoveFile(ctx, sb, f, "b") },
		"downloadArchive": func() error {
			r, err := c.ReadArchive(ctx, sb, f)
			if err != nil {
				return err
			}
			return r.Close()
		},
		"uploadArchive": result(func() (any, error) { return c.WriteArchive(ctx, sb, f, strings.NewReader("x")) }),
		"listVolumes":   result(func() (any, error) { return c.ListVolumes(ctx) }),
		"createVolume": result(func() (any, error) {
			return c.CreateVolume(ctx, "key", client.CreateSandboxVolumeRequest{AccessMode: new(client.VolumeAccessMode("ROX"))})
		}),
		"getVolume":    result(func() (any, error) { return c.GetVolume(ctx, vol) }),
		"deleteVolume": func() error { return c.DeleteVolume(ctx, vol, true) },
		"forkVolume":   result(func() (any, error) { return c.ForkVolume(ctx, vol, "key", client.ForkVolumeRequest{}) }),
		"createVolumeSnapshot": result(func() (any, error) {
			return c.CreateVolumeSnapshot(ctx, vol, client.CreateVolumeSnapshotRequest{Name: "s"})
		}),
		"listVolumeSnapshots":   result(func() (any, error) { return c.ListVolumeSnapshots(ctx, vol) }),
		"getVolumeSnapshot":     result(func() (any, error) { return c.GetVolumeSnapshot(ctx, vol, "s") }),
		"deleteVolumeSnapshot":  func() error { return c.DeleteVolumeSnapshot(ctx, vol, "s") },
		"restoreVolumeSnapshot": func() error { return c.RestoreVolumeSnapshot(ctx, vol, "s") },
		"mountVolume":           result(func() (any, error) { return c.MountVolume(ctx, sb, vol, "/data") }),
		"unmountVolume":         func() error { return c.UnmountVolume(ctx, sb, vol, "m") },
		"listMounts":            result(func() (any, error) { return c.ListMounts(ctx, sb) }),
		"readVolumeFile": func() error {
			r, err := c.VolumeFiles(vol).Read(ctx, f)
			if err != nil {
				return err
			}
			return r.Close()
		},
		"writeVolumeFile":  func() error { return c.VolumeFiles(vol).Write(ctx, f, strings.NewReader("x")) },
		"deleteVolumeFile": func() error { return c.VolumeFiles(vol).Delete(ctx, f) },
		"statVolumeFile":   result(func() (any, error) { return c.VolumeFiles(vol).Stat(ctx, f) }),
		"listVolumeFiles":  result(func() (any, error) { return c.VolumeFiles(vol).List(ctx, f) }),
		"moveVolumeFile":   func() error { return c.VolumeFiles(vol).Move(ctx, f, "b") },
		"downloadVolumeArchive": func() error {
			r, err := c.VolumeFiles(vol).ReadArchive(ctx, f)
			if err != nil {
				return err
			}
			return r.Close()
		},
		"uploadVolumeArchive": result(func() (any, error) { return c.VolumeFiles(vol).WriteArchive(ctx, f, strings.NewReader("x")) }),
		"putVolumeSyncReplica": result(func() (any, error) {
			return c.PutVolumeSyncReplica(ctx, vol, "laptop", client.PutVolumeSyncReplicaRequest{})
		}),
		"getVolumeSyncReplica": result(func() (any, error) { return c.GetVolumeSyncReplica(ctx, vol, "laptop") }),
		"putVolumeSyncCursor":  result(func() (any, error) { return c.PutVolumeSyncCursor(ctx, vol, "laptop", 1) }),
		"sendVolumeSyncChanges": result(func() (any, error) {
			return c.SendVolumeSyncChanges(ctx, vol, "laptop", client.VolumeSyncChangesRequest{RequestID: "1", Changes: []client.VolumeSyncChange{{EventType: "remove", Path: "/a"}}})
		}),
		"listVolumeSyncChanges": result(func() (any, error) { return c.ListVolumeSyncChanges(ctx, vol, 1, 2) }),
		"getVolumeSyncPayload": func() error {
			r, err := c.ReadVolumeSyncPayload(ctx, vol, "sha256:00")
			if err != nil {
				return err
			}
			return r.Close()
		},
		"bootstrapVolumeSync": result(func() (any, error) {
			return c.BootstrapVolumeSync(ctx, vol, client.BootstrapVolumeSyncRequest{})
		}),
		"getVolumeSyncArchive": func() error {
			r, err := c.ReadVolumeSyncArchive(ctx, vol, "s")
			if err != nil {
				return err
			}
			return r.Close()
		},
		"listVolumeSyncConflicts": result(func() (any, error) { return c.ListVolumeSyncConflicts(ctx, vol, "open", 1) }),
		"updateVolumeSyncConflict": result(func() (any, error) {
			return c.UpdateVolumeSyncConflict(ctx, vol, "c", client.UpdateVolumeSyncConflictRequest{Status: "resolved"})
		}),
		"searchVolumeFiles": result(func() (any, error) {
			return c.VolumeFiles(vol).Search(ctx, client.FileSearchRequest{Include: []string{"*"}}, nil)
		}),
		"searchFiles": result(func() (any, error) {
			return c.SearchFiles(ctx, sb, client.FileSearchRequest{Include: []string{"*"}}, nil)
		}),
	}
}

func result(f func() (any, error)) func() error {
	return func() error { _, err := f(); return err }
}

// specServer answers every operation of the spec with the least that its schema
// allows, after checking the request against the spec.
type specServer struct {
	doc    *openapi3.T
	router routers.Router
	url    string

	mu  sync.Mutex
	ops []string
}

// Operations that the client has no method for, or none that is one request: the
// streams have tests of their own, the others are for probes, scrapers and whoever
// writes the bills.
var withoutMethod = []string{"getMeteringStatus", "listMeteringEvents", "listMeteringWindows", "attachContext", "connectSession", "streamSessionEvents", "watchFiles", "watchVolumeFiles", "listSandboxLogsByOldPath", "getHealth", "getMetrics", "getDocs", "getOpenAPIYAML", "getOpenAPIJSON", "startOIDCLogin", "finishOIDCLogin"}

func newSpecServer(t *testing.T) *specServer {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromFile("../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	doc.Servers = nil // any host is right
	router, err := legacy.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	s := &specServer{doc: doc, router: router}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *specServer) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{BaseURL: s.url, Token: "s0_test_key", TeamID: "team"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *specServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route, pathParams, err := s.router.FindRoute(r)
	if err != nil {
		refuse(w, err)
		return
	}
	in := &openapi3filter.RequestValidationInput{Request: r, PathParams: pathParams, Route: route, Options: &openapi3filter.Options{
		AuthenticationFunc: func(_ context.Context, in *openapi3filter.AuthenticationInput) error {
			if r.Header.Get("Authorization") != "Bearer s0_test_key" || r.Header.Get("X-Team-ID") != "team" {
				return in.NewError(openapi3filter.ErrAuthenticationServiceMissing)
			}
			return nil
		},
	}}
	if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil {
		refuse(w, err)
		return
	}
	s.mu.Lock()
	s.ops = append(s.ops, route.Operation.OperationID)
	s.mu.Unlock()
	for code, resp := range route.Operation.Responses.Map() {
		if status, _ := strconv.Atoi(code); status/100 == 2 {
			w.WriteHeader(status)
			shortest(w, resp.Value.Content)
			return
		}
	}
}

func shortest(w io.Writer, content openapi3.Content) {
	switch json, lines := content["application/json"], content["application/x-ndjson"]; {
	case json != nil:
		encode(w, least(json.Schema.Value))
	case lines != nil: // one with the last of its fields, which ends the stream
		last := slices.Max(slices.Collect(maps.Keys(lines.Schema.Value.Properties)))
		encode(w, map[string]any{last: least(lines.Schema.Value.Properties[last].Value)})
	}
}

func encode(w io.Writer, v any) { json.NewEncoder(w).Encode(v) }

func refuse(w http.ResponseWriter, err error) {
	w.WriteHeader(http.StatusBadRequest)
	io.WriteString(w, `{"success":false,"error":{"code":"bad_request","message":`+strconv.Quote(err.Error())+`}}`)
}

func (s *specServer) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ops)
}

func (s *specServer) operations() []string {
	var ops []string
	for _, item := range s.doc.Paths.Map() {
		for _, op := range item.Operations() {
			if !slices.Contains(withoutMethod, op.OperationID) {
				ops = append(ops, op.OperationID)
			}
		}
	}
	return ops
}

// least builds the smallest value that a schema allows.
func least(schema *openapi3.Schema) any {
	switch {
	case len(schema.Enum) > 0:
		return schema.Enum[0]
	case schema.Type.Is("object"):
		object := map[string]any{}
		for _, name := range schema.Required {
			object[name] = least(schema.Properties[name].Value)
		}
		return object
	case schema.Type.Is("array"):
		return []any{}
	case schema.Type.Is("boolean"):
		return true
	case schema.Type.Is("integer"):
		return 1
	case schema.Format == "date-time":
		return "0001-01-01T00:00:00Z"
	}
	return "x"
}
