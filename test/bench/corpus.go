package main

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/zeebo/blake3"

	"github.com/stemedb/stemedb/record"
)

// corpus makes the records of a run: the same size and shape for every system,
// ids that look random, and no record twice over all runs of a program (each
// corpus has a unique number).
type corpus struct {
	number uint64
	agent  ed25519.PrivateKey
	size   int // bytes of a stored value: canonical content and signature
}

func newCorpus(number uint64) *corpus {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], number%16)
	c := &corpus{number: number, agent: ed25519.NewKeyFromSeed(seed[:])}
	a := c.assertion(0)
	c.size = len(a.AppendCanonical(nil)) + 32 + ed25519.SignatureSize
	return c
}

// assertion is the claim number seq as a scanner would send it.
func (c *corpus) assertion(seq int64) *record.Assertion {
	r := rand.New(rand.NewPCG(c.number, uint64(seq)))
	content := record.Content{
		Subject:     fmt.Sprintf("code://go/github.com/project-%d/module-%d/dep/library-%d", c.number, r.IntN(5000), r.IntN(1000)),
		Predicate:   "version",
		Object:      record.Text(fmt.Sprintf("v1.%d.%d-%016x", r.IntN(40), r.IntN(20), r.Uint64())),
		Confidence:  0.95,
		SourceClass: record.Observational,
		SourceMetadata: map[string]string{
			"file":   fmt.Sprintf("internal/package%d/go.mod", r.IntN(300)),
			"line":   fmt.Sprint(r.IntN(400)),
			"commit": fmt.Sprintf("%016x%016x", r.Uint64(), r.Uint64()),
		},
		Timestamp: 1_780_000_000 + uint64(seq),
	}
	return &record.Assertion{Content: content}
}

// keyValue is the same amount of data for a key-value store: a 32-byte key
// and a value as long as a stored claim with its signature.
func (c *corpus) keyValue(seq int64) (key, value string) {
	var in [16]byte
	binary.LittleEndian.PutUint64(in[:], c.number)
	binary.LittleEndian.PutUint64(in[8:], uint64(seq))
	sum := blake3.Sum256(in[:])
	body := make([]byte, c.size)
	r := rand.New(rand.NewPCG(c.number, uint64(seq)))
	for i := 0; i+8 <= len(body); i += 8 {
		binary.LittleEndian.PutUint64(body[i:], r.Uint64())
	}
	return string(sum[:]), string(body)
}
