package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// paired measures two builds of the server, interleaved, on the same disk in
// the same minutes: the one of --against is the baseline.
func paired(ctx context.Context, o options, rep *report) error {
	const most = 256
	builds := []struct {
		system, binary string
		port           int
		server         *stemedb
	}{{system: baseline["paired"], binary: o.against, port: 28580}, {system: "now", binary: o.stemedb, port: 28680}}
	for i := range builds {
		b := &builds[i]
		dir := filepath.Join(o.dir, fmt.Sprint(i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		server, err := startStemedb(ctx, b.binary, dir, b.port, most)
		if err != nil {
			return fmt.Errorf("start %s: %w", b.binary, err)
		}
		defer server.stop()
		b.server = server
	}
	number := uint64(1 << 35)
	for _, l := range loads {
		l.requests = max(int64(float64(l.requests)*o.scale), int64(l.clients))
		for round := range o.rounds {
			number++
			for i := range builds {
				b := builds[(i+round)%len(builds)] // neither always runs first
				bodies := prepare(newCorpus(number), cborSequence, l.requests, l.each)
				do := b.server.assert(cborSequence, bodies)
				if l.each > 1 {
					do = b.server.batch(cborSequence, bodies, l.each)
				}
				used := b.server.proc.cpu()
				res, err := measure(ctx, l.clients, l.requests, l.each, do)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", b.system, l.name(), err)
				}
				res.ServerMS = b.server.proc.cpu() - used
				rep.add("paired", l.name(), b.system, res)
				slog.Info("measured", "load", l.name(), "build", b.system, "records/s", int(res.rate()))
			}
		}
	}
	return nil
}
