package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// measured is a report with every section of `make bench`.
func measured(t *testing.T) *report {
	t.Helper()
	rep := newReport(3)
	run := func(serverMS float64) result {
		latency := hdrhistogram.New(1, 60_000_000, 3)
		if err := latency.RecordValue(400); err != nil {
			t.Fatal(err)
		}
		return result{Requests: 100, Records: 100, Elapsed: time.Second, Latency: latency, ServerMS: serverMS}
	}
	for range 3 {
		rep.add("ingest", loads[0].name(), baseline["ingest"], run(20))
		rep.add("ingest", loads[0].name(), "PostgreSQL", run(0))
		rep.add("query", "32 clients, 100,000 records", baseline["query"], run(5))
	}
	rep.fact("kill -9 with "+thousands(1_000_000)+" records, then ready",
		durations([]time.Duration{9039405427, 5368462602, 7389514992}), "under 10 s")
	for _, l := range loads[2:] {
		rep.profile(l.name(), "flat  flat%")
	}
	return rep
}

func TestThePageHasTablesAndTheProfilesAreInFilesBesideIt(t *testing.T) {
	page := filepath.Join(t.TempDir(), "benchmarks.md")
	stale := filepath.Join(filepath.Dir(page), "benchmarks", "earlier.txt")
	if err := os.MkdirAll(filepath.Dir(stale), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stale, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := measured(t).write(page); err != nil {
		t.Fatal(err)
	}
	text := read(t, page)
	for _, want := range []string{
		"| single records, 1 client | etcd put | 100 | 1.00 | 0.40 | 0.40 | 200.0 |",
		"| single records, 1 client | PostgreSQL | 100 | 1.00 | 0.40 | 0.40 | – |",
		"| kill -9 with 1,000,000 records, then ready | 7.39 s (median of 9.04 s, 5.37 s, 7.39 s) | under 10 s |",
		"- [single records, 256 clients](benchmarks/single-records-256-clients.txt)",
		"- [batches of 100, 256 clients](benchmarks/batches-of-100-256-clients.txt)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	if got := read(t, filepath.Join(filepath.Dir(page), "benchmarks", "batches-of-100-256-clients.txt")); got != "flat  flat%\n" {
		t.Errorf("the profile's file is %q", got)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("a profile of an earlier run is still there: %v", err)
	}
}

// The page in docs has the form that the generator writes: a run of `make bench`
// changes its figures, not its shape.
func TestThePublishedPageHasTheFormOfTheGenerator(t *testing.T) {
	const page = "../../docs/benchmarks.md"
	shape := func(text string) (lines []string) {
		all := strings.Split(text, "\n")
		for i, line := range all {
			table := i+1 < len(all) && strings.HasPrefix(all[i+1], "|---")
			if table || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "Clients and servers ") || strings.HasPrefix(line, "- [") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	published := read(t, page)
	want := shape(measured(t).markdown("benchmarks"))
	got := shape(published)
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("docs/benchmarks.md lacks the line %q", line)
		}
	}
	if regexp.MustCompile(`\b1 clients|\x60\x60\x60|\| 0\.0 \|`).MatchString(published) {
		t.Error(`docs/benchmarks.md has "1 clients", a code block, or a processor time of 0`)
	}
	for _, link := range regexp.MustCompile(`\]\((benchmarks/[^)]*)\)`).FindAllStringSubmatch(published, -1) {
		read(t, filepath.Join("../../docs", link[1]))
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
