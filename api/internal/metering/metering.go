// Package metering sees to it that what teams use is recorded: it has the store
// make events and windows of what is durable, and brings it what nodes counted.
//
// A [Meter] owns one goroutine while [Meter.Run] runs and remembers nothing. Every
// replica has one; the database decides whose turn it is, by its clock, and counts
// what two of them bring once. Counters are read once a minute and begin again with a
// generation: what a sandbox sent, received or stored after the last reading of one, up
// to a minute before it was paused or ended, is not recorded and counts for no quota; its
// running time is. A node of a version without ReadCounters is read when it is upgraded:
// upgrade nodes before API servers. What generations counted that ended before is lost.
package metering

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/internal/sandbox"
)

const (
	readEvery   = time.Minute // of every sandbox, by one replica
	purgeEvery  = time.Hour
	retention   = 400 * 24 * time.Hour
	nodeTimeout = 30 * time.Second // of reading one node; who is left out comes another time
	atOnce      = 8                // nodes
	batch       = 500              // readings that are stored together
)

// Nodes gives clients for calls to nodes; see nodes.Set.
type Nodes interface {
	RPC(node string) (nodeapiconnect.NodeClient, error)
}

// Config names what a Meter works with.
type Config struct {
	Store *store.Store
	Table *placement.Table
	Nodes Nodes
	Log   *slog.Logger

	Every time.Duration // between two passes; defaults to 15 s
}

// Meter is made by New.
type Meter struct{ cfg Config }

// New makes a Meter.
func New(cfg Config) *Meter {
	if cfg.Every == 0 {
		cfg.Every = 15 * time.Second
	}
	return &Meter{cfg}
}

// Run meters until ctx ends.
func (m *Meter) Run(ctx context.Context) error {
	tick, purge := time.NewTicker(m.cfg.Every), time.NewTicker(purgeEvery)
	defer tick.Stop()
	defer purge.Stop()
	for {
		select {
		case <-tick.C:
			m.report(ctx, "could not read what nodes counted", m.read(ctx))
			m.report(ctx, "could not record what teams use", m.cfg.Store.Meter(ctx))
		case <-purge.C:
			m.report(ctx, "could not purge what was metered", m.cfg.Store.PurgeMetering(ctx, retention))
			m.report(ctx, "could not recount what teams use", m.recount(ctx))
		case <-ctx.Done():
			return nil
		}
	}
}

// report is silent about what fails because the server stops.
func (m *Meter) report(ctx context.Context, msg string, err error) {
	if err != nil && ctx.Err() == nil {
		m.cfg.Log.Warn(msg, "err", err)
	}
}

func (m *Meter) recount(ctx context.Context) error {
	wrong, err := m.cfg.Store.Recount(ctx)
	if wrong > 0 {
		m.cfg.Log.Error("what teams are counted to use was wrong, and is repaired: a defect", "teams", wrong)
	}
	return err
}

// read asks every node about its sandboxes, if it is this replica's turn.
func (m *Meter) read(ctx context.Context) error {
	mine, err := m.cfg.Store.TakeReadingTurn(ctx, readEvery)
	if err != nil || !mine {
		return err
	}
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, n := range m.cfg.Table.Synced() {
		g.Go(func() error { return m.readNode(ctx, n.Name) })
	}
	return g.Wait()
}

// readNode asks a node. One that hangs holds up no other, and not for long.
func (m *Meter) readNode(ctx context.Context, name string) error {
	rpc, err := m.cfg.Nodes.RPC(name)
	if err != nil {
		return nil // it has just been lost
	}
	asking, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	readings, failed := m.counters(asking, name, rpc)
	for part := range slices.Chunk(readings, batch) {
		failed = errors.Join(failed, m.cfg.Store.AddReadings(ctx, part))
	}
	return errors.Join(failed, m.readVolumes(asking, name, rpc))
}

// counters is what a node counted of the sandboxes that it has: what it says of
// others' counts for nothing.
func (m *Meter) counters(ctx context.Context, name string, rpc nodeapiconnect.NodeClient) ([]store.Reading, error) {
	stream, err := rpc.ReadCounters(ctx, &nodeapi.ReadCountersRequest{})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	read := map[sandbox.ID]store.Reading{}
	for stream.Receive() {
		for _, c := range stream.Msg().GetCounters() {
			id := sandbox.ID(c.GetId())
			if sb, _, known := m.cfg.Table.Lookup(id); known && sb.Node == name && sb.State == sandbox.Running {
				read[id] = store.Reading{
					ID: id, Generation: sandbox.Generation(c.GetGeneration()),
					IngressBytes: c.GetRxBytes(), EgressBytes: c.GetTxBytes(), RootfsBytes: c.GetDiskBytes(),
				}
			}
		}
	}
	if err = stream.Err(); connect.CodeOf(err) == connect.CodeUnimplemented { // it is of an older version: its counters wait
		err = nil
	}
	return slices.Collect(maps.Values(read)), err
}

// readVolumes asks a node what the volumes hold that it may write to.
func (m *Meter) readVolumes(ctx context.Context, name string, rpc nodeapiconnect.NodeClient) error {
	resp, err := rpc.ListVolumes(ctx, &nodeapi.ListVolumesRequest{})
	if err != nil {
		if connect.CodeOf(err) == connect.CodeUnimplemented { // it has none
			return nil
		}
		return err
	}
	var readings []store.VolumeReading
	for _, v := range resp.GetVolumes() {
		if id, err := uuid.Parse(v.GetId()); err == nil && v.GetBytes() >= 0 {
			readings = append(readings, store.VolumeReading{ID: id, Bytes: v.GetBytes()})
		}
	}
	for part := range slices.Chunk(readings, batch) {
		if err := m.cfg.Store.AddVolumeReadings(ctx, name, part); err != nil {
			return err
		}
	}
	return nil
}
