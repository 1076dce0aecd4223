package api_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/crypto/ssh"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
)

// recorded is an audit record as the database has it.
type recorded struct {
	Operation, Resource, Outcome, Code, Address string
	Team, User, Key                             *uuid.UUID
}

// records are those of one request.
func (i *instance) records(requestID string) []recorded {
	i.t.Helper()
	conn := connect(i.t, i.dsn)
	defer conn.Close(context.Background())
	rows, _ := conn.Query(context.Background(), `SELECT operation, resource, outcome, code, address, team_id, user_id, key_id
		FROM audit_records WHERE request_id = $1`, requestID)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[recorded])
	if err != nil {
		i.t.Fatal(err)
	}
	return list
}

// recorded sends a request and gives its records. That of a refusal is given up, and that is
// logged, when the database takes longer than a caller should wait: then it is sent again.
func (i *instance) recorded(r request) (a answer, list []recorded) {
	i.t.Helper()
	for range 3 {
		a = i.send(r)
		id := a.header.Get("X-Request-Id")
		list = i.records(id)
		if len(list) > 0 || !strings.Contains(i.log.String(), `msg="could not record how a call ended" request=`+id) {
			break
		}
	}
	return a, list
}

// inSandboxes are the calls whose record is the sandbox's events, and those of the files
// of volumes, which have none.
var inSandboxes = regexp.MustCompile(`^/api/v1/(sandboxes/\{id\}/(contexts|sessions|files)|sandboxvolumes/\{id\}/files)`)

// changing is every operation of the contract that changes the control plane.
func changing(t *testing.T) (list []operation) {
	for _, o := range operations(t) {
		if o.method != http.MethodGet && !inSandboxes.MatchString(o.path) {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b operation) int { return strings.Compare(a.op.OperationID, b.op.OperationID) })
	return list
}

// stage is what changes are tried on.
type stage struct {
	i        *instance
	jwt, key string
	team     string // of both
	n        int
}

func newStage(i *instance) *stage {
	s := &stage{i: i, jwt: i.signIn(), key: i.key("admin")}
	var me struct {
		Team string `json:"default_team_id"`
	}
	i.send(request{method: "GET", path: "/users/me", token: s.jwt}).want(200, &me)
	s.team = me.Team
	return s
}

// selects says which of his teams the user acts in.
func (s *stage) selects(token string) http.Header {
	if token != s.jwt {
		return nil
	}
	return http.Header{"X-Team-Id": {s.team}}
}

// name gives one that nothing has yet.
func (s *stage) name() string {
	s.n++
	return fmt.Sprintf("audited-%d", s.n)
}

// make sends a request that makes something, and gives a field of what it made.
func (s *stage) make(field, method, path, token, body string) string {
	s.i.t.Helper()
	var made map[string]any
	a := s.i.send(request{method: method, path: path, token: token, body: body, header: s.selects(token)})
	if a.status/100 != 2 {
		s.i.t.Fatalf("%s %s: %d %s", method, path, a.status, a.raw)
	}
	if err := json.Unmarshal(a.data, &made); err != nil {
		s.i.t.Fatal(err)
	}
	text, _ := made[field].(string)
	return text
}

const templateSpec = `{"mainContainer":{"image":"x","resources":{"memory":"1Gi"}}}`

func (s *stage) template() string {
	name := s.name()
	s.make("", "POST", "/api/v1/templates", s.key, `{"template_id":"`+name+`","spec":`+templateSpec+`}`)
	return name
}

func (s *stage) apiKey() string {
	return s.make("id", "POST", "/api-keys", s.jwt, `{"name":"`+s.name()+`","roles":["viewer"]}`)
}

func (s *stage) refreshToken() string {
	return s.make("refresh_token", "POST", "/auth/login", "", fmt.Sprintf(`{"email":%q,"password":%q}`, s.i.admin, s.i.pass))
}

// source makes a credential source and answers its path.
func (s *stage) source() string {
	return "/api/v1/credential-sources/" + s.make("name", "POST", "/api/v1/credential-sources", s.key, `{"name":"`+s.name()+`",`+sourceSpec+`}`)
}

// volume makes a volume and answers its path.
func (s *stage) volume() string {
	return "/api/v1/sandboxvolumes/" + s.make("id", "POST", "/api/v1/sandboxvolumes", s.key, `{}`)
}

// volumeSnapshot makes a snapshot of one and answers its path.
func (s *stage) volumeSnapshot() string {
	path := s.volume() + "/snapshots"
	return path + "/" + s.make("id", "POST", path, s.key, `{"name":"s"}`)
}

// laptopPath is where a volume has a replica.
const laptopPath = "/sync/replicas/laptop"

// replica makes one of a new volume and answers its path.
func (s *stage) replica() string {
	path := s.volume() + laptopPath
	s.send(path, "PUT", `{}`)
	return path
}

func (s *stage) send(path, method, body string) answer {
	s.i.t.Helper()
	return s.i.send(request{method: method, path: path, token: s.key, body: body}).want(200, nil)
}

// volumePath finds the id in a volume's path.
var volumePath = regexp.MustCompile(`[0-9a-f-]{36}$`)

func mountBody(volume string) string {
	return fmt.Sprintf(`{"sandboxvolume_id":%q,"mount_point":"/v"}`, volumePath.FindString(volume))
}

const sourceSpec = `"resolverKind":"static_headers","spec":{"staticHeaders":{"values":{"token":"x"}}}`

// succeed maps each operation that changes the control plane to a request that
// changes something.
var succeed = map[string]func(s *stage) request{
	"login": func(s *stage) request {
		return request{body: fmt.Sprintf(`{"email":%q,"password":%q}`, s.i.admin, s.i.pass)}
	},
	"refreshToken": func(s *stage) request { return request{body: `{"refresh_token":"` + s.refreshToken() + `"}`} },
	"logout":       func(s *stage) request { s.refreshToken(); return request{token: s.jwt} },
	"createAPIKey": func(s *stage) request {
		return request{token: s.jwt, body: `{"name":"` + s.name() + `","roles":["viewer"]}`}
	},
	"deleteAPIKey":     func(s *stage) request { return request{path: "/api-keys/" + s.apiKey(), token: s.jwt} },
	"deactivateAPIKey": func(s *stage) request { return request{path: "/api-keys/" + s.apiKey() + "/deactivate", token: s.jwt} },
	"createTemplate": func(s *stage) request {
		return request{token: s.key, body: `{"template_id":"` + s.name() + `","spec":` + templateSpec + `}`}
	},
	"updateTemplate": func(s *stage) request {
		return request{path: "/api/v1/templates/" + s.template(), token: s.key, body: `{"spec":` + strings.Replace(templateSpec, "1Gi", "2Gi", 1) + `}`}
	},
	"deleteTemplate": func(s *stage) request { return request{path: "/api/v1/templates/" + s.template(), token: s.key} },
	"createSandbox":  func(s *stage) request { return request{token: s.key, body: `{"template":"default"}`} },
	"updateSandbox": func(s *stage) request {
		return request{path: "/api/v1/sandboxes/" + s.i.claim(s.key), token: s.key, body: `{"config":{"ttl":60}}`}
	},
	"deleteSandbox": func(s *stage) request { return request{path: "/api/v1/sandboxes/" + s.i.claim(s.key), token: s.key} },
	"refreshSandbox": func(s *stage) request {
		return request{path: "/api/v1/sandboxes/" + s.i.claim(s.key) + "/refresh", token: s.key, body: `{"duration":60}`}
	},
	"createVolume": func(s *stage) request { return request{token: s.key, body: `{}`} },
	"deleteVolume": func(s *stage) request { return request{path: s.volume(), token: s.key} },
	"forkVolume":   func(s *stage) request { return request{path: s.volume() + "/fork", token: s.key} },
	"createVolumeSnapshot": func(s *stage) request {
		return request{path: s.volume() + "/snapshots", token: s.key, body: `{"name":"s"}`}
	},
	"putVolumeSyncReplica": func(s *stage) request { return request{path: s.volume() + laptopPath, token: s.key, body: `{}`} },
	"putVolumeSyncCursor": func(s *stage) request {
		return request{path: s.replica() + "/cursor", token: s.key, body: `{"last_applied_seq":0}`}
	},
	"sendVolumeSyncChanges": func(s *stage) request {
		return request{path: s.replica() + "/changes", token: s.key, body: `{"request_id":"1","base_seq":0,"changes":[{"event_type":"create","path":"a","content_base64":"eA=="}]}`}
	},
	"bootstrapVolumeSync": func(s *stage) request { return request{path: s.volume() + "/sync/bootstrap", token: s.key} },
	"updateVolumeSyncConflict": func(s *stage) request {
		of := s.replica()
		s.send(of+"-2", "PUT", `{}`)
		create := `{"request_id":"1","base_seq":0,"changes":[{"event_type":"create","path":"a","content_base64":"%s"}]}`
		s.send(of+"/changes", "POST", fmt.Sprintf(create, "eA=="))
		var sent struct{ Conflicts []struct{ ID string } }
		if err := json.Unmarshal(s.send(of+"-2/changes", "POST", fmt.Sprintf(create, "eQ==")).data, &sent); err != nil || len(sent.Conflicts) != 1 {
			s.i.t.Fatalf("%+v: %v", sent, err)
		}
		return request{path: strings.TrimSuffix(of, laptopPath) + "/sync/conflicts/" + sent.Conflicts[0].ID, token: s.key, body: `{"status":"resolved"}`}
	},
	"deleteVolumeSnapshot":  func(s *stage) request { return request{path: s.volumeSnapshot(), token: s.key} },
	"restoreVolumeSnapshot": func(s *stage) request { return request{path: s.volumeSnapshot() + "/restore", token: s.key} },
	"mountVolume": func(s *stage) request {
		return request{path: "/api/v1/sandboxes/" + s.i.claim(s.key) + "/sandboxvolumes/mount", token: s.key, body: mountBody(s.volume())}
	},
	"unmountVolume": func(s *stage) request {
		volume, path := s.volume(), "/api/v1/sandboxes/"+s.i.claim(s.key)+"/sandboxvolumes/"
		mount := s.make("mount_session_id", "POST", path+"mount", s.key, mountBody(volume))
		return request{path: path + "unmount", token: s.key, body: fmt.Sprintf(`{"sandboxvolume_id":%q,"mount_session_id":%q}`, volumePath.FindString(volume), mount)}
	},
	"createCredentialSource": func(s *stage) request {
		return request{token: s.key, body: `{"name":"` + s.name() + `",` + sourceSpec + `}`}
	},
	"updateCredentialSource": func(s *stage) request {
		return request{path: s.source(), token: s.key, body: `{` + sourceSpec + `}`}
	},
	"deleteCredentialSource": func(s *stage) request { return request{path: s.source(), token: s.key} },
	"updateSandboxNetwork": func(s *stage) request {
		id := s.make("sandbox_id", "POST", "/api/v1/sandboxes", s.key, `{"template":"default"}`)
		return request{path: "/api/v1/sandboxes/" + id + "/network", token: s.key, body: `{"mode":"block-all"}`}
	},
	"updateSandboxServices": func(s *stage) request {
		return request{path: "/api/v1/sandboxes/" + s.i.claim(s.key) + "/services", token: s.key, body: `{"services":[{"id":"a","port":80,"ingress":{"public":true}}]}`}
	},
	"updateExposedPorts": func(s *stage) request {
		return request{path: "/api/v1/sandboxes/" + s.i.claim(s.key) + "/exposed-ports", token: s.key, body: `{"ports":[{"port":8080,"resume":false}]}`}
	},
	"clearExposedPorts": func(s *stage) request {
		return request{path: s.exposed(), token: s.key}
	},
	"removeExposedPort": func(s *stage) request { return request{path: s.exposed() + "/8080", token: s.key} },
	"register": func(s *stage) request {
		return request{body: `{"email":"` + s.name() + `@example.com","password":"a long password","name":"x"}`}
	},
	"issueRegionToken":  func(s *stage) request { return request{token: s.jwt, body: `{}`} },
	"updateCurrentUser": func(s *stage) request { return request{token: s.jwt, body: `{"name":"` + s.name() + `"}`} },
	"deleteIdentity": func(s *stage) request {
		exec(s.i.t, s.i.dsn, "INSERT INTO user_identities (user_id, provider, issuer, subject) SELECT id, 'p', 'i', '"+s.name()+"' FROM users WHERE is_admin")
		var list struct {
			Identities []struct{ ID, Provider string }
		}
		s.i.send(request{method: "GET", path: "/users/me/identities", token: s.jwt}).want(200, &list)
		for _, id := range list.Identities {
			if id.Provider == "p" {
				return request{path: "/users/me/identities/" + id.ID, token: s.jwt}
			}
		}
		s.i.t.Fatalf("%+v", list)
		return request{}
	},
	"createSSHKey": func(s *stage) request { return request{token: s.jwt, body: s.sshKey()} },
	"deleteSSHKey": func(s *stage) request {
		return request{path: "/users/me/ssh-keys/" + s.make("id", "POST", "/users/me/ssh-keys", s.jwt, s.sshKey()), token: s.jwt}
	},
	"createTeam":    func(s *stage) request { return request{token: s.jwt, body: `{"name":"` + s.name() + `"}`} },
	"updateTeam":    func(s *stage) request { return s.inTeam("", `{"name":"`+s.name()+`"}`) },
	"deleteTeam":    func(s *stage) request { return s.inTeam("", "") },
	"addTeamMember": func(s *stage) request { return s.inTeam("/members", `{"email":"`+s.email()+`","role":"viewer"}`) },
	"updateTeamMember": func(s *stage) request {
		return s.withMember("/members/%s", `{"role":"developer"}`)
	},
	"removeTeamMember": func(s *stage) request { return s.withMember("/members/%s", "") },
	"transferTeam":     func(s *stage) request { return s.withMember("/owner", `{"user_id":"%s"}`) },
	"updateUserRights": func(s *stage) request {
		return request{path: "/internal/v1/users/" + s.userID(s.email()), token: s.jwt, body: `{"disabled":true}`}
	},
	"createRegion": func(s *stage) request { return request{token: s.jwt, body: s.newRegion()} },
	"updateRegion": func(s *stage) request {
		return request{path: "/regions/" + s.region(), token: s.jwt, body: `{"enabled":false}`}
	},
	"deleteRegion": func(s *stage) request { return request{path: "/regions/" + s.region(), token: s.jwt} },
	"setTeamQuota": func(s *stage) request { return request{path: s.quota(), token: s.jwt, body: `{"limit_value":100}`} },
	"unsetTeamQuota": func(s *stage) request {
		r := request{method: "PUT", path: s.quota(), token: s.jwt, body: `{"limit_value":99}`}
		s.i.send(r).want(200, nil)
		return request{path: r.path, token: s.jwt}
	},
	"createTemplateFromSandbox": func(s *stage) request {
		return request{token: s.key, body: `{"template_id":"` + s.name() + `","sandbox_id":"` + s.i.claim(s.key) + `"}`}
	},
	"pauseSandbox": func(s *stage) request {
		return request{path: "/api/v1/sandboxes/" + s.i.claim(s.key) + "/pause", token: s.key}
	},
	"createSandboxSnapshot": func(s *stage) request {
		return request{path: "/api/v1/sandboxes/" + s.i.claim(s.key) + "/snapshots", token: s.key}
	},
	"deleteSandboxSnapshot": func(s *stage) request {
		id := s.make("id", "POST", "/api/v1/sandboxes/"+s.i.claim(s.key)+"/snapshots", s.key, `{}`)
		return request{path: "/api/v1/sandbox-rootfs-snapshots/" + id, token: s.key}
	},
	"restoreSandboxRootFS": func(s *stage) request {
		path := "/api/v1/sandboxes/" + s.i.claim(s.key)
		id := s.make("id", "POST", path+"/snapshots", s.key, `{}`)
		s.i.send(request{method: "POST", path: path + "/pause", token: s.key}).want(200, nil)
		return request{path: path + "/rootfs/restore", token: s.key, body: `{"snapshot_id":"` + id + `"}`}
	},
	"resumeSandbox": func(s *stage) request {
		path := "/api/v1/sandboxes/" + s.i.claim(s.key)
		s.i.send(request{method: "POST", path: path + "/pause", token: s.key}).want(200, nil)
		return request{path: path + "/resume", token: s.key}
	},
	"forkSandbox": func(s *stage) request {
		return request{path: "/api/v1/sandboxes/" + s.i.claim(s.key) + "/fork", token: s.key}
	},
	"createRegistryCredentials": func(s *stage) request { return request{token: s.key, body: `{}`} },
	"changePassword": func(s *stage) request {
		old := s.i.pass
		s.i.pass = "a password " + s.name()
		return request{token: s.jwt, body: fmt.Sprintf(`{"old_password":%q,"new_password":%q}`, old, s.i.pass)}
	},
}

// sshKey is a request for one that nobody has.
func (s *stage) sshKey() string {
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		s.i.t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		s.i.t.Fatal(err)
	}
	return fmt.Sprintf(`{"name":%q,"public_key":%q}`, s.name(), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))))
}

// newRegion is a request for one that nobody has.
func (s *stage) newRegion() string {
	return `{"id":"aws-` + s.name() + `","regional_gateway_url":"https://example.com"}`
}

func (s *stage) region() string { return s.make("id", "POST", "/regions", s.jwt, s.newRegion()) }

// email is that of a new user.
func (s *stage) email() string {
	email := s.name() + "@example.com"
	s.make("", "POST", "/auth/register", "", `{"email":"`+email+`","password":"a long password","name":"x"}`)
	return email
}

func (s *stage) userID(email string) string {
	s.i.t.Helper()
	conn := connect(s.i.t, s.i.dsn)
	defer conn.Close(context.Background())
	var id uuid.UUID
	if err := conn.QueryRow(context.Background(), "SELECT id FROM users WHERE email = $1", email).Scan(&id); err != nil {
		s.i.t.Fatal(err)
	}
	return id.String()
}

// inTeam is a request about a new team.
func (s *stage) inTeam(path, body string) request {
	id := s.make("id", "POST", "/teams", s.jwt, `{"name":"`+s.name()+`"}`)
	r := request{path: "/teams/" + id + path, token: s.jwt}
	if body != "" {
		r.body = body
	}
	return r
}

// withMember is one about a new member of it, whose id stands for %s.
func (s *stage) withMember(path, body string) request {
	email := s.email()
	add := s.inTeam("/members", `{"email":"`+email+`","role":"viewer"}`)
	s.make("", "POST", add.path, s.jwt, add.body.(string))
	fill := strings.NewReplacer("%s", s.userID(email))
	r := request{path: strings.TrimSuffix(add.path, "/members") + fill.Replace(path), token: s.jwt}
	if body != "" {
		r.body = fill.Replace(body)
	}
	return r
}

func (s *stage) quota() string {
	return "/internal/v1/teams/" + s.team + "/quotas/active_sandboxes"
}

// exposed gives the path of a sandbox's exposed ports, of which there is one.
func (s *stage) exposed() string {
	path := "/api/v1/sandboxes/" + s.i.claim(s.key) + "/exposed-ports"
	s.i.send(request{method: "PUT", path: path, token: s.key, body: `{"ports":[{"port":8080,"resume":false}]}`}).want(200, nil)
	return path
}

// withProvider are changes for which an OpenID provider is needed.
var withProvider = []string{"startDeviceLogin", "pollDeviceLogin", "exchangeLoginCode"}

// everything lets anybody sign up, and issues credentials of a registry.
func everything(c *api.Config, n *fakenode.Node) {
	open(c, n)
	c.Registry, c.RegistryKeyFile = "registry.example:5000", c.KeyFile+".registry"
}

// changePassword comes last: it ends every session.
func (s *stage) each(t *testing.T, do func(o operation, fresh func() request)) {
	all := changing(t)
	slices.SortStableFunc(all, func(a, b operation) int {
		last := func(o operation) int {
			if o.op.OperationID == "changePassword" {
				return 1
			}
			return 0
		}
		return last(a) - last(b)
	})
	for _, o := range all {
		if slices.Contains(withProvider, o.op.OperationID) {
			continue
		}
		prepare, ok := succeed[o.op.OperationID]
		if !ok {
			t.Errorf("%s: no request that succeeds is known", o.op.OperationID)
			continue
		}
		do(o, func() request {
			r := prepare(s)
			r.method, r.header = o.method, s.selects(r.token)
			if r.path == "" {
				r.path = o.path
			}
			return r
		})
	}
}

// A24: every call that changes the control plane leaves exactly one record, which
// says who, what, from where and how it ended.
func TestA24_EveryChangeHasOneRecord(t *testing.T) {
	t.Parallel()
	i := start(t, everything, withFiles(t))
	s := newStage(i)
	s.each(t, func(o operation, fresh func() request) {
		r := fresh()
		a := i.send(r)
		if a.status/100 != 2 && a.status/100 != 3 {
			t.Errorf("%s: %d %s", o.op.OperationID, a.status, a.raw)
			return
		}
		list := i.records(a.header.Get("X-Request-Id"))
		if len(list) != 1 {
			t.Errorf("%s: %d records: %+v", o.op.OperationID, len(list), list)
			return
		}
		rec := list[0]
		if rec.Operation != o.op.OperationID || rec.Outcome != "succeeded" || rec.Code != "" || rec.User == nil || rec.Address != "127.0.0.1" {
			t.Errorf("%s: %+v", o.op.OperationID, rec)
		}
		if byKey := strings.HasPrefix(r.token, "s0_"); byKey != (rec.Key != nil) || byKey && rec.Team == nil {
			t.Errorf("%s: of key %v, team %v", o.op.OperationID, rec.Key, rec.Team)
		}
		if made := strings.HasPrefix(o.op.OperationID, "create") || strings.Contains(o.path, "{"); made && rec.Resource == "" && o.op.OperationID != "createRegistryCredentials" {
			t.Errorf("%s: what it changed is not named", o.op.OperationID)
		}
	})
}

// A24: while no record can be stored, nothing is changed.
func TestA24_NoRecordNoChange(t *testing.T) {
	t.Parallel()
	i := start(t, everything, withFiles(t))
	s := newStage(i)
	s.each(t, func(o operation, fresh func() request) {
		// What a call changes it changes every time; what goes on beside it, such as the end
		// of a sandbox of a call before, does so once.
		var changed string
		for range 3 {
			if changed = i.withoutRecord(o, fresh()); changed == "" {
				return
			}
		}
		t.Errorf("%s changed something without a record: %s", o.op.OperationID, changed)
	})
}

// withoutRecord makes a call whose record can't be stored, and says what changed meanwhile.
func (i *instance) withoutRecord(o operation, r request) string {
	i.t.Helper()
	exec(i.t, i.dsn, "ALTER TABLE audit_records ADD CONSTRAINT no_room CHECK (false) NOT VALID")
	defer exec(i.t, i.dsn, "ALTER TABLE audit_records DROP CONSTRAINT no_room")
	before := contents(i.t, i.dsn)
	if a := i.send(r); a.status < 500 {
		i.t.Errorf("%s: %d %s", o.op.OperationID, a.status, a.raw)
	}
	after := contents(i.t, i.dsn)
	if after == before {
		return ""
	}
	return difference(before, after)
}

// contents is every row of every table, but for what no caller changes.
func contents(t testing.TB, dsn string) string {
	t.Helper()
	conn := connect(t, dsn)
	defer conn.Close(context.Background())
	rows, _ := conn.Query(context.Background(), `SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'r' AND n.nspname = current_schema() AND c.relname NOT IN ('audit_records', 'schema_migrations') AND c.relname NOT LIKE 'metering%' ORDER BY 1`)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, table := range tables {
		rows, _ := conn.Query(context.Background(), "SELECT (to_jsonb(t) - 'last_used_at' - 'counted_at' - 'looked' - 'looked_at')::text FROM "+pgx.Identifier{table}.Sanitize()+" t ORDER BY 1")
		list, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range list {
			fmt.Fprintln(&all, table, row)
		}
	}
	return all.String()
}

// difference is the first line in which two texts differ.
func difference(before, after string) string {
	old := strings.Split(before, "\n")
	for n, line := range strings.Split(after, "\n") {
		if n >= len(old) || old[n] != line {
			return line
		}
	}
	return "a row is gone"
}

var pathParameter = regexp.MustCompile(`\{[a-z_]+\}`)

// A24: a call of somebody known that is refused is recorded, whatever refused it;
// one of nobody known leaves nothing.
func TestA24_RefusalsAreRecorded(t *testing.T) {
	t.Parallel()
	i := start(t)
	owner, viewer, jwt := i.key("admin"), i.key("viewer"), i.signIn()
	for _, o := range changing(t) {
		r := request{method: o.method, path: pathParameter.ReplaceAllString(o.path, uuid.NewString()), body: "{"}
		if id := i.send(r).header.Get("X-Request-Id"); len(i.records(id)) != 0 {
			t.Errorf("%s: a call of nobody is recorded", o.op.OperationID)
		}
		if o.public() {
			continue
		}
		for name, token := range map[string]string{"a viewer": viewer, "an owner": owner, "a user": jwt} {
			r.token = token
			a, list := i.recorded(r)
			switch {
			case a.status == 401: // a key where a user is wanted: it is not known to be anybody's
				if len(list) != 0 {
					t.Errorf("%s by %s: %+v", o.op.OperationID, name, list)
				}
			case len(list) != 1 || list[0].Operation != o.op.OperationID || list[0].User == nil:
				t.Errorf("%s by %s (%d): %+v", o.op.OperationID, name, a.status, list)
			case a.status >= 400 && a.status < 500 && (list[0].Outcome != "refused" || list[0].Code != a.code):
				t.Errorf("%s by %s (%d %s): %+v", o.op.OperationID, name, a.status, a.code, list)
			}
		}
	}
	a, list := i.recorded(request{method: "POST", path: "/auth/login", body: fmt.Sprintf(`{"email":%q,"password":"wrong"}`, i.admin)})
	if a.refused(401, "unauthorized"); len(list) != 1 || list[0].Outcome != "refused" || list[0].User == nil {
		t.Errorf("a failed sign-in of somebody known: %+v", list)
	}
}

// Records are their team's, and its admins'; the system's admins see all.
func TestAuditOverTheAPI(t *testing.T) {
	t.Parallel()
	i := start(t)
	key, developer, stranger := i.key("admin"), i.key("developer"), i.stranger()
	id := i.claim(key)
	var page struct {
		Records    []struct{ ID, Operation, Resource, Outcome string }
		NextCursor string `json:"next_cursor"`
	}
	i.send(request{method: "GET", path: "/api/v1/audit?limit=500&operation=createSandbox", token: key}).want(200, &page)
	if len(page.Records) != 1 || page.Records[0].Resource != id || page.Records[0].Outcome != "succeeded" {
		t.Errorf("%+v", page)
	}
	page.Records = nil
	i.send(request{method: "GET", path: "/api/v1/audit?limit=1", token: key}).want(200, &page)
	first := page.Records[0].ID
	i.send(request{method: "GET", path: "/api/v1/audit?limit=1&cursor=" + page.NextCursor, token: key}).want(200, &page)
	if page.Records[0].ID >= first {
		t.Errorf("%s comes after %s", page.Records[0].ID, first)
	}
	page.Records = nil
	i.send(request{method: "GET", path: "/api/v1/audit?resource=" + id, token: stranger}).want(200, &page)
	if len(page.Records) != 0 {
		t.Errorf("A01: a stranger sees %+v", page.Records)
	}
	i.send(request{method: "GET", path: "/api/v1/audit", token: developer}).refused(403, "forbidden")
	i.send(request{method: "GET", path: "/internal/v1/audit", token: key}).refused(403, "forbidden")
	page.Records = nil
	i.send(request{method: "GET", path: "/internal/v1/audit?operation=login", token: i.signIn()}).want(200, &page)
	if len(page.Records) == 0 {
		t.Error("a system admin sees no sign-in")
	}
	for _, query := range []string{"limit=501", "limit=0", "cursor=x", "user_id=x", "outcome=x", "resource=%00"} { // A14
		i.send(request{method: "GET", path: "/api/v1/audit?" + query, token: key}).refused(400, "bad_request")
	}
}
