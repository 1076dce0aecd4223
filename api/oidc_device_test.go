package api_test

import (
	"net/url"
	"strings"

	"s0.run/internal/s0test/oidctest"
)

type deviceLogin struct {
	ID       string `json:"device_login_id"`
	UserCode string `json:"user_code"`
	URL      string `json:"verification_uri"`
	Complete string `json:"verification_uri_complete"`
	Expires  int64  `json:"expires_at"`
	Interval int    `json:"interval_seconds"`
}

func (o *oidcTest) startDevice() (d deviceLogin) {
	o.t.Helper()
	o.send(request{method: "POST", path: "/auth/oidc/corp/device/start"}).want(200, &d)
	return d
}

// poll asks when it is time, which the test does not wait for.
func (o *oidcTest) poll(d deviceLogin) answer {
	o.t.Helper()
	o.sql("UPDATE device_logins SET next_poll = now() WHERE id_hash = sha256('%s')", d.ID)
	return o.pollNow(o.other, d)
}

func (o *oidcTest) pollNow(i *instance, d deviceLogin) answer {
	o.t.Helper()
	return i.send(request{method: "POST", path: "/auth/oidc/corp/device/poll", body: map[string]string{"device_login_id": d.ID}})
}

type deviceState struct {
	Status   string
	Interval int `json:"interval_seconds"`
	Login    *login
}

func testOIDCDevice(o *oidcTest) {
	d := o.startDevice()
	if d.Interval != 5 || d.UserCode == "" || !strings.HasPrefix(d.URL, o.provider.Issuer) || !strings.Contains(d.Complete, url.QueryEscape(d.UserCode)) {
		o.t.Fatalf("%+v", d)
	}
	var s deviceState
	for _, i := range []*instance{o.instance, o.other} {
		if o.pollNow(i, d).want(200, &s); s.Status != "slow_down" || s.Interval != 5 || s.Login != nil {
			o.t.Errorf("polled at once: %+v", s)
		}
	}
	if o.poll(d).want(200, &s); s.Status != "pending" || s.Login != nil {
		o.t.Errorf("before it is confirmed: %+v", s)
	}
	at, last := oidctest.NewBrowser(o.t).Go(d.Complete, oidctest.As("alice"), publicURL)
	if !strings.Contains(last, "success") && !strings.Contains(last, "Success") {
		o.t.Fatalf("the provider did not confirm: %s\n%s", at, last)
	}
	if o.poll(d).want(200, &s); s.Status != "completed" || s.Login == nil || s.Login.User.Name != "Alice" {
		o.t.Fatalf("after it was confirmed: %+v", s)
	}
	o.send(request{method: "GET", path: "/users/me", token: s.Login.AccessToken}).want(200, nil)
	o.poll(d).refused(404, "not_found")
}

func testOIDCDeviceDenied(o *oidcTest) {
	d := o.startDevice()
	oidctest.NewBrowser(o.t).Go(d.Complete, oidctest.Refusing("alice"), publicURL)
	o.poll(d).refused(403, "forbidden")
	o.poll(d).refused(404, "not_found")
	// Who confirms may be nobody here.
	d = o.startDevice()
	oidctest.NewBrowser(o.t).Go(d.Complete, oidctest.As("foreign"), publicURL)
	o.poll(d).refused(403, "forbidden")
}

func testOIDCDeviceEnds(o *oidcTest) {
	d := o.startDevice()
	o.sql("UPDATE device_logins SET expires_at = now() - interval '1 second' WHERE id_hash = sha256('%s')", d.ID)
	o.poll(d).refused(404, "not_found")
	o.pollNow(o.instance, deviceLogin{ID: strings.Repeat("x", len(d.ID))}).refused(404, "not_found")
	o.pollNow(o.instance, deviceLogin{ID: "x"}).refused(404, "not_found")
	// Of a stolen database nobody can finish a sign-in: what is there opens with the
	// id alone.
	if n := o.count("SELECT count(*) FROM device_logins WHERE length(sealed_code) < 43 OR length(id_hash) <> 32"); n != 0 {
		o.t.Errorf("%d codes are not sealed", n)
	}
}
