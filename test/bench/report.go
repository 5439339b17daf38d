package main

import (
	"fmt"
	"net/url"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report gathers the runs and prints medians and ratios.
type report struct {
	rounds int
	order  []cell
	runs   map[cell][]result
	facts  [][3]string
	notes  [][2]string
}

// cell names a series of repeated runs.
type cell struct{ section, load, system string }

func newReport(rounds int) *report { return &report{rounds: rounds, runs: map[cell][]result{}} }

func (r *report) add(section, load, system string, res result) {
	c := cell{section, load, system}
	if _, known := r.runs[c]; !known {
		r.order = append(r.order, c)
	}
	r.runs[c] = append(r.runs[c], res)
}

func (r *report) fact(measurement, result, limit string) {
	r.facts = append(r.facts, [3]string{measurement, result, limit})
}
func (r *report) note(title, text string) { r.notes = append(r.notes, [2]string{title, text}) }

// baseline is the reference system of a section's ratios.
var baseline = map[string]string{"ingest": "etcd put", "query": "/v1/health/live", "paired": "before"}

func (r *report) markdown() string {
	var b strings.Builder
	b.WriteString("# Benchmarks\n\nWritten by `make bench`; do not edit. Every figure is the median of ")
	fmt.Fprintf(&b, "%d interleaved runs; the meaningful figure is the ratio, measured in one run on one machine.\n\n", r.rounds)
	fmt.Fprintf(&b, "Machine: %d cores, %s/%s, %s, %s. Date: %s.\n", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), kernel(), time.Now().UTC().Format(time.DateOnly))
	b.WriteString("Clients and servers share the machine. Server CPU is the server process's processor time for each record or request.\n")
	for _, section := range []string{"ingest", "query", "paired"} {
		r.table(&b, section)
	}
	if len(r.facts) > 0 {
		b.WriteString("\n## Restart and memory\n\n| measurement | result | limit |\n|---|---|---|\n")
		for _, f := range r.facts {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", f[0], f[1], f[2])
		}
	}
	for _, n := range r.notes {
		fmt.Fprintf(&b, "\n## %s\n\n```\n%s\n```\n", n[0], n[1])
	}
	return b.String()
}

func (r *report) table(b *strings.Builder, section string) {
	base, titled := baseline[section], false
	for _, c := range r.order {
		if c.section != section {
			continue
		}
		if !titled {
			fmt.Fprintf(b, "\n## %s\n\n| load | system | rate /s | ratio to %s | p50 ms | p99 ms | server CPU µs |\n|---|---|---|---|---|---|---|\n", title[section], base)
			titled = true
		}
		rate := median(r.runs[c], result.rate)
		ratio := median(pairs(r.runs[c], r.runs[cell{section, c.load, base}]), func(p [2]result) float64 { return p[0].rate() / p[1].rate() })
		fmt.Fprintf(b, "| %s | %s | %.0f | %.2f | %.2f | %.2f | %.1f |\n", c.load, c.system, rate, ratio,
			median(r.runs[c], quantile(50)), median(r.runs[c], quantile(99)),
			median(r.runs[c], func(x result) float64 { return x.ServerMS * 1000 / float64(x.Records) }))
	}
}

var title = map[string]string{"ingest": "Durable ingest, one node, signatures verified", "query": "Point queries against the health path of the same server", "paired": "Durable ingest, two builds of the server in turns"}

func quantile(q float64) func(result) float64 {
	return func(x result) float64 { return float64(x.Latency.ValueAtQuantile(q)) / 1000 }
}

// pairs puts the runs of one round side by side.
func pairs(a, b []result) [][2]result {
	out := make([][2]result, 0, len(a))
	for i := range min(len(a), len(b)) {
		out = append(out, [2]result{a[i], b[i]})
	}
	return out
}

func median[T any](xs []T, of func(T) float64) float64 {
	if len(xs) == 0 {
		return 0
	}
	vs := make([]float64, len(xs))
	for i, x := range xs {
		vs[i] = of(x)
	}
	slices.Sort(vs)
	return vs[len(vs)/2]
}

func medianDuration(ds []time.Duration) time.Duration {
	s := slices.Clone(ds)
	slices.Sort(s)
	return s[len(s)/2].Round(10 * time.Millisecond)
}

func kernel() string {
	out, err := exec.Command("uname", "-sr").Output() //nolint:noctx // prints one line
	if err != nil {
		return "unknown kernel"
	}
	return strings.TrimSpace(string(out))
}

func urlEscape(s string) string { return url.QueryEscape(s) }
