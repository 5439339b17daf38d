package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// smokeProject is the project for smoke tests with an administrator's key: an
// administrator's own project may be the shared one, which all others read.
const smokeProject = "smoke"

const (
	// lentFor is how much longer than the test its key would remain valid.
	lentFor = 5 * time.Minute
	// revokeWithin bounds the revocation after a test has timed out.
	revokeWithin = 10 * time.Second
)

// smoke writes through a gateway, reads back and checks the cluster.
type smoke struct {
	target  serverTarget
	client  *client.Client
	out     io.Writer
	members int
	timeout time.Duration
}

func smokeCommand() *cobra.Command {
	var s smoke
	cmd := &cobra.Command{
		Use:   "smoke",
		Short: "Write one signed claim, read it back and check the cluster",
		Long: `Write one signed claim, read it back and check the cluster. The claim is about the
subject "stemedb://smoke" and is signed by a new key that is then discarded.

With auth on, STEMEDB_API_KEY or STEMEDB_API_KEY_FILE gives a key that may write. The
claim stays in that key's project; with an administrator's key it goes into the project
"smoke" instead, by an API key that is registered for the test and revoked at its end.

Each step is repeated until it succeeds or the timeout ends. Exits with 3 when a
check fails.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if s.client, err = s.target.client(client.WithRetries()); err != nil {
				return err
			}
			s.out = cmd.OutOrStdout()
			return s.run(cmd.Context())
		},
	}
	s.target.Flags(cmd.Flags(), "http://localhost:18181", true)
	cmd.Flags().IntVar(&s.members, "members", 0, "required number of members (0: any number)")
	cmd.Flags().DurationVar(&s.timeout, "timeout", time.Minute, "time limit of the test")
	return cmd
}

func (s *smoke) run(ctx context.Context) error {
	a, err := smokeClaim()
	if err != nil {
		return fail(exitFailed, "make a claim: %w", err)
	}
	lent, err := s.newLoan()
	if err != nil {
		return fail(exitFailed, "make an API key: %w", err)
	}
	trying, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"the server is healthy", s.health},
		{"there is a key to write with", lent.take},
		{"a claim is written", func(ctx context.Context) error { return s.write(ctx, a) }},
		{"the claim is read back", func(ctx context.Context) error { return s.read(ctx, a) }},
		{"a query finds it", func(ctx context.Context) error { return s.query(ctx, a) }},
		{"every member is alive and whole", s.cluster},
	} {
		if err = s.step(trying, step.name, step.do); err != nil {
			break
		}
	}
	if lent.taken {
		ending, cancel := context.WithTimeout(ctx, revokeWithin)
		defer cancel()
		// The first failure takes precedence.
		if revoked := s.step(ending, "that key is revoked", lent.giveBack); err == nil {
			err = revoked
		}
	}
	return err
}

// step repeats a step until it succeeds or ctx ends.
func (s *smoke) step(ctx context.Context, name string, do func(context.Context) error) error {
	began := time.Now()
	if err := until(ctx, do); err != nil {
		fmt.Fprintf(s.out, "FAIL  %s\n", name)
		return fail(exitNo, "%s: %w", name, err)
	}
	fmt.Fprintf(s.out, "ok    %s (%s)\n", name, time.Since(began).Round(time.Millisecond))
	return nil
}

// loan is the key that a test writes with when it was given an administrator's
// key.
type loan struct {
	smoke   *smoke
	admin   *client.Client
	raw     string
	hash    keys.Hash
	expires int64 // in case it is not revoked
	taken   bool  // it may have been registered
}

func (s *smoke) newLoan() (*loan, error) {
	raw, err := keys.Generate(keys.Live, nil)
	if err != nil {
		return nil, err
	}
	return &loan{
		smoke: s, admin: s.client, raw: raw, hash: keys.HashOf(raw),
		expires: time.Now().Add(s.timeout + lentFor).Unix(),
	}, nil
}

// take registers the key by its hash, which is idempotent unlike minting, and
// makes the test use it. It does nothing without auth and for other roles.
func (l *loan) take(ctx context.Context) error {
	who, err := l.admin.WhoAmI(ctx)
	if err != nil {
		return err
	}
	if !who.Auth || who.Role != string(keys.Admin) {
		return nil
	}
	l.taken = true
	if _, err = l.admin.RegisterKey(ctx, record.Hash(l.hash), client.NewKey{
		Project: smokeProject, Role: string(keys.WriteAgent), Label: "smoke test", ExpiresAt: l.expires,
	}); err != nil {
		return err
	}
	l.smoke.client, err = l.smoke.target.clientWith(l.raw, client.WithRetries())
	return err
}

func (l *loan) giveBack(ctx context.Context) error {
	return l.admin.RevokeKey(ctx, record.Hash(l.hash))
}

// smokeClaim is a new, unique, signed claim.
func smokeClaim() (*record.Assertion, error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	var nonce [8]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, err
	}
	a := &record.Assertion{Content: record.Content{
		Subject: "stemedb://smoke", Predicate: "smoke_test", Object: record.Text(hex.EncodeToString(nonce[:])),
		Confidence: 1, SourceClass: record.Observational, Timestamp: uint64(time.Now().Unix()),
	}}
	a.Sign(private)
	return a, nil
}

func (s *smoke) health(ctx context.Context) error {
	_, err := s.client.Health(ctx, client.Summary)
	return err
}

func (s *smoke) write(ctx context.Context, a *record.Assertion) error {
	_, err := s.client.Assert(ctx, a)
	return err
}

func (s *smoke) read(ctx context.Context, a *record.Assertion) error {
	got, err := s.client.Get(ctx, a.ID())
	if err != nil {
		return err
	}
	if got.Subject != a.Subject || got.Object != a.Object || !slices.Contains(got.Signatures, a.Signatures[0]) {
		return errors.New("the record read differs from the record written")
	}
	return nil
}

func (s *smoke) query(ctx context.Context, a *record.Assertion) error {
	got, err := s.client.Claims(ctx, client.Query{Subject: a.Subject, Predicate: a.Predicate, Limit: 1000})
	if err != nil {
		return err
	}
	id := a.ID()
	if !slices.ContainsFunc(got.Claims, func(c client.Claim) bool { return c.Hash == id }) {
		return errors.New("the claim is not among the newest ones of its subject")
	}
	return nil
}

func (s *smoke) cluster(ctx context.Context) error {
	status, err := s.client.ClusterStatus(ctx)
	if err != nil {
		return err
	}
	if s.members > 0 && status.MemberCount != s.members {
		return fmt.Errorf("the cluster has %d members, not %d", status.MemberCount, s.members)
	}
	if problem := trouble(status); problem != "" {
		return errors.New(problem)
	}
	return nil
}
