// Package record holds the data that StemeDB stores and signs: assertions,
// signatures and votes. It promises that one claim has one sequence of bytes,
// one id and one verdict on its signatures, on every node and in every client.
//
// # Canonical bytes
//
// The canonical bytes of a content are one CBOR map in the core deterministic
// encoding of RFC 8949 §4.2.1: definite lengths, shortest heads, keys in the
// order of their encoded bytes. The keys, in that order:
//
//	epoch           byte string of 32   optional
//	object          map {type: text, value: text | float | bool}
//	subject         text, 1..1,024 bytes, no control characters
//	lifecycle       text, always present ("proposed" when not given)
//	predicate       text, 1..256 bytes, no control characters
//	timestamp       unsigned integer, unix seconds
//	confidence      float, 0..1
//	parent_hash     byte string of 32   optional
//	source_hash     byte string of 32   optional
//	source_class    text
//	source_metadata map of text to text, 1..4,096 bytes in all   optional
//
// A field that is not given is absent, never null. Floats take the shortest of
// the three widths that keeps the value, also for whole numbers; -0 is written
// as 0; NaN and infinities are invalid. Text is kept byte for byte.
//
// The canonical bytes of a vote are the map {agent, weight, assertion,
// timestamp}, encoded by the same rules.
//
// # Ids and signatures
//
// An id is the BLAKE3-256 of the canonical bytes. An agent signs, with
// Ed25519, the ASCII prefix "stemedb:v2:" followed by the 32 bytes of the id;
// for a vote the prefix is "stemedb:vote:v2:". Signatures are checked by the
// ZIP-215 rules, so that one signature alone and a batch of them are decided
// alike on every node.
//
// # Wire forms
//
// On the wire an assertion is the content's map plus "signatures", an array of
// maps {agent_id, signature}; a vote is its map plus "signature". In CBOR they
// are encoded deterministically as above; in JSON hashes are lower- or
// upper-case hex, names are exact, and unknown or duplicate names are refused.
//
// The vectors in testdata/vectors.json let a client in another language verify
// its implementation.
package record
