package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"s0.run/internal/warm"
)

// The health protocol of gRPC is one call with one field each way: less than a library
// for it.
const (
	healthPath     = "/grpc.health.v1.Health/Check"
	grpcPrefix     = 5       // of a message: whether it is compressed, and its length
	maxHealthBytes = 1 << 10 // of an answer
	healthServing  = 1       // the status that is no failure
	fieldOne       = 1 << 3  // the tag of field 1; a string's has wireBytes, too
	wireBytes      = 2
)

// grpcClient sends each request over a connection of its own.
var grpcClient = &http.Client{Transport: grpcTransport()}

func grpcTransport() http.RoundTripper {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Protocols: protocols, DialContext: loopback, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// grpcCheck asks a server for the health of a service; it must say that it serves.
func grpcCheck(ctx context.Context, g *warm.GRPC) error {
	url := "http://localhost:" + strconv.Itoa(g.Port) + healthPath
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(healthRequest(g.Service)))
	if err != nil {
		return err
	}
	for name, value := range map[string]string{"Content-Type": "application/grpc", "Te": "trailers", "User-Agent": userAgent} {
		req.Header.Set(name, value)
	}
	resp, err := grpcClient.Do(req)
	if err != nil {
		return plain(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHealthBytes))
	if err != nil {
		return plain(err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return healthOf(resp, body)
}

func healthRequest(service string) []byte {
	var message []byte
	if service != "" {
		message = binary.AppendUvarint([]byte{fieldOne | wireBytes}, uint64(len(service)))
		message = append(message, service...)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

// healthOf reads an answer. A server that has no answer says so in what follows it, or
// instead of it.
func healthOf(resp *http.Response, body []byte) error {
	status, says := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if status == "" {
		status, says = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	if status != "0" {
		return errors.New(Printable(fmt.Sprintf("gRPC status %q: %s", status, says), maxLineBytes))
	}
	if len(body) < grpcPrefix || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-grpcPrefix {
		return errors.New("not an answer of the health protocol")
	}
	serving := uint64(0)
	if message := body[grpcPrefix:]; len(message) > 0 && message[0] == fieldOne {
		serving, _ = binary.Uvarint(message[1:])
	}
	if serving != healthServing {
		return fmt.Errorf("health status %d", serving)
	}
	return nil
}
