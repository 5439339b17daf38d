package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

// reach is the scope and the consistency of a read.
type reach struct{ scope, consistency string }

func (r *reach) flags(fs *pflag.FlagSet) {
	fs.StringVar(&r.scope, "scope", string(client.Own), "whose claims: own, shared, or own,shared")
	fs.StringVar(&r.consistency, "consistency", string(client.Quorum), "quorum (sees everything acknowledged) or local (only one node's records)")
}

func claimGetCommand() *cobra.Command {
	var on session
	var r reach
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "get HASH",
		Short:   "Show one claim with its signatures and votes",
		Long:    "Show one claim with its signatures and votes. Exits with 3 when there is no such claim.",
		Example: `  stemedb claim get 4f0c…e1 --scope own,shared`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(); err != nil {
				return err
			}
			hash, err := record.ParseHash(args[0])
			if err != nil {
				return fail(exitUsage, "HASH: %q %w", args[0], err)
			}
			return on.with(cmd, func(ctx context.Context, c *client.Client) error {
				got, err := c.GetIn(ctx, hash, client.Scope(r.scope), client.Consistency(r.consistency))
				if err != nil {
					return err
				}
				if output == "json" {
					return printJSON(cmd, got)
				}
				return printRecord(cmd.OutOrStdout(), got)
			})
		},
	}
	r.flags(cmd.Flags())
	on.flags(cmd.Flags())
	output.flags(cmd.Flags())
	return cmd
}

func printRecord(out io.Writer, r *client.Record) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("hash", "%s", r.Hash)
	row("project", "%s", plain(r.Project))
	row("subject", "%s", plain(r.Subject))
	row("predicate", "%s", plain(r.Predicate))
	row("value", "%s (%s)", plain(r.Object.String()), r.Object.Type)
	row("confidence", "%v", r.Confidence)
	row("source class", "%s", r.SourceClass)
	for _, h := range []struct {
		name string
		hash *record.Hash
	}{{"source hash", r.SourceHash}, {"replaces", r.ParentHash}, {"epoch", r.Epoch}} {
		if h.hash != nil {
			row(h.name, "%s", h.hash)
		}
	}
	keys := make([]string, 0, len(r.SourceMetadata))
	for key := range r.SourceMetadata {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		row("source metadata", "%s=%s", plain(key), plain(r.SourceMetadata[key]))
	}
	row("lifecycle", "%s", lifecycle(r.Lifecycle, r.EffectiveLifecycle))
	row("timestamp", "%s", when(r.Timestamp))
	for _, s := range r.Signatures {
		row("signed by", "%s", s.Agent)
	}
	for _, v := range r.Votes {
		row("vote", "%+g by %s at %s", v.Weight, v.Agent, when(v.Timestamp))
	}
	return flushed(w)
}

func claimQueryCommand() *cobra.Command {
	var on session
	var r reach
	var output outputFlag
	var q client.Query
	var lens string
	var lifecycles, classes []string
	cmd := &cobra.Command{
		Use:   "query SUBJECT",
		Short: "List the claims about a subject, or draw one answer for each predicate",
		Long: `List the claims about a subject, the newest first. With --lens, draw one answer for each
predicate from them and explain why it won.`,
		Example: `  stemedb claim query code://go/example.com/app/tls
  stemedb claim query code://go/example.com/app/tls --lens authority --scope own,shared`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := output.check(); err != nil {
				return err
			}
			q.Subject, q.Scope, q.Consistency = args[0], client.Scope(r.scope), client.Consistency(r.consistency)
			if q.Lifecycles, err = parsed("--lifecycle", lifecycles, record.ParseLifecycle); err != nil {
				return err
			}
			if q.SourceClasses, err = parsed("--source-class", classes, record.ParseSourceClass); err != nil {
				return err
			}
			return on.with(cmd, func(ctx context.Context, c *client.Client) error {
				if lens != "" {
					page, err := c.Query(ctx, q, client.Lens(lens))
					if err != nil {
						return err
					}
					return showPage(cmd, output, page, page.Cursor, func(out io.Writer) error { return printAnswers(out, page.Answers) })
				}
				page, err := c.Claims(ctx, q)
				if err != nil {
					return err
				}
				return showPage(cmd, output, page, page.Cursor, func(out io.Writer) error { return printClaims(out, page.Claims) })
			})
		},
	}
	cmd.Flags().StringVar(&lens, "lens", "", "recency, consensus, confidence or authority (default: list the claims)")
	cmd.Flags().StringVar(&q.Predicate, "predicate", "", "only this property")
	cmd.Flags().StringSliceVar(&lifecycles, "lifecycle", nil, "only these (default: approved,proposed)")
	cmd.Flags().StringSliceVar(&classes, "source-class", nil, "only these (default: all)")
	cmd.Flags().Float64Var(&q.MinConfidence, "min-confidence", 0, "only claims of at least this confidence")
	cmd.Flags().Uint64Var(&q.AsOf, "as-of", 0, "only claims signed up to this time, in unix seconds")
	cmd.Flags().IntVar(&q.Limit, "limit", 0, "page size (default: the server's)")
	cmd.Flags().StringVar(&q.Cursor, "cursor", "", "cursor printed after the previous page")
	r.flags(cmd.Flags())
	on.flags(cmd.Flags())
	output.flags(cmd.Flags())
	return cmd
}

func parsed[T any](flag string, names []string, parse func(string) (T, error)) ([]T, error) {
	var out []T
	for _, name := range names {
		v, err := parse(name)
		if err != nil {
			return nil, fail(exitUsage, "%s: %q %w", flag, name, err)
		}
		out = append(out, v)
	}
	return out, nil
}

// showPage prints a page and, on standard error, the cursor of the next one.
func showPage(cmd *cobra.Command, output outputFlag, page any, cursor string, text func(io.Writer) error) error {
	if output == "json" {
		return printJSON(cmd, page)
	}
	if err := text(cmd.OutOrStdout()); err != nil {
		return err
	}
	if cursor != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "there is more: --cursor %s\n", cursor)
	}
	return nil
}

func printClaims(out io.Writer, claims []client.Claim) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PREDICATE\tVALUE\tCONFIDENCE\tSOURCE\tLIFECYCLE\tTIME\tAGENTS\tVOTES\tHASH")
	for i := range claims {
		c := &claims[i]
		fmt.Fprintf(w, "%s\t%s\t%v\t%s\t%s\t%s\t%d\t%+g\t%s\n", plain(c.Predicate), short(c.Object.String()), c.Confidence, c.SourceClass,
			lifecycle(c.Lifecycle, c.EffectiveLifecycle), when(c.Timestamp), len(c.Agents), c.Votes.Weight, c.Hash)
	}
	return flushed(w)
}

func printAnswers(out io.Writer, answers []client.Answer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PREDICATE\tANSWER\tSCORE\tWHY\tHASH")
	for i := range answers {
		a := &answers[i]
		value, hash := "-", "-"
		if a.Winner != nil {
			value, hash = short(a.Winner.Object.String()), a.Winner.Hash.String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", plain(a.Predicate), value, strconv.FormatFloat(a.Why.Score, 'f', -1, 64), plain(a.Why.Because), hash)
	}
	return flushed(w)
}

func flushed(w *tabwriter.Writer) error {
	if err := w.Flush(); err != nil {
		return fail(exitFailed, "print: %w", err)
	}
	return nil
}

// lifecycle shows the signed stage and, when a successor changed it, the
// current one.
func lifecycle(signed, now record.Lifecycle) string {
	if signed == now {
		return signed.String()
	}
	return now.String() + " (signed as " + signed.String() + ")"
}

func when(timestamp uint64) string {
	return time.Unix(int64(min(timestamp, record.MaxTimestamp)), 0).UTC().Format(time.RFC3339)
}

// plain shows untrusted text: characters that could move the cursor, begin
// another line or be invisible are escaped.
func plain(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	return strconv.Quote(s)
}

// short is plain for a column of a table.
func short(s string) string {
	const limit = 60
	runes := []rune(s)
	if len(runes) > limit {
		s = string(runes[:limit]) + "…"
	}
	return plain(s)
}
