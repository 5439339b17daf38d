package cli

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/stemedb/stemedb/aphoria/internal/extract"
	"github.com/stemedb/stemedb/aphoria/internal/outbox"
	"github.com/stemedb/stemedb/aphoria/internal/revision"
	"github.com/stemedb/stemedb/aphoria/internal/scan"
	"github.com/stemedb/stemedb/record"
)

// report is the output of a scan.
type report struct {
	*scan.Result
	persisted *outbox.Summary // nil without --persist
	all       bool            // also plain facts
	skipped   bool            // name the skipped files
	took      time.Duration
}

// jsonReport is the form of --format json.
type jsonReport struct {
	Project      string            `json:"project"`
	Revision     revision.Revision `json:"revision"`
	Observations []jsonFinding     `json:"observations"`
	Summary      jsonSummary       `json:"summary"`
	Skipped      []jsonSkipped     `json:"skipped,omitempty"`
	Persisted    *outbox.Summary   `json:"persisted,omitempty"`
	Warnings     []string          `json:"warnings,omitempty"`
}

type jsonFinding struct {
	Verdict   extract.Verdict `json:"verdict"`
	Extractor string          `json:"extractor"`
	File      string          `json:"file"`
	Line      int             `json:"line,omitempty"`
	Message   string          `json:"message,omitempty"`
	// A finding has either a claim or the reason why it has none.
	Hash    *record.Hash    `json:"hash,omitempty"`
	Claim   *record.Content `json:"claim,omitempty"`
	NotKept string          `json:"not_kept,omitempty"`
}

type jsonSummary struct {
	Files        int            `json:"files"`
	PassedOver   map[string]int `json:"passed_over,omitempty"`
	Observations int            `json:"observations"`
	Flagged      int            `json:"flagged"`
	Blocked      int            `json:"blocked"`
	NotKept      int            `json:"not_kept"`
}

type jsonSkipped struct {
	Reason string `json:"reason"`
	File   string `json:"file"`
}

// json contains every observation; programs filter for themselves. The document
// is complete before any of it is written, so that an encoding error cannot
// truncate it.
func (r *report) json(w io.Writer) error {
	out := jsonReport{
		Project: r.Project, Revision: r.Revision, Observations: []jsonFinding{}, Persisted: r.persisted, Warnings: r.Warnings,
		Summary: jsonSummary{
			Files: r.Files, PassedOver: r.passedCounts(), Observations: len(r.Findings),
			Flagged: r.Count(extract.Flag), Blocked: r.Count(extract.Block), NotKept: r.NotKept(),
		},
	}
	for i := range r.Findings {
		f := &r.Findings[i]
		j := jsonFinding{Verdict: f.Verdict, Extractor: f.Extractor, File: scan.UTF8(f.File), Line: f.Line, Message: f.Message}
		if f.NotKept != nil {
			j.NotKept = f.NotKept.Error()
		} else {
			j.Hash, j.Claim = &f.ID, &f.Content
		}
		out.Observations = append(out.Observations, j)
	}
	for reason, name := range r.passedNames() {
		if r.skipped {
			out.Skipped = append(out.Skipped, jsonSkipped{reason, scan.UTF8(name)})
		}
	}
	var doc bytes.Buffer
	// Texts of other origin, such as an error of the system, may contain anything.
	if err := json.MarshalWrite(&doc, out, jsontext.WithIndent("  "), json.Deterministic(true), jsontext.AllowInvalidUTF8(true)); err != nil {
		return err
	}
	_, err := w.Write(append(safeJSON(doc.Bytes()), '\n'))
	return err
}

func (r *report) passedCounts() map[string]int {
	counts := make(map[string]int)
	for reason, names := range r.Passed {
		counts[reason] = len(names)
	}
	return counts
}

// passedNames yields the skipped files, reason by reason.
func (r *report) passedNames() func(yield func(reason, name string) bool) {
	return func(yield func(reason, name string) bool) {
		for _, reason := range slices.Sorted(maps.Keys(r.Passed)) {
			for _, name := range slices.Sorted(slices.Values(r.Passed[reason])) {
				if !yield(reason, name) {
					return
				}
			}
		}
	}
}

func (r *report) table(w io.Writer) error {
	if err := r.rows(w); err != nil {
		return err
	}
	if err := line(w, "%s at %s: %d observations in %d files (%d blocked, %d flagged) in %s",
		r.Project, r.revision(), len(r.Findings), r.Files, r.Count(extract.Block), r.Count(extract.Flag), r.took.Round(time.Millisecond)); err != nil {
		return err
	}
	if n := r.NotKept(); n > 0 {
		if err := line(w, "not kept: %d, because no claim can hold them", n); err != nil {
			return err
		}
	}
	if len(r.Passed) == 0 {
		return nil
	}
	if err := line(w, "skipped files: %s", r.skippedCounts()); err != nil || !r.skipped {
		return err
	}
	for reason, name := range r.passedNames() {
		if err := line(w, "  %s: %s", reason, name); err != nil {
			return err
		}
	}
	return nil
}

// rows lists the findings.
func (r *report) rows(w io.Writer) error {
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
		text := f.Message
		if text == "" {
			text = f.Subject() + " " + f.Predicate + " " + f.Object.String()
		}
		fmt.Fprintf(t, "%s\t%s:%d\t%s\n", f.Verdict, printable(f.File), f.Line, printable(text))
	}
	if rows > 0 {
		fmt.Fprintln(t)
	}
	return t.Flush()
}

func (r *report) skippedCounts() string {
	counts := r.passedCounts()
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[reason], reason))
	}
	return strings.Join(parts, ", ")
}

// whyNothing explains a scan that read no file, by what happened to every path.
func (r *report) whyNothing(language string) string {
	skipped := 0
	for _, names := range r.Passed {
		skipped += len(names)
	}
	var parts []string
	for _, why := range []struct {
		n              int
		one, many, why string
	}{
		{skipped, "path was", "paths were", "skipped (" + r.skippedCounts() + ")"},
		{r.Unread.OtherKinds, "file is", "files are", "of a kind that aphoria does not scan"},
		{r.Unread.OtherLanguage, "file is", "files are", "in another language than project.language = " + strconv.Quote(language)},
		{r.Unread.Excluded, "path is", "paths are", "excluded by .aphoriaignore, scan.exclude or the default patterns (vendor, node_modules and the like)"},
		{r.Unread.IgnoredByGit, "file is", "files are", "ignored by git"},
	} {
		switch why.n {
		case 0:
		case 1:
			parts = append(parts, "1 "+why.one+" "+why.why)
		default:
			parts = append(parts, fmt.Sprintf("%d %s %s", why.n, why.many, why.why))
		}
	}
	if len(parts) == 0 {
		return "the directory holds no files"
	}
	return strings.Join(parts, "; ")
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
