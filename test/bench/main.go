// Command bench measures StemeDB side by side with etcd and PostgreSQL on the
// same disk in the same minutes, and against itself where a ratio is more
// meaningful than a number: queries against the health path, a start after kill
// -9.
//
// Every system runs as a separate process with its durability switched on. The
// runs are interleaved and repeated, the report shows medians, and the ratio is
// the claim.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

type options struct {
	stemedb, etcd, postgresBin string
	dir, out                   string
	rounds                     int
	scale                      float64
	records                    int64
	only, against              string
}

func main() {
	var o options
	flag.StringVar(&o.stemedb, "stemedb", "", "path of the server's binary")
	flag.StringVar(&o.etcd, "etcd", "", "path of etcd's binary")
	flag.StringVar(&o.postgresBin, "postgres-bin", "/usr/lib/postgresql/15/bin", "folder of initdb and postgres")
	flag.StringVar(&o.dir, "dir", "", "folder for the data of all systems, on the disk to be measured (default: a new temporary one)")
	flag.StringVar(&o.out, "out", "", "Markdown file to write the tables to; profiles go into a folder of the same name; empty: everything to standard output")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each measurement is repeated")
	flag.Float64Var(&o.scale, "scale", 1, "multiplies the number of requests; below 1 for a quick look")
	flag.Int64Var(&o.records, "records", 1_000_000, "records for the restart and memory measurements")
	flag.StringVar(&o.only, "only", "", "ingest, profile, query or restart; empty for all")
	flag.StringVar(&o.against, "against", "", "path of another build of the server: measure only the two, in turns")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		slog.Error("the benchmark failed", "error", err)
		os.Exit(1)
	}
}

// section is a part of the report.
type section struct {
	name string
	run  func(context.Context, options, *report) error
}

func run(ctx context.Context, o options) error {
	if o.stemedb == "" || o.etcd == "" && o.against == "" {
		return fmt.Errorf("--stemedb and --etcd are required; `make bench` builds both and passes them")
	}
	if o.dir == "" {
		dir, err := os.MkdirTemp("", "stemedb-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL runs as a separate user
			return err
		}
		o.dir = dir
	}
	rep := newReport(o.rounds)
	sections := []section{{"ingest", ingest}, {"profile", profiles}, {"query", queries}, {"restart", restart}}
	if o.against != "" {
		sections = []section{{"paired", paired}}
	}
	for _, s := range sections {
		if o.only != "" && o.only != s.name {
			continue
		}
		dir := filepath.Join(o.dir, s.name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		here := o
		here.dir = dir
		if err := s.run(ctx, here, rep); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if o.out != "" {
		return rep.write(o.out)
	}
	fmt.Print(rep.markdown("benchmarks"))
	for _, p := range rep.profiles {
		fmt.Printf("\n%s\n%s\n", p.file(), p.text)
	}
	return nil
}

// load is one row of the ingest table.
type load struct {
	clients  int
	each     int64 // records per request
	requests int64
}

var loads = []load{{1, 1, 3000}, {16, 1, 24000}, {256, 1, 48000}, {256, 100, 2000}}

func (l load) name() string {
	if l.each == 1 {
		return "single records, " + clients(l.clients)
	}
	return fmt.Sprintf("batches of %d, %s", l.each, clients(l.clients))
}

func ingest(ctx context.Context, o options, rep *report) error {
	const most = 256
	st, err := startStemedb(ctx, o.stemedb, o.dir, 28180, most)
	if err != nil {
		return err
	}
	defer st.stop()
	et, err := startEtcd(ctx, o.etcd, o.dir, 28190, most)
	if err != nil {
		return err
	}
	defer et.stop()
	pg, err := startPostgres(ctx, o.postgresBin, o.dir, 28195, most)
	if err != nil {
		return err
	}
	defer pg.stop()
	number := uint64(0)
	for _, l := range loads {
		l.requests = max(int64(float64(l.requests)*o.scale), int64(l.clients))
		for round := range o.rounds {
			runs := contenders(l, st, et, pg, func() *corpus { // no run sees the records of another
				number++
				return newCorpus(number)
			})
			// A different order each round, so that no system always runs first.
			for i := range runs {
				r := runs[(i+round)%len(runs)]
				used := r.proc.cpu()
				res, err := measure(ctx, l.clients, r.requests, r.each, r.do)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", r.system, l.name(), err)
				}
				res.ServerMS = r.proc.cpu() - used
				rep.add("ingest", l.name(), r.system, res)
				slog.Info("measured", "load", l.name(), "system", r.system, "records/s", int(res.rate()), "p99 µs", res.Latency.ValueAtQuantile(99))
			}
		}
	}
	return nil
}

// contender is one system under one load.
type contender struct {
	system         string
	proc           *process
	requests, each int64
	do             op
}

// contenders are the systems and request types measured under a load. etcd's
// put, one record per request, is also the baseline of the batches.
func contenders(l load, st *stemedb, et *etcd, pg *postgres, fresh func() *corpus) []contender {
	singles := max(l.requests, 48*int64(l.clients)) // for a batch load, whose own requests are too few
	runs := []contender{
		{baseline["ingest"], et.proc, singles, 1, et.put(fresh())},
		{"etcd put, one connection for all", et.proc, singles, 1, et.putShared(fresh())},
	}
	for _, enc := range []encoding{cborSequence, jsonArray} {
		bodies := prepare(fresh(), enc, l.requests, l.each)
		do := st.assert(enc, bodies)
		if l.each > 1 {
			do = st.batch(enc, bodies, l.each)
		}
		runs = append(runs, contender{"StemeDB, " + enc.name, st.proc, l.requests, l.each, do})
	}
	if l.each == 1 {
		return append(runs, contender{"PostgreSQL", pg.proc, l.requests, 1, pg.insert(fresh())})
	}
	return append(runs,
		contender{fmt.Sprintf("etcd Txn of %d puts", l.each), et.proc, l.requests, l.each, et.txn(fresh(), l.each)},
		contender{fmt.Sprintf("PostgreSQL, %d rows a statement", l.each), pg.proc, l.requests, l.each, pg.insertMany(fresh(), l.each)})
}

// profiles shows the bottleneck of ingest at 256 clients: the distribution of
// the server's CPU time.
func profiles(ctx context.Context, o options, rep *report) error {
	const number = 1 << 20
	st, err := startStemedb(ctx, o.stemedb, o.dir, 28480, 256)
	if err != nil {
		return err
	}
	defer st.stop()
	for i, l := range []load{{256, 1, 80000}, {256, 100, 4000}} {
		l.requests = max(int64(float64(l.requests)*o.scale), int64(l.clients))
		bodies := prepare(newCorpus(number+10+uint64(i)), cborSequence, l.requests, l.each)
		do := st.assert(cborSequence, bodies)
		if l.each > 1 {
			do = st.batch(cborSequence, bodies, l.each)
		}
		file := filepath.Join(o.dir, fmt.Sprintf("profile-%d.pb.gz", l.each))
		errs := make(chan error, 1)
		go func() { errs <- st.profile(ctx, 3*time.Second, file) }()
		if _, err := measure(ctx, l.clients, l.requests, l.each, do); err != nil {
			return err
		}
		if err := <-errs; err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-cum", "-nodecount=45", o.stemedb, file).CombinedOutput()
		if err != nil {
			return fmt.Errorf("read profile: %w: %s", err, out)
		}
		rep.profile(l.name(), strings.TrimSpace(string(out)))
	}
	return nil
}

func queries(ctx context.Context, o options, rep *report) error {
	st, err := startStemedb(ctx, o.stemedb, o.dir, 28280, 64)
	if err != nil {
		return err
	}
	defer st.stop()
	const each, records = 500, 100_000
	c := newCorpus(1 << 32)
	bodies := prepare(c, cborSequence, records/each, each)
	if _, err := measure(ctx, 8, records/each, each, st.batch(cborSequence, bodies, each)); err != nil {
		return fmt.Errorf("load %d records: %w", records, err)
	}
	var byID, bySubject []string
	for seq := range int64(5000) {
		a := c.assertion(seq * 19)
		byID = append(byID, "/v1/assertions/"+a.ID().String())
		bySubject = append(bySubject, "/v1/query?lens=recency&subject="+urlEscape(a.Subject)+"&predicate="+urlEscape(a.Predicate))
	}
	requests := int64(60000 * o.scale)
	for range o.rounds {
		for _, m := range []struct {
			name  string
			paths []string
		}{{"/v1/health/live", []string{"/v1/health/live"}}, {"/v1/assertions/{hash}", byID}, {"/v1/query, lens=recency", bySubject}} {
			used := st.proc.cpu()
			res, err := measure(ctx, 32, requests, 1, st.get(m.paths))
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			res.ServerMS = st.proc.cpu() - used
			rep.add("query", "32 clients, 100,000 records", m.name, res)
			slog.Info("measured", "path", m.name, "requests/s", int(res.rate()))
		}
	}
	return nil
}

func restart(ctx context.Context, o options, rep *report) error {
	st, err := startStemedb(ctx, o.stemedb, o.dir, 28380, 64)
	if err != nil {
		return err
	}
	defer st.stop()
	const each, slice = 500, 100_000
	began := time.Now()
	for done := int64(0); done < o.records; done += slice {
		part := newCorpus(1<<33 + uint64(done))
		bodies := prepare(part, cborSequence, slice/each, each)
		if _, err := measure(ctx, 16, slice/each, each, st.batch(cborSequence, bodies, each)); err != nil {
			return fmt.Errorf("load records: %w", err)
		}
		rss, peak := st.proc.memory()
		slog.Info("loaded", "records", done+slice, "elapsed", time.Since(began).Round(time.Second), "rss MiB", int(rss), "peak MiB", int(peak))
	}
	rss, peak := st.proc.memory()
	rep.fact(fmt.Sprintf("Memory with %s records, under load", thousands(o.records)), fmt.Sprintf("%.0f MiB resident, %.0f MiB at its peak", rss, peak), "under 512 MiB")
	var times []time.Duration
	for i := range o.rounds {
		// Killed while writes are in flight, not while idle.
		bodies := prepare(newCorpus(1<<34+uint64(i)), cborSequence, 400, each)
		go func() { _, _ = measure(ctx, 16, 400, each, st.batch(cborSequence, bodies, each)) }()
		time.Sleep(time.Second)
		st.proc.stop(syscall.SIGKILL)
		took, err := st.start(ctx)
		if err != nil {
			return err
		}
		slog.Info("ready after kill -9", "took", took)
		times = append(times, took)
	}
	rep.fact(fmt.Sprintf("kill -9 with %s records, then ready", thousands(o.records)), durations(times), "under 10 s")
	rss, peak = st.proc.memory()
	rep.fact("Memory after that start", fmt.Sprintf("%.0f MiB resident, %.0f MiB at its peak", rss, peak), "")
	return nil
}
