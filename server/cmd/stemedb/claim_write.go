package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

// claimFlags describe one claim, field by field or as a file.
type claimFlags struct {
	set         *pflag.FlagSet
	file        string
	content     record.Content
	text        string
	number      float64
	boolean     string
	reference   string
	sourceClass string
	lifecycle   string
	hashes      map[string]*string
	metadata    []string
}

// objectFlags each give the claim's value; one of them is needed.
var objectFlags = []string{"text", "number", "boolean", "reference"}

func (f *claimFlags) flags(fs *pflag.FlagSet) {
	f.set = fs
	fs.StringVarP(&f.file, "file", "f", "", "file with the claim as JSON, - for standard input; replaces the flags of the claim's fields")
	fs.StringVar(&f.content.Subject, "subject", "", "subject of the claim")
	fs.StringVar(&f.content.Predicate, "predicate", "", "property of the subject")
	fs.StringVar(&f.text, "text", "", "the value, as text")
	fs.Float64Var(&f.number, "number", 0, "the value, as a number")
	fs.StringVar(&f.boolean, "boolean", "", "the value, as true or false")
	fs.StringVar(&f.reference, "reference", "", "the value, as the name of another subject")
	fs.Float64Var(&f.content.Confidence, "confidence", 1, "confidence of the agent, from 0 to 1")
	fs.StringVar(&f.sourceClass, "source-class", "", "source of the claim: "+names(record.SourceClasses()))
	fs.StringVar(&f.lifecycle, "lifecycle", record.Proposed.String(), names(record.Lifecycles()))
	fs.Uint64Var(&f.content.Timestamp, "timestamp", 0, "time in unix seconds (default: now)")
	f.hashes = map[string]*string{
		"parent-hash": fs.String("parent-hash", "", "hash of the claim that this one replaces"),
		"source-hash": fs.String("source-hash", "", "hash of the source, 64 hex digits"),
		"epoch":       fs.String("epoch", "", "hash that groups claims, 64 hex digits"),
	}
	fs.StringArrayVar(&f.metadata, "source-metadata", nil, "key=value that describes the source; may be repeated")
}

// claim reads the claim. It has no signatures unless the file contains some.
func (f *claimFlags) claim(in io.Reader) (*record.Assertion, error) {
	if f.file != "" {
		return f.fromFile(in)
	}
	a := &record.Assertion{Content: f.content}
	if a.Timestamp == 0 && !f.set.Changed("timestamp") {
		a.Timestamp = uint64(time.Now().Unix())
	}
	if err := f.readNames(&a.Content); err != nil {
		return nil, err
	}
	if err := f.readHashes(&a.Content); err != nil {
		return nil, err
	}
	for _, pair := range f.metadata {
		key, value, found := strings.Cut(pair, "=")
		if !found {
			return nil, fail(exitUsage, "--source-metadata: %q is not key=value", pair)
		}
		if a.SourceMetadata == nil {
			a.SourceMetadata = map[string]string{}
		}
		a.SourceMetadata[key] = value
	}
	if err := a.Content.Validate(); err != nil {
		return nil, fail(exitUsage, "the claim is invalid: %w", err)
	}
	return a, nil
}

// readNames reads the value and the two fields that have fixed names.
func (f *claimFlags) readNames(c *record.Content) (err error) {
	given := slices.DeleteFunc(slices.Clone(objectFlags), func(name string) bool { return !f.set.Changed(name) })
	if len(given) != 1 {
		return fail(exitUsage, "the claim needs one value: give exactly one of --%s", strings.Join(objectFlags, ", --"))
	}
	switch given[0] {
	case "text":
		c.Object = record.Text(f.text)
	case "number":
		c.Object = record.Number(f.number)
	case "reference":
		c.Object = record.Reference(f.reference)
	case "boolean":
		if f.boolean != "true" && f.boolean != "false" {
			return fail(exitUsage, "--boolean: %q is neither true nor false", f.boolean)
		}
		c.Object = record.Boolean(f.boolean == "true")
	}
	if f.sourceClass == "" {
		return fail(exitUsage, "--source-class is missing; use one of %s", names(record.SourceClasses()))
	}
	if c.SourceClass, err = record.ParseSourceClass(f.sourceClass); err != nil {
		return fail(exitUsage, "--source-class: %q %w", f.sourceClass, err)
	}
	if c.Lifecycle, err = record.ParseLifecycle(f.lifecycle); err != nil {
		return fail(exitUsage, "--lifecycle: %q %w", f.lifecycle, err)
	}
	return nil
}

func (f *claimFlags) readHashes(c *record.Content) error {
	for name, field := range map[string]**record.Hash{
		"parent-hash": &c.ParentHash, "source-hash": &c.SourceHash, "epoch": &c.Epoch,
	} {
		if !f.set.Changed(name) {
			continue
		}
		h, err := record.ParseHash(*f.hashes[name])
		if err != nil {
			return fail(exitUsage, "--%s: %q %w", name, *f.hashes[name], err)
		}
		*field = &h
	}
	return nil
}

// fromFile reads a claim as JSON, signed or not.
func (f *claimFlags) fromFile(in io.Reader) (*record.Assertion, error) {
	for _, name := range append([]string{
		"subject", "predicate", "confidence", "source-class", "lifecycle", "timestamp",
		"parent-hash", "source-hash", "epoch", "source-metadata",
	}, objectFlags...) {
		if f.set.Changed(name) {
			return nil, fail(exitUsage, "--file and --%s are both given; the file holds the whole claim", name)
		}
	}
	if f.file != "-" {
		opened, err := os.Open(f.file)
		if err != nil {
			return nil, fail(exitUsage, "--file: %w", err)
		}
		defer opened.Close()
		in = opened
	}
	text, err := io.ReadAll(io.LimitReader(in, record.MaxRecordBytes+1))
	if err != nil {
		return nil, fail(exitUsage, "read the claim: %w", err)
	}
	var probe struct{ Signatures json.RawMessage }
	if json.Unmarshal(text, &probe) == nil && probe.Signatures != nil {
		a, err := record.ParseAssertionJSON(text)
		return a, usage(err)
	}
	c, err := record.ParseContentJSON(text)
	if err != nil {
		return nil, usage(err)
	}
	return &record.Assertion{Content: *c}, nil
}

func claimSignCommand() *cobra.Command {
	var f claimFlags
	var s signer
	cmd := &cobra.Command{
		Use:   "sign",
		Short: "Sign a claim and print it as JSON; nothing is sent",
		Long: `Sign a claim and print it as one line of JSON, in the form that POST /v1/assert takes.
Nothing is sent. A claim from --file that is signed already gets one more signature.`,
		Example: `  stemedb claim sign --subject code://go/example.com/app/tls --predicate cert_verification \
    --text off --source-class expert > claim.json
  curl -sS "$STEMEDB_URL/v1/assert" -H 'Content-Type: application/json' --data-binary @claim.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := f.claim(cmd.InOrStdin())
			if err != nil {
				return err
			}
			key, err := s.key(cmd)
			if err != nil {
				return err
			}
			a.Sign(key)
			if err := a.Validate(); err != nil {
				return usage(err)
			}
			return printJSON(cmd, a)
		},
	}
	f.flags(cmd.Flags())
	s.flags(cmd.Flags())
	return cmd
}

func claimAssertCommand() *cobra.Command {
	var f claimFlags
	var s signer
	var on session
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "assert",
		Short: "Sign a claim and send it",
		Long: `Sign a claim and send it. Prints "created" or "exists" and the claim's hash once a majority
of the members has it on disk. A claim from --file that is signed already is sent as it is.`,
		Example: `  stemedb claim assert --subject code://go/example.com/app/tls --predicate cert_verification \
    --text off --source-class expert
  stemedb claim assert --file claim.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			a, err := f.claim(cmd.InOrStdin())
			if err != nil {
				return err
			}
			if len(a.Signatures) == 0 {
				key, err := s.key(cmd)
				if err != nil {
					return err
				}
				a.Sign(key)
			}
			return on.with(cmd, func(ctx context.Context, c *client.Client) error {
				result, err := c.Assert(ctx, a)
				if err != nil {
					return err
				}
				return printResult(cmd, output, result)
			})
		},
	}
	f.flags(cmd.Flags())
	s.flags(cmd.Flags())
	on.flags(cmd.Flags())
	output.flags(cmd.Flags())
	return cmd
}

func claimVoteCommand() *cobra.Command {
	var s signer
	var on session
	var output outputFlag
	var v record.Vote
	var show bool
	cmd := &cobra.Command{
		Use:   "vote HASH",
		Short: "Vote for or against a claim",
		Long: `Vote for or against the claim with this hash. Of an agent's votes on one claim the newest
counts.`,
		Example: `  stemedb claim vote 4f0c…e1 --weight 1
  stemedb claim vote 4f0c…e1 --weight -0.5 --print > vote.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := output.check(); err != nil {
				return err
			}
			if v.Assertion, err = record.ParseHash(args[0]); err != nil {
				return fail(exitUsage, "HASH: %q %w", args[0], err)
			}
			if !cmd.Flags().Changed("weight") {
				return fail(exitUsage, "--weight is missing; give a number from -1 (against) to 1 (for)")
			}
			if !cmd.Flags().Changed("timestamp") {
				v.Timestamp = uint64(time.Now().Unix())
			}
			if err := v.Validate(); err != nil {
				return usage(err)
			}
			key, err := s.key(cmd)
			if err != nil {
				return err
			}
			record.SignVote(key, &v)
			if show {
				return printJSON(cmd, &v)
			}
			return on.with(cmd, func(ctx context.Context, c *client.Client) error {
				result, err := c.Vote(ctx, &v)
				if err != nil {
					return err
				}
				return printResult(cmd, output, result)
			})
		},
	}
	cmd.Flags().Float64Var(&v.Weight, "weight", 0, "from -1 (against) to 1 (for)")
	cmd.Flags().Uint64Var(&v.Timestamp, "timestamp", 0, "time in unix seconds (default: now)")
	cmd.Flags().BoolVar(&show, "print", false, "print the signed vote as JSON and do not send it")
	s.flags(cmd.Flags())
	on.flags(cmd.Flags())
	output.flags(cmd.Flags())
	return cmd
}

// printResult prints the result of a write.
func printResult(cmd *cobra.Command, output outputFlag, r client.Result) error {
	status := "exists"
	if r.Created {
		status = "created"
	}
	if output == "json" {
		return printJSON(cmd, map[string]string{"hash": r.ID.String(), "status": status})
	}
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", status, r.ID); err != nil {
		return fail(exitFailed, "print: %w", err)
	}
	return nil
}

// names lists values by their wire names.
func names[T fmt.Stringer](values []T) string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	return strings.Join(out, ", ")
}
