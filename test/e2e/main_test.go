package e2e_test

import (
	"net/http"
	"testing"

	"s0.run/internal/s0test/contract"
)

// checker sees every answer that a test of this package gets, and those that
// programs get through its proxy.
var checker *contract.Checker

func TestMain(m *testing.M) {
	contract.Main(m, func(c *contract.Checker) {
		checker = c
		http.DefaultTransport = c.Transport(http.DefaultTransport)
	})
}
