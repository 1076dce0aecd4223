package api_test

import (
	"fmt"
	"strings"
	"testing"
)

type region struct {
	ID       string
	Name     string  `json:"display_name"`
	Gateway  string  `json:"regional_gateway_url"`
	Metering *string `json:"metering_export_url"`
	Enabled  bool
}

// An admin says where other servers are. The server's own region is there from the
// start, and stays.
func TestRegions(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	var list struct{ Regions []region }
	w.as(w.system, "GET", "/regions", "").want(200, &list)
	own := region{ID: "local", Name: "local", Enabled: true}
	if len(list.Regions) != 1 || list.Regions[0] != own {
		t.Fatalf("%+v", list)
	}
	var r region
	w.as(w.system, "POST", "/regions", `{"id":"aws-us-east-1","regional_gateway_url":"https://use1.example.com","metering_export_url":"https://m.example.com/x"}`).want(201, &r)
	if r.Name != "aws-us-east-1" || r.Gateway != "https://use1.example.com" || *r.Metering != "https://m.example.com/x" || !r.Enabled {
		t.Errorf("%+v", r)
	}
	w.as(w.system, "POST", "/regions", `{"id":"aws-us-east-1","regional_gateway_url":"https://other.example.com"}`).refused(409, "conflict")
	w.as(w.system, "PUT", "/regions/aws-us-east-1", `{"display_name":"US East","metering_export_url":"","enabled":false}`).want(200, nil)
	r = region{}
	w.as(w.system, "GET", "/regions/aws-us-east-1", "").want(200, &r)
	if r != (region{ID: "aws-us-east-1", Name: "US East", Gateway: "https://use1.example.com"}) {
		t.Errorf("%+v", r)
	}
	w.as(w.system, "DELETE", "/regions/aws-us-east-1", "").want(200, nil)
	for method, body := range map[string]string{"GET": "", "PUT": "{}", "DELETE": ""} {
		w.as(w.system, method, "/regions/aws-us-east-1", body).refused(404, "not_found")
	}
}

// The server's own region can't go, nor one that is the home of teams: who signs in
// is told of it, and where it is found once that is known.
func TestTheServersOwnRegion(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	w.as(w.system, "DELETE", "/regions/local", "").refused(409, "conflict")
	w.as(w.system, "PUT", "/regions/local", `{"enabled":false}`).refused(409, "conflict")
	w.create("/regions", w.system, `{"id":"old-home","regional_gateway_url":"https://example.com"}`, "id")
	exec(t, w.dsn, "UPDATE teams SET home_region_id = 'old-home' WHERE id = '"+w.theirs.id+"'")
	w.as(w.system, "DELETE", "/regions/old-home", "").refused(409, "conflict")

	owner := w.ours.people["owner"]
	var active struct {
		Gateway *string `json:"regional_gateway_url"`
	}
	w.as(owner, "GET", "/tenant/active", "").want(200, &active)
	if active.Gateway != nil {
		t.Errorf("nobody has said that it is at %s", *active.Gateway)
	}
	w.as(w.system, "PUT", "/regions/local", `{"regional_gateway_url":"https://s0.example.com"}`).want(200, nil)
	w.as(owner, "GET", "/tenant/active", "").want(200, &active)
	if active.Gateway == nil || *active.Gateway != "https://s0.example.com" {
		t.Errorf("%v", active.Gateway)
	}
	w.as(owner, "POST", "/auth/region-token", `{}`).want(200, &active)
	if active.Gateway == nil || *active.Gateway != "https://s0.example.com" {
		t.Errorf("%v", active.Gateway)
	}
}

// What a client would be sent to is an address of an API, and a name can be shown.
func TestRegionsThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	const url = "https://example.com"
	post := func(fields string) answer { return w.as(w.system, "POST", "/regions", "{"+fields+"}") }
	for _, id := range []string{"", "aws", "AWS-us", "aws_us", "aws/us-east-1", "-aws", "aws-", "aws--us", "1-a", "aws-ü", "aws-" + strings.Repeat("x", 60)} {
		post(fmt.Sprintf(`"id":%q,"regional_gateway_url":%q`, id, url)).refused(400, "bad_request")
	}
	for _, bad := range []string{
		"", "example.com", "//example.com", "ftp://example.com", "javascript:alert(1)", "https://", "https://:80", "https://user:pass@example.com",
		"https://example.com/?a=b", "https://example.com/#a", "https://example.com/\n", url + "/" + strings.Repeat("x", 2048),
	} {
		post(fmt.Sprintf(`"id":"aws-x","regional_gateway_url":%q`, bad)).refused(400, "bad_request")
		w.as(w.system, "PUT", "/regions/local", fmt.Sprintf(`{"regional_gateway_url":%q}`, bad)).refused(400, "bad_request")
		if bad != "" {
			post(fmt.Sprintf(`"id":"aws-x","regional_gateway_url":%q,"metering_export_url":%q`, url, bad)).refused(400, "bad_request")
		}
	}
	for _, fields := range []string{`"id":"aws-x"`, `"regional_gateway_url":"` + url + `"`, `"id":"aws-x","regional_gateway_url":"` + url + `","display_name":"a\u0007"`} {
		post(fields).refused(400, "bad_request")
	}
	exec(t, w.dsn, "INSERT INTO regions (id, display_name, regional_gateway_url, metering_export_url) SELECT 'r-' || n, '', '', '' FROM generate_series(1, 199) n")
	post(`"id":"aws-x","regional_gateway_url":"`+url+`"`).refused(409, "conflict")
}
