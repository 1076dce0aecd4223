package proxy

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"

	"s0.run/internal/s0test/forge"
	"s0.run/internal/sealed"
	"s0.run/netd/internal/audit"
)

// shellBox is a sandbox with a key for every server.
func shellBox(t *testing.T) *box {
	t.Helper()
	signer, key := forge.NewKey(t)
	b := newBox(t, `{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"r","protocol":"ssh"}]},
	"credentialBindings":[{"ref":"r","sourceRef":"src","projection":{"type":"ssh_proxy","sshProxy":{"knownHosts":["* `+forge.Line(signer.PublicKey())+`"]}}}]}`)
	b.secret("src", sealed.Secret{PrivateKeyPEM: key})
	return b
}

// says is what a server begins with.
func says(t *testing.T, c net.Conn) string {
	t.Helper()
	if _, err := io.WriteString(c, "SSH-2.0-test\r\n"); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(c).ReadString('\n') // nothing is an answer, too
	return line
}

func TestD08_ConnectionsOverSSHAreBounded(t *testing.T) {
	t.Parallel()
	b, neighbour := shellBox(t), shellBox(t)
	var open []net.Conn
	for range shells.Most {
		c := b.dial("22")
		if got := says(t, c); !strings.HasPrefix(got, "SSH-2.0-s0") {
			t.Fatalf("connection %d got %q", len(open), got)
		}
		open = append(open, c)
	}
	if got := says(t, b.dial("22")); got != "" {
		t.Errorf("one more got %q", got)
	}
	b.recorded(func(r audit.Record) bool { return r.Action == audit.Deny && strings.Contains(r.Reason, "too many") })
	if got := says(t, neighbour.dial("22")); !strings.HasPrefix(got, "SSH-2.0-s0") {
		t.Errorf("its neighbour got %q", got)
	}
	open[0].Close()
	b.recorded(func(r audit.Record) bool {
		return r.Protocol == "ssh" && r.Action == audit.Allow || strings.Contains(r.Reason, "log in")
	})
	if got := says(t, b.dial("22")); !strings.HasPrefix(got, "SSH-2.0-s0") {
		t.Errorf("in the place of one that has ended: %q", got)
	}
}

// F14: without a key that opens, or a host key of the server, nothing is dialled.
func TestF14_AnSSHKeyThatIsNone(t *testing.T) {
	t.Parallel()
	b := shellBox(t)
	b.secret("src", sealed.Secret{PrivateKeyPEM: "-----BEGIN " + canary})
	if got := says(t, b.dial("22")); got != "" {
		t.Errorf("it got %q", got)
	}
	if r := b.recorded(func(r audit.Record) bool { return r.Protocol == "ssh" }); r.Outcome != audit.Failed || !strings.Contains(r.Error, "no SSH key") || strings.Contains(r.Error+r.Reason, canary) {
		t.Errorf("%+v", r)
	}
}
