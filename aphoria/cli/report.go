package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/stemedb/stemedb/aphoria/extract"
	"github.com/stemedb/stemedb/aphoria/outbox"
	"github.com/stemedb/stemedb/aphoria/revision"
	"github.com/stemedb/stemedb/aphoria/scan"
	"github.com/stemedb/stemedb/server/record"
)

// report is what a scan shows.
type report struct {
	*scan.Result
	persisted *outbox.Summary // nil without --persist
	all       bool
	took      time.Duration
}

func (r *report) write(w io.Writer, format string) error {
	if format == "json" {
		return r.json(w)
	}
	return r.table(w)
}

// jsonReport is the form of --format json.
type jsonReport struct {
	Project      string            `json:"project"`
	Revision     revision.Revision `json:"revision"`
	Observations []jsonFinding     `json:"observations"`
	Summary      jsonSummary       `json:"summary"`
	Persisted    *outbox.Summary   `json:"persisted,omitempty"`
	Warnings     []string          `json:"warnings,omitempty"`
}

type jsonFinding struct {
	Verdict   extract.Verdict `json:"verdict"`
	Extractor string          `json:"extractor"`
	File      string          `json:"file"`
	Line      int             `json:"line,omitempty"`
	Message   string          `json:"message,omitempty"`
	Hash      record.Hash     `json:"hash"`
	Claim     record.Content  `json:"claim"`
}

type jsonSummary struct {
	Files        int            `json:"files"`
	PassedOver   map[string]int `json:"passed_over,omitempty"`
	Observations int            `json:"observations"`
	Flagged      int            `json:"flagged"`
	Blocked      int            `json:"blocked"`
}

// json gives every observation: programs do their own choosing.
func (r *report) json(w io.Writer) error {
	out := jsonReport{
		Project: r.Project, Revision: r.Revision, Observations: []jsonFinding{}, Persisted: r.persisted, Warnings: r.Warnings,
		Summary: jsonSummary{
			Files: r.Files, PassedOver: r.Passed, Observations: len(r.Findings),
			Flagged: r.Count(extract.Flag), Blocked: r.Count(extract.Block),
		},
	}
	for i := range r.Findings {
		f := &r.Findings[i]
		out.Observations = append(out.Observations, jsonFinding{
			Verdict: f.Verdict, Extractor: f.Extractor, File: f.File, Line: f.Line, Message: f.Message, Hash: f.ID, Claim: f.Content,
		})
	}
	if err := json.MarshalWrite(w, out, jsontext.WithIndent("  "), json.Deterministic(true)); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func (r *report) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows := 0
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Verdict == extract.Pass && !r.all {
			continue
		}
		if rows++; rows == 1 {
			fmt.Fprintln(t, "VERDICT\tWHERE\tWHAT")
		}
		what := f.Message
		if what == "" {
			what = f.Content.Subject + " " + f.Content.Predicate + " " + f.Content.Object.String()
		}
		fmt.Fprintf(t, "%s\t%s:%d\t%s\n", f.Verdict, printable(f.File), f.Line, printable(what))
	}
	if rows > 0 {
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "%s at %s: %d observations in %d files (%d blocked, %d flagged) in %s\n",
		printable(r.Project), r.revision(), len(r.Findings), r.Files, r.Count(extract.Block), r.Count(extract.Flag), r.took.Round(time.Millisecond)); err != nil {
		return err
	}
	if len(r.Passed) > 0 {
		var parts []string
		for _, reason := range slices.Sorted(maps.Keys(r.Passed)) {
			parts = append(parts, fmt.Sprintf("%d %s", r.Passed[reason], reason))
		}
		if _, err := fmt.Fprintf(w, "passed over: %s\n", strings.Join(parts, ", ")); err != nil {
			return err
		}
	}
	if p := r.persisted; p != nil {
		_, err := fmt.Fprintf(w, "persisted: %d created, %d exist, %d failed, %d queued, %d skipped\n", p.Created, p.Exists, p.Failed, p.Queued, p.Skipped)
		return err
	}
	return nil
}

func (r *report) revision() string {
	id := r.Revision.ID
	switch r.Revision.Kind {
	case "none":
		return "no known revision"
	case "git":
		id = id[:min(len(id), 12)]
	}
	if r.Revision.Dirty {
		id += " with changes"
	}
	return id
}

// printable keeps a scanned project's own text from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
