package lens

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
)

const many = 100_000

// stream makes claims, newest first, while they are read, and counts them.
func stream(read *int, change func(i int, c *Claim)) Claims[*Claim] {
	return func(yield func(*Claim) bool) {
		for i := range many {
			*read++
			c := &Claim{Timestamp: many - uint64(i), Confidence: 0.5, Class: record.SourceClass(1 + i%6)}
			binary.BigEndian.PutUint32(c.ID[:], uint32(i))
			c.Agents = []record.AgentID{{byte(i)}}
			change(i, c)
			if !yield(c) {
				return
			}
		}
	}
}

func distinctValues(i int, c *Claim) { binary.BigEndian.PutUint32(c.Value[:], uint32(i)) }

func distinctAgents(i int, c *Claim) { binary.BigEndian.PutUint32(c.Agents[0][:], uint32(i)) }

func distinctVoters(i int, c *Claim) {
	c.Votes = make([]Vote, 1)
	binary.BigEndian.PutUint32(c.Votes[0].Agent[:], uint32(i))
}

func fewOfEach(i int, c *Claim) { c.Value[0], c.Agents[0][0] = byte(i%10), byte(i%10) }

// asCounts holds the lenses that count support, each as a function that may fail.
var asCounts = map[string]func(Claims[*Claim], Params) error{
	"consensus": func(c Claims[*Claim], p Params) error { _, err := Consensus(c, p); return err },
	"skeptic":   func(c Claims[*Claim], p Params) error { _, err := Skeptic(c, p); return err },
	"layered":   func(c Claims[*Claim], p Params) error { _, err := Layered(c, p); return err },
}

// TestCountsAreBounded: the memory of a count grows with values and agents. The
// count asks for all of it and reads no claim after a refusal.
func TestCountsAreBounded(t *testing.T) {
	full := errors.New("full")
	for name, run := range asCounts {
		for kind, change := range map[string]func(int, *Claim){"values": distinctValues, "agents": distinctAgents, "voters": distinctVoters} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				const room = 256 << 10
				held, read, atRefusal := 0, 0, 0
				err := run(stream(&read, change), Params{Hold: func(bytes int) error {
					require.Positive(t, bytes)
					if held += bytes; held > room {
						atRefusal = read
						return full
					}
					return nil
				}})
				require.ErrorIs(t, err, full)
				require.Equal(t, atRefusal, read)
				require.LessOrEqual(t, read, 1+room/statementBytes)
				require.GreaterOrEqual(t, read, 100, "a low count is not refused")
			})
		}
	}
}

// TestCountsHoldWhatDiffers: more claims alone need no more memory.
func TestCountsHoldWhatDiffers(t *testing.T) {
	for name, run := range asCounts {
		read, held := 0, 0
		require.NoError(t, run(stream(&read, fewOfEach), Params{Hold: func(bytes int) error { held += bytes; return nil }}), name)
		require.Equal(t, many, read)
		require.Less(t, held, 10*(valueBytes+10*statementBytes+(MaxClaims+6)*(claimBytes+agentBytes)), name)
	}
}

// TestBestHoldsTwoClaims: the lenses that search for the best claim ask for no
// memory.
func TestBestHoldsTwoClaims(t *testing.T) {
	refuse := Params{Hold: func(int) error { return errors.New("nothing may be held") }}
	for name, reads := range map[string]int{NameRecency: 2, NameConfidence: many, NameAuthority: many} {
		l, _ := Get[*Claim](name)
		read := 0
		a, err := l(stream(&read, distinctValues), refuse)
		require.NoError(t, err, name)
		require.NotNil(t, a.Winner)
		require.Equal(t, reads, read, name)
	}
}
