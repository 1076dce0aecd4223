package netd_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/gorilla/websocket"
)

// client is one of HTTP/2 that connects to an address of the attempt's own choice.
func (a attempt) client() *http.Client {
	t := &http.Transport{
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return net.Dial("tcp", a.To) },
		TLSClientConfig: a.believing(), ForceAttemptHTTP2: true,
	}
	return &http.Client{Transport: t, Timeout: deadline}
}

func (a attempt) believing() *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(a.Roots))
	return &tls.Config{RootCAs: roots, ServerName: a.Name}
}

// h2 asks for a URL over HTTP/2, and says over what it was answered.
func (a attempt) h2() (int, string, error) {
	resp, err := a.client().Get(a.URL)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Proto + " " + string(body), err
}

// grpc is a call both of whose sides stream: each message is answered before the next
// one is sent, and its status is in the trailer.
func (a attempt) grpc() (int, string, error) {
	pr, pw := io.Pipe()
	defer pw.Close()
	r, err := http.NewRequest(http.MethodPost, a.URL, pr)
	if err != nil {
		return 0, "", err
	}
	r.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
	resp, err := a.client().Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	out := resp.Proto
	for _, word := range []string{"one", "two", "three"} {
		if err := writeMessage(pw, []byte(word)); err != nil {
			return resp.StatusCode, out, err
		}
		answer, err := readMessage(resp.Body)
		if err != nil {
			return resp.StatusCode, out, err
		}
		out += " " + string(answer)
	}
	pw.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, out + " status " + resp.Trailer.Get("Grpc-Status"), err
}

// writeMessage and readMessage are gRPC's: a byte, a length, and what has it.
func writeMessage(w io.Writer, m []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...))
	return err
}

func readMessage(r io.Reader) ([]byte, error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	m := make([]byte, min(binary.BigEndian.Uint32(head[1:]), 1<<16))
	_, err := io.ReadFull(r, m)
	return m, err
}

// ws talks over a WebSocket.
func (a attempt) ws() (int, string, error) {
	d := websocket.Dialer{
		NetDialContext:  func(context.Context, string, string) (net.Conn, error) { return net.Dial("tcp", a.To) },
		TLSClientConfig: a.believing(), HandshakeTimeout: deadline,
	}
	c, resp, err := d.Dial(a.URL, nil)
	if err != nil {
		return 0, "", err
	}
	defer c.Close()
	out := ""
	for _, word := range []string{"one", "\x00two", strings.Repeat("three", 20000)} {
		if err := c.WriteMessage(websocket.BinaryMessage, []byte(word)); err != nil {
			return resp.StatusCode, out, err
		}
		_, answer, err := c.ReadMessage()
		if err != nil {
			return resp.StatusCode, out, err
		}
		out += fmt.Sprintf("%.4s %d ", answer, len(answer))
	}
	return resp.StatusCode, out, nil
}

// ech asks for Name in a ClientHello that is encrypted, behind one in which the URL is
// the server's name.
func (a attempt) ech() (string, error) {
	list, err := echConfigs(a.URL)
	if err != nil {
		return "", err
	}
	c, err := a.dial()
	if err != nil {
		return "", err
	}
	defer c.Close()
	config := a.believing()
	config.MinVersion, config.EncryptedClientHelloConfigList = tls.VersionTLS13, list
	conn := tls.Client(c, config)
	if err := conn.Handshake(); err != nil {
		return "", err
	}
	return "a handshake", nil
}

// echConfigs is a list of one configuration, with a key that nobody else has.
func echConfigs(public string) ([]byte, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	const x25519, sha256, aes128 = 0x20, 1, 1
	var b bytes.Buffer
	put := func(parts ...any) {
		for _, p := range parts {
			_ = binary.Write(&b, binary.BigEndian, p)
		}
	}
	put(uint8(7), uint16(x25519), uint16(32), key.PublicKey().Bytes(), uint16(4), uint16(sha256), uint16(aes128), uint8(64), uint8(len(public)), []byte(public), uint16(0))
	config := append(binary.BigEndian.AppendUint16([]byte{0xfe, 0x0d}, uint16(b.Len())), b.Bytes()...)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...), nil
}

// serveGRPC answers each message as it comes, in capitals.
func serveGRPC(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	c := http.NewResponseController(w)
	_ = c.Flush()
	for {
		m, err := readMessage(r.Body)
		if err != nil {
			break
		}
		if writeMessage(w, bytes.ToUpper(m)) != nil || c.Flush() != nil {
			return
		}
	}
	w.Header().Set("Grpc-Status", "0")
}

// serveWebSocket answers each message, in capitals.
func serveWebSocket(w http.ResponseWriter, r *http.Request) {
	c, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	for {
		kind, m, err := c.ReadMessage()
		if err != nil || c.WriteMessage(kind, bytes.ToUpper(m)) != nil {
			return
		}
	}
}
