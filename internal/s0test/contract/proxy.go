package contract

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
)

// Proxy serves a server's API to programs that a test runs, until the test ends,
// which fails for what was found.
func (c *Checker) Proxy(t testing.TB, server string) (address string) {
	t.Helper()
	target, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	direct := http.DefaultTransport
	if checked, ok := direct.(transport); ok {
		direct = checked.base // once is enough
	}
	proxy := &httputil.ReverseProxy{
		Transport: direct, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
			r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"]
		},
		ModifyResponse: func(resp *http.Response) error {
			if resp.StatusCode != http.StatusSwitchingProtocols {
				c.Check(resp)
			} else {
				body := resp.Body
				c.Check(resp)
				resp.Body = body // the proxy needs it as it is
			}
			return nil
		},
		// A server that is away is away here too.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	srv := httptest.NewUnstartedServer(proxy)
	srv.Config.ErrorLog = proxy.ErrorLog
	srv.Start()
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		c.Report(t)
	})
	return srv.URL
}
