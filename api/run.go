package api

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"s0.run/api/internal/store"
	"s0.run/internal/daemon"
)

// run serves until ctx ends. The requests end before what they work with.
func (s *server) run(ctx context.Context) error {
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	g, background := errgroup.WithContext(background)
	context.AfterFunc(background, stopServing)
	g.Go(func() error { return s.nodes.Run(background) })
	g.Go(func() error { return s.pools.Run(background) })
	g.Go(func() error { return s.images.Run(background) })
	g.Go(func() error { return s.lifecycle.Run(background) })
	g.Go(func() error { return s.network.Run(background) })
	g.Go(func() error { return s.volumes.Run(background) })
	g.Go(func() error { return s.bandwidth.Run(background) })
	g.Go(func() error { return s.meter.Run(background) })
	g.Go(func() error { return s.events.Run(background) })
	g.Go(func() error { return s.webhooks.Run(background) })
	g.Go(func() error { return s.followChanges(background) })
	if s.admin != nil {
		g.Go(func() error { return s.serveAdmin(background) })
	}
	if s.members != nil {
		g.Go(func() error { return s.members.Run(background, s.nodes) })
	}
	if s.joining != nil {
		srv := s.members.Server()
		g.Go(func() error {
			return daemon.Serve(background, srv, tls.NewListener(s.joining, srv.TLSConfig), stopGrace)
		})
	}
	s.awaitNodes(serving)
	if s.cfg.Ready != nil {
		s.cfg.Ready(s.listener.Addr().String())
	}
	err := daemon.Serve(s.drained(serving), s.http, s.listener, stopGrace)
	s.sockets.Close()
	s.watches.Close()
	s.exposure.Close()
	s.runtimes.Close()
	s.captures.Close()
	s.claimer.Wait()
	stopBackground()
	if failed := g.Wait(); failed != nil {
		return failed
	}
	return err
}

// awaitNodes lets requests wait in the listener's queue until it is known which node is which.
func (s *server) awaitNodes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, nodesWait)
	defer cancel()
	s.nodes.Settled(ctx)
}

func (s *server) serveAdmin(ctx context.Context) error {
	mux := daemon.AdminMux()
	mux.Handle("GET /metrics", s.metrics)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: loadTimeout, ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug)}
	return daemon.Serve(ctx, srv, s.admin, 0)
}

// drained ends a while after ctx does. Until then everything is served, but /readyz
// says no: whoever spreads requests over servers goes elsewhere before this one
// takes no more.
func (s *server) drained(ctx context.Context) context.Context {
	drained, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		s.draining.Store(true)
		time.AfterFunc(s.cfg.Drain, cancel)
	})
	return drained
}

// followChanges drops from memory what changed in the database, whoever changed
// it. While nobody can tell, what is in memory has its own short life.
func (s *server) followChanges(ctx context.Context) error {
	for {
		err := s.store.Listen(ctx, func(table string) { s.changed(ctx, table) })
		if ctx.Err() != nil {
			return nil
		}
		s.cfg.Log.Warn("lost the database's notifications", "err", err)
		select {
		case <-time.After(listenPause/2 + rand.N(listenPause)): // replicas must not come back in step (G14)
		case <-ctx.Done():
			return nil
		}
	}
}

// changed handles one notification; "" stands for whatever may have been missed.
func (s *server) changed(ctx context.Context, table string) {
	switch table {
	case "", store.TableAPIKeys, store.TableUsers, store.TableTeams, store.TableMembers:
		s.auth.Forget()
	}
	switch table {
	case "", store.TableQuotas, store.TableDefaults:
		s.claimer.LimitsChanged()
		s.bandwidth.Kick()
	}
	switch table {
	case "", store.TableUses:
		s.network.Kick()
	}
	switch table {
	case "", store.TableNodes:
		if s.members != nil {
			s.members.Kick()
		}
	}
	if table != store.TableTemplates && table != "" {
		return
	}
	for ctx.Err() == nil {
		err := s.catalog.Load(ctx)
		if err == nil {
			s.pools.Kick()
			return
		}
		s.cfg.Log.Warn("could not load the templates", "err", err)
		select {
		case <-time.After(listenPause):
		case <-ctx.Done():
		}
	}
}
