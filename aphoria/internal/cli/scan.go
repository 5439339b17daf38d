package cli

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/aphoria/internal/agent"
	"github.com/stemedb/stemedb/aphoria/internal/extract"
	"github.com/stemedb/stemedb/aphoria/internal/outbox"
	"github.com/stemedb/stemedb/aphoria/internal/scan"
	"github.com/stemedb/stemedb/aphoria/internal/source"
	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

type scanFlags struct {
	persist, exitCode, all, skipped bool
	format, url                     string
}

func (a *app) scanCommand() *cobra.Command {
	var f scanFlags
	cmd := &cobra.Command{
		Use:   "scan [PATH]",
		Short: "Scan the code and, with --persist, keep the observations in StemeDB",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := directory(args)
			if err != nil {
				return err
			}
			return a.scan(cmd.Context(), dir, f)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.persist, "persist", false, "sign the observations and send them to the server of [hosted]")
	flags.BoolVar(&f.exitCode, "exit-code", false, "exit with 1 when an observation is blocked or no claim can hold it")
	flags.BoolVar(&f.all, "show-observations", false, "list plain facts too, not only flagged or blocked observations")
	flags.BoolVar(&f.skipped, "show-skipped", false, "name the skipped files")
	flags.StringVar(&f.format, "format", "table", "`FORMAT` of the output: table or json")
	flags.StringVar(&f.url, "url", "", "`URL` of the server, instead of the configured one")
	return cmd
}

func (a *app) scan(ctx context.Context, dir string, f scanFlags) error {
	if f.format != "table" && f.format != "json" {
		return fmt.Errorf("--format is %q; use table or json", f.format)
	}
	s, err := a.load(dir)
	if err != nil {
		return err
	}
	var send *sending
	if f.persist {
		// Before the scan, so that a fault here is reported immediately.
		if send, err = a.sending(s, f.url); err != nil {
			return err
		}
	}
	start := a.Now()
	res, err := a.look(ctx, dir, s, start)
	if err != nil {
		return err
	}
	out := report{Result: res, all: f.all, skipped: f.skipped, took: a.Now().Sub(start)}
	a.warnings(&out, s)
	sendErr, err := a.show(ctx, &out, send, f.format)
	switch {
	case err != nil:
		return fmt.Errorf("write the result: %w", err)
	case sendErr != nil:
		return failed(sendErr)
	}
	return verdict(res, f)
}

// look scans the directory as part of its project.
func (a *app) look(ctx context.Context, dir string, s *settings, now time.Time) (*scan.Result, error) {
	registry, err := extract.Default()
	if err != nil {
		return nil, err
	}
	at, err := scan.Find(ctx, dir, s.projectRoot)
	if err != nil {
		return nil, err
	}
	return scan.Run(ctx, at, s.stateDir, s.Config, registry, now)
}

// show prints the result, and sends it when send is not nil. Sending may take
// long, so the findings are printed first. JSON is one document, which must
// also hold the outcome of sending, so with JSON the table goes to standard
// error first.
func (a *app) show(ctx context.Context, out *report, send *sending, format string) (sendErr, err error) {
	if format == "table" {
		err = out.table(a.Stdout)
	} else if send != nil {
		err = out.table(a.Stderr)
	}
	if err != nil {
		return nil, err
	}
	if send != nil {
		out.persisted, sendErr = send.send(ctx, out.Findings)
		a.explain(out.persisted)
	}
	if format == "json" {
		return sendErr, out.json(a.Stdout)
	}
	if p := out.persisted; p != nil {
		err = a.out("persisted: %d created, %d exist, %d failed, %d queued, %d skipped", p.Created, p.Exists, p.Failed, p.Queued, p.Skipped)
	}
	return sendErr, err
}

// verdict determines the exit code, from the observations alone. An observation
// that no claim can hold must not be lost behind a green gate.
func verdict(res *scan.Result, f scanFlags) error {
	var errs []error
	if n := res.Count(extract.Block); f.exitCode && n > 0 {
		errs = append(errs, fmt.Errorf("%d observations are blocked", n))
	}
	if n := res.NotKept(); (f.exitCode || f.persist) && n > 0 {
		errs = append(errs, fmt.Errorf("%d observations were not kept: no claim can hold them", n))
	}
	if len(errs) == 0 {
		return nil
	}
	return failed(errors.Join(errs...))
}

// maxNotKept bounds the number of observations without a claim that are named
// individually.
const maxNotKept = 20

func (a *app) warnings(r *report, s *settings) {
	for _, w := range r.Warnings {
		a.warn("%s", w)
	}
	shown := 0
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.NotKept == nil {
			continue
		}
		if shown++; shown > maxNotKept {
			a.warn("not kept: %d more; --format json names them all", r.NotKept()-maxNotKept)
			break
		}
		a.warn("not kept: %s %s:%d: no claim can hold this observation of %s: %v", f.Verdict, f.File, f.Line, f.Extractor, f.NotKept)
	}
	if len(r.Passed) > 0 {
		remedy := ""
		if len(r.Passed[source.TooLarge]) > 0 {
			remedy = fmt.Sprintf("; scan.max_file_bytes is %d", s.Scan.MaxFileBytes)
		}
		a.warn("skipped files: %s; --show-skipped names them%s", r.skippedCounts(), remedy)
	}
	if r.Files == 0 {
		a.warn("no file was read in %s: %s", r.Dir, r.whyNothing(s.Project.Language))
	}
}

// sending holds the key and the outbox of --persist.
type sending struct {
	key ed25519.PrivateKey
	box *outbox.Outbox
	say func(format string, args ...any)
	url string
}

func (s *sending) send(ctx context.Context, findings []scan.Finding) (*outbox.Summary, error) {
	var as []*record.Assertion
	for i := range findings {
		if f := &findings[i]; f.NotKept == nil {
			as = append(as, &record.Assertion{
				Content:    f.Content,
				Signatures: []record.Signature{record.SignContent(s.key, f.ID)},
			})
		}
	}
	s.say("sending %d claims to %s", len(as), s.url)
	return s.box.Send(ctx, as)
}

// sending prepares the agent's key, the client and the queue.
func (a *app) sending(s *settings, url string) (*sending, error) {
	key, err := agent.Load(s.stateDir, a.Getenv)
	if err != nil {
		return nil, err
	}
	c, err := a.client(s, url, client.WithAgentKey(key))
	if err != nil {
		return nil, err
	}
	started, shown := a.Now(), a.Now()
	box := &outbox.Outbox{
		Sender: c, Queue: outbox.NewQueue(s.stateDir), Fallback: s.Hosted.OfflineFallback, Now: a.Now,
		Progress: func(done, total int) {
			if now := a.Now(); done < total && now.Sub(shown) > time.Second {
				shown = now
				a.say("sent %d of %d after %s", done, total, now.Sub(started).Round(time.Second))
			}
		},
	}
	return &sending{key: key, box: box, say: a.say, url: c.BaseURL()}, nil
}

// explain reports claims that were not sent.
func (a *app) explain(s *outbox.Summary) {
	for _, e := range s.Errors {
		a.warn("%s", e)
	}
	if s.Queued > 0 {
		a.warn("%d claims wait in the queue; the next scan --persist sends them first", s.Queued)
	}
	if s.Skipped > 0 {
		a.warn("%d claims were not sent (offline_fallback = skip); scan again when the server is back", s.Skipped)
	}
}
