// Package metering sees to it that what teams use is recorded: it has the store
// make events and windows of what is durable, and brings it what nodes counted.
//
// A [Meter] owns one goroutine while [Meter.Run] runs and remembers nothing. Every
// replica has one; the database decides whose turn it is, by its clock, and counts
// what two of them bring once. Counters are read once a minute and begin again with a
// generation; nodes tell the last of each generation that is over for a while, which
// adds to its traffic alone. What a sandbox stored is as the last reading says, up to a
// minute before it was paused or ended. A node of a version without ReadCounters is read when it is upgraded:
// upgrade nodes before API servers. What generations counted that ended before is lost.
package metering

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
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
	mostRead    = 1 << 17          // readings of one node: more than it has sandboxes, and than it keeps
	mostRounds  = 64               // generations of one sandbox that are stored of one answer
	storing     = 30 * time.Second // what one node told, all of it
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
	readings, failed := counters(asking, rpc)
	return errors.Join(failed, m.store(ctx, name, readings), m.readVolumes(asking, name, rpc))
}

// store stores what a node told, as far as it comes in time.
func (m *Meter) store(ctx context.Context, node string, readings []store.Reading) (failed error) {
	ctx, cancel := context.WithTimeout(ctx, storing)
	defer cancel()
	for _, round := range rounds(readings) {
		for part := range slices.Chunk(round, batch) {
			failed = errors.Join(failed, m.cfg.Store.AddReadings(ctx, node, part))
			if ctx.Err() != nil {
				return failed
			}
		}
	}
	return failed
}

// counters is what a node counted, of one sandbox older generations first. Whose it may
// speak of the store knows.
func counters(ctx context.Context, rpc nodeapiconnect.NodeClient) (read []store.Reading, err error) {
	stream, err := rpc.ReadCounters(ctx, &nodeapi.ReadCountersRequest{})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	for stream.Receive() && len(read) < mostRead {
		for _, c := range stream.Msg().GetCounters() {
			if id, err := sandbox.ParseID(c.GetId()); err == nil && c.GetRxBytes() >= 0 && c.GetTxBytes() >= 0 {
				read = append(read, store.Reading{
					ID: id, Generation: sandbox.Generation(c.GetGeneration()),
					IngressBytes: c.GetRxBytes(), EgressBytes: c.GetTxBytes(), RootfsBytes: c.GetDiskBytes(), Final: c.GetFinal(),
				})
			}
		}
	}
	if err = stream.Err(); connect.CodeOf(err) == connect.CodeUnimplemented { // it is of an older version: its counters wait
		err = nil
	}
	return read, err
}

// rounds divides readings into lists that have one of a sandbox each, older generations
// first. Of one sandbox the newest count, and no more than a node has reason to tell.
func rounds(read []store.Reading) (all [][]store.Reading) {
	of := map[sandbox.ID][]store.Reading{}
	for _, r := range read {
		some := of[r.ID]
		at, there := slices.BinarySearchFunc(some, r, byGeneration)
		switch {
		case there:
			some[at] = newer(some[at], r)
		case len(some) < mostRounds:
			of[r.ID] = slices.Insert(some, at, r)
		case at > 0: // the oldest gives way
			copy(some, some[1:at])
			some[at-1] = r
		}
	}
	for _, some := range of {
		for n, r := range some {
			if n == len(all) {
				all = append(all, nil)
			}
			all[n] = append(all[n], r)
		}
	}
	return all
}

func byGeneration(a, b store.Reading) int { return cmp.Compare(a.Generation, b.Generation) }

// newer is what two readings of one generation come to: its counters only grow.
func newer(a, b store.Reading) store.Reading {
	if b.IngressBytes >= a.IngressBytes && b.EgressBytes >= a.EgressBytes {
		a, b = b, a
	}
	a.Final = a.Final || b.Final
	return a
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
