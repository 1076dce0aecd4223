// The procd program is PID 1 of a sandbox: see package procd.
package main

import (
	"context"
	"log/slog"
	"os"
	"slices"

	"s0.run/internal/procapi"
	"s0.run/procd"
)

// version is set by the linker.
var version = "dev"

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := procd.Run(context.Background(), procd.Config{Version: version, Log: log, Guest: slices.Contains(os.Args[1:], procapi.GuestFlag)}); err != nil {
		log.Error("procd failed", "err", err)
		os.Exit(1)
	}
}
