package record

import (
	"crypto/ed25519"
	"encoding/hex"
)

// The prefixes of a signed id. They keep a signature on a content from being
// used as one on a vote, and vice versa.
const (
	contentPrefix = "stemedb:v2:"
	votePrefix    = "stemedb:vote:v2:"
)

// SigBytes is an Ed25519 signature; 128 hex digits on the wire.
type SigBytes [64]byte

// String is the lower-case hex.
func (s SigBytes) String() string { return hex.EncodeToString(s[:]) }

// MarshalText returns the lower-case hex.
func (s SigBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText reads 128 hex digits.
func (s *SigBytes) UnmarshalText(b []byte) error { return decodeHex(s[:], b) }

// SignContent signs the id of a content.
func SignContent(priv ed25519.PrivateKey, id Hash) Signature {
	s := Signature{Agent: AgentOf(priv)}
	var buf [len(votePrefix) + 32]byte
	copy(s.Sig[:], ed25519.Sign(priv, appendMessage(buf[:0], contentPrefix, id)))
	return s
}

// SignVote sets the vote's agent to priv's and signs it.
func SignVote(priv ed25519.PrivateKey, v *Vote) {
	v.Agent = AgentOf(priv)
	var buf [len(votePrefix) + 32]byte
	copy(v.Sig[:], ed25519.Sign(priv, appendMessage(buf[:0], votePrefix, v.ID())))
}

// Sign adds the signature of priv's agent, replacing an earlier one of the
// same agent.
func (a *Assertion) Sign(priv ed25519.PrivateKey) {
	sig := SignContent(priv, a.ID())
	for i := range a.Signatures {
		if a.Signatures[i].Agent == sig.Agent {
			a.Signatures[i] = sig
			return
		}
	}
	a.Signatures = append(a.Signatures, sig)
}

// AgentOf is the agent id of a private key.
func AgentOf(priv ed25519.PrivateKey) AgentID {
	return AgentID(priv[ed25519.SeedSize:])
}

func appendMessage(dst []byte, prefix string, id Hash) []byte {
	dst = append(dst, prefix...)
	return append(dst, id[:]...)
}
