package client_test

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"os"
	"time"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

// A project asserts an observation, signed with its own key, and queries the
// claims of others.
func Example() {
	seed, err := hex.DecodeString(os.Getenv("STEME_PRIVATE_KEY"))
	if err != nil || len(seed) != ed25519.SeedSize {
		fmt.Println("STEME_PRIVATE_KEY must hold 64 hex digits")
		return
	}
	c, err := client.New("https://stemedb.example.org", os.Getenv("STEMEDB_API_KEY"), client.WithAgentKey(ed25519.NewKeyFromSeed(seed)))
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	const subject = "code://go/github.com/x/y/tls/cert_verification"
	result, err := c.Assert(ctx, &record.Assertion{Content: record.Content{
		Subject:     subject,
		Predicate:   "enabled",
		Object:      record.Boolean(true),
		Confidence:  0.9,
		SourceClass: record.Observational,
		Timestamp:   uint64(time.Now().Unix()),
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("durable on a majority:", result.ID)

	answers, err := c.Query(ctx, client.Query{Subject: subject}, client.Authority)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, a := range answers.Answers {
		if a.Winner != nil {
			fmt.Println(a.Predicate, a.Winner.Object, a.Why.Because)
		}
	}
}
