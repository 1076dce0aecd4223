package services

import (
	"strings"
	"testing"
)

func TestDomains(t *testing.T) {
	t.Parallel()
	for root, want := range map[string]string{
		"apps.example.com":         "https://" + string(id) + "--p80.local.apps.example.com",
		"https://Apps.Example.com": "https://" + string(id) + "--p80.local.apps.example.com",
		"http://s0.localhost:3000": "http://" + string(id) + "--p80.local.s0.localhost:3000",
		"apps.example.com:8443":    "https://" + string(id) + "--p80.local.apps.example.com:8443",
	} {
		d, err := NewDomain("Local", root)
		if err != nil || d.URL(id, 80) != want {
			t.Errorf("%s: %s, %v", root, d.URL(id, 80), err)
		}
	}
	for _, root := range []string{"", "ftp://a.b", "a b.c", "a.b/c", "a.b:0", "a.b:x", "-a.b", "127.0.0.1", strings.Repeat("a.", 120) + "b"} {
		if d, err := NewDomain("local", root); err == nil {
			t.Errorf("%q became %q", root, d)
		}
	}
}

func TestA19_OneWayToReadAHost(t *testing.T) {
	t.Parallel()
	d, err := NewDomain("local", "http://s0.localhost:30080")
	if err != nil {
		t.Fatal(err)
	}
	const name = string(id) + "--p8080.local.s0.localhost"
	for _, host := range []string{name, name + ":30080", name + ":1", name + ".", name + ".:30080", strings.ToUpper(name)} {
		if a, within, err := d.Parse(host); !within || err != nil || a != (Address{id, 8080}) {
			t.Errorf("%s: %v, %v, %v", host, a, within, err)
		}
	}
	for _, host := range []string{
		"local.s0.localhost", "x.local.s0.localhost", "a." + name, string(id) + ".local.s0.localhost",
		string(id) + "--p.local.s0.localhost", string(id) + "--p0.local.s0.localhost", string(id) + "--p080.local.s0.localhost",
		string(id) + "--p65536.local.s0.localhost", string(id) + "--p+80.local.s0.localhost", string(id) + "--p80--p81.local.s0.localhost",
		"--p80.local.s0.localhost", "../x--p80.local.s0.localhost", string(id) + "-p80.local.s0.localhost", "\x00" + name,
	} {
		if a, within, err := d.Parse(host); !within || err == nil {
			t.Errorf("%s: %v, %v, %v", host, a, within, err)
		}
	}
	for _, host := range []string{"", "localhost", "127.0.0.1:30080", "s0.localhost", "xlocal.s0.localhost", name + "..", name + ".evil.com", name + ",evil.com", "[::1]", name + "/"} {
		if a, within, err := d.Parse(host); within || err == nil {
			t.Errorf("%s: %v, %v, %v", host, a, within, err)
		}
	}
}

// FuzzParse: what is read from a host means the same when it is written again.
func FuzzParse(f *testing.F) {
	d, err := NewDomain("local", "http://s0.localhost:30080")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(id) + "--p8080.local.s0.localhost:30080")
	f.Add("local.s0.localhost.")
	f.Fuzz(func(t *testing.T, host string) {
		a, within, err := d.Parse(host)
		if err != nil {
			return
		}
		b, _, err := d.Parse(strings.TrimPrefix(d.URL(a.ID, a.Port), "http://"))
		if !within || err != nil || a != b {
			t.Fatalf("%q is %v, written again %v, %v", host, a, b, err)
		}
	})
}
