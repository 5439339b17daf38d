package record

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func signedItems(n, agents int) []SignedItem {
	items := make([]SignedItem, n)
	for i := range items {
		id := HashOf([]byte{byte(i), byte(i >> 8)})
		s := SignContent(testKey(byte(i%agents)), id)
		items[i] = SignedItem{Agent: s.Agent, Sig: s.Sig, ID: id}
	}
	return items
}

func TestVerifyAgreesWithStandardLibrary(t *testing.T) {
	a := sampleAssertion()
	a.Sign(testKey(2))
	id := a.ID()
	for _, s := range a.Signatures {
		require.True(t, ed25519.Verify(s.Agent[:], append([]byte("stemedb:v2:"), id[:]...), s.Sig[:]))
	}
	v := &Vote{Assertion: id, Weight: 1, Timestamp: 5}
	SignVote(testKey(2), v)
	vid := v.ID()
	require.True(t, ed25519.Verify(v.Agent[:], append([]byte("stemedb:vote:v2:"), vid[:]...), v.Sig[:]))

	items := append(a.AppendSigned(nil, id), v.Signed())
	require.Equal(t, []bool{true, true, true}, NewVerifier(8).Verify(items))
	for i := range items {
		require.True(t, NewVerifier(8).VerifyOne(&items[i]))
	}
}

func TestVerifyFindsTheBadOnes(t *testing.T) {
	v := NewVerifier(16)
	r := rand.New(rand.NewPCG(11, 12))
	for _, n := range []int{0, 1, 2, 15, 16, 17, 64, 128, 129, 300} {
		for _, share := range []int{0, 1, 2, n} { // number of bad ones
			if share > n {
				continue
			}
			t.Run(fmt.Sprintf("%d of %d", share, n), func(t *testing.T) {
				items := signedItems(n, 5)
				want := slices.Repeat([]bool{true}, n)
				for _, i := range r.Perm(n)[:share] {
					want[i] = false
					switch r.IntN(4) {
					case 0:
						items[i].Sig[r.IntN(64)] ^= 1 << r.IntN(8)
					case 1:
						items[i].ID[r.IntN(32)] ^= 1 << r.IntN(8)
					case 2:
						items[i].Vote = true
					default:
						items[i].Agent = notOnCurve(t)
					}
				}
				require.Equal(t, want, v.Verify(items))
				for i := range items {
					require.Equal(t, want[i], v.VerifyOne(&items[i]))
				}
			})
		}
	}
}

func notOnCurve(t testing.TB) AgentID {
	t.Helper()
	var a AgentID
	a[0] = 2 // no point of the curve has y = 2
	require.Nil(t, (&keyCache{}).get(a))
	return a
}

// Signatures on which implementations of RFC 8032 differ: small-order keys and
// points. ZIP-215 accepts all of them, alone and in a batch.
func TestVerifySmallOrder(t *testing.T) {
	small := []string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"0100000000000000000000000000000000000000000000000000000000000080", // not canonical
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // not canonical
	}
	v := NewVerifier(4)
	items := signedItems(3, 3)
	for _, agent := range small {
		for _, point := range small {
			it := SignedItem{ID: Hash{1, 2, 3}}
			_, err := hex.Decode(it.Agent[:], []byte(agent))
			require.NoError(t, err)
			_, err = hex.Decode(it.Sig[:32], []byte(point))
			require.NoError(t, err)
			items = append(items, it)
		}
	}
	for i, ok := range v.Verify(items) {
		require.True(t, ok, i)
		require.True(t, v.VerifyOne(&items[i]), i)
	}
	// One bad signature among them changes no other verdict.
	items[1].Sig[40] ^= 1
	for i, ok := range v.Verify(items) {
		require.Equal(t, i != 1, ok, i)
	}
}

// S must be below the group's order, or a signature could be changed into
// another one that is valid too.
func TestVerifyRefusesMalleable(t *testing.T) {
	order, err := hex.DecodeString("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")
	require.NoError(t, err)
	items := signedItems(4, 2)
	carry := 0
	for i, o := range order {
		carry += int(items[2].Sig[32+i]) + int(o)
		items[2].Sig[32+i] = byte(carry)
		carry >>= 8
	}
	v := NewVerifier(4)
	require.Equal(t, []bool{true, true, false, true}, v.Verify(items))
	require.False(t, v.VerifyOne(&items[2]))
}

func TestVerifierCacheIsBounded(t *testing.T) {
	v := NewVerifier(3)
	items := signedItems(40, 10)
	require.NotContains(t, v.Verify(items), false)
	require.Len(t, v.keys.entries, 3)
	require.Equal(t, 3, v.keys.recent.Len())
	// The keys used most recently stay.
	v.VerifyOne(&items[0])
	v.VerifyOne(&items[1])
	v.VerifyOne(&items[0])
	v.VerifyOne(&items[2])
	v.VerifyOne(&items[3])
	require.Contains(t, v.keys.entries, items[0].Agent)
	require.NotContains(t, v.keys.entries, items[1].Agent)
}

func TestVerifierConcurrently(t *testing.T) {
	v := NewVerifier(2)
	items := signedItems(64, 7)
	items[33].Sig[0] ^= 1
	var wg sync.WaitGroup
	results := make([][]bool, 4)
	for i := range results {
		wg.Go(func() { results[i] = v.Verify(items) })
	}
	wg.Wait()
	for _, valid := range results {
		for i, ok := range valid {
			require.Equal(t, i != 33, ok)
		}
	}
}
