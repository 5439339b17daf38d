package main

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report gathers the runs and prints medians and ratios.
type report struct {
	rounds   int
	order    []cell
	runs     map[cell][]result
	facts    [][3]string
	profiles []profile
}

// profile is the distribution of the server's processor time under one load, as
// printed by pprof.
type profile struct{ load, text string }

// file is the profile's name in the folder beside the page.
func (p profile) file() string {
	return strings.ReplaceAll(strings.ReplaceAll(p.load, ",", ""), " ", "-") + ".txt"
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

func (r *report) profile(load, text string) { r.profiles = append(r.profiles, profile{load, text}) }

// baseline is the reference system of a section's ratios.
var baseline = map[string]string{"ingest": "etcd put", "query": "/v1/health/live", "paired": "before"}

// write writes the page, and the profiles into the folder of the same name beside
// it. It removes profiles of earlier runs.
func (r *report) write(page string) error {
	if len(r.profiles) > 0 {
		dir := folder(page)
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for _, p := range r.profiles {
			if err := os.WriteFile(filepath.Join(dir, p.file()), []byte(p.text+"\n"), 0o644); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(page, []byte(r.markdown(filepath.Base(folder(page)))), 0o644)
}

func folder(page string) string { return strings.TrimSuffix(page, filepath.Ext(page)) }

// markdown is the page: the tables, then links to the profiles in the folder
// beside it.
func (r *report) markdown(folder string) string {
	var b strings.Builder
	b.WriteString("# Benchmarks\n\nWritten by `make bench`; do not edit. Every figure is the median of ")
	fmt.Fprintf(&b, "%d interleaved runs; the meaningful figure is the ratio, measured in one run on one machine.\n\n", r.rounds)
	fmt.Fprintf(&b, "Machine: %d cores, %s/%s, %s, %s. Date: %s.\n", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), kernel(), time.Now().UTC().Format(time.DateOnly))
	b.WriteString("Clients and servers share the machine. Server CPU is the processor time that the server's processes, PostgreSQL's backends included, take for each record or request; – means that it was not measured.\n")
	for _, section := range []string{"ingest", "query", "paired"} {
		r.table(&b, section)
	}
	if len(r.facts) > 0 {
		b.WriteString("\n## Restart and memory\n\n| measurement | result | limit |\n|---|---|---|\n")
		for _, f := range r.facts {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", f[0], f[1], f[2])
		}
	}
	if len(r.profiles) > 0 {
		b.WriteString("\n## Profiles\n\nWhere the server spends its processor time during ingest, as printed by pprof:\n\n")
		for _, p := range r.profiles {
			fmt.Fprintf(&b, "- [%s](%s/%s)\n", p.load, folder, p.file())
		}
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
		fmt.Fprintf(b, "| %s | %s | %.0f | %.2f | %.2f | %.2f | %s |\n", c.load, c.system, rate, ratio,
			median(r.runs[c], quantile(50)), median(r.runs[c], quantile(99)), processorTime(r.runs[c]))
	}
}

// processorTime is the server's processor time for each record, in microseconds.
// A run without any is one that was not measured: a record costs time.
func processorTime(runs []result) string {
	micros := median(runs, func(x result) float64 { return x.ServerMS * 1000 / float64(x.Records) })
	if micros == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f", micros)
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

// durations prints the median, then every run in the order of the runs.
func durations(ds []time.Duration) string {
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
	runs := make([]string, len(ds))
	for i, d := range ds {
		runs[i] = seconds(d)
	}
	middle := slices.Sorted(slices.Values(ds))[len(ds)/2]
	return fmt.Sprintf("%s (median of %s)", seconds(middle), strings.Join(runs, ", "))
}

// clients is the number of clients, in words of the right number.
func clients(n int) string {
	if n == 1 {
		return "1 client"
	}
	return fmt.Sprintf("%d clients", n)
}

// thousands separates the digits of n in groups of three.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func kernel() string {
	out, err := exec.Command("uname", "-sr").Output() //nolint:noctx // prints one line
	if err != nil {
		return "unknown kernel"
	}
	return strings.TrimSpace(string(out))
}

func urlEscape(s string) string { return url.QueryEscape(s) }
