package control

import (
	"errors"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/stemedb/stemedb/server/internal/keys"
)

// Sealed is a storage with checksums, as Raft uses it.
func Sealed(s RaftStorage) RaftStorage { return sealed{RaftStorage: s} }

// Revocation is the command that revokes a key.
func Revocation(h keys.Hash) []byte {
	b, err := encodeCommand(&revokeKey{Hash: h, At: 1})
	if err != nil {
		panic(err)
	}
	return b
}

// RotInMemory removes a revocation from the table in memory.
func (c *Control) RotInMemory(h keys.Hash) {
	s := c.State().clone()
	k := s.Keys[h]
	k.RevokedAt = 0
	s.Keys[h] = k
	c.table.state.Store(s)
}

// Voters returns the names of the table's voters as known to this node, in order.
func (c *Control) Voters() (names []string) {
	future := c.raft.Load().GetConfiguration()
	if future.Error() != nil {
		return nil
	}
	for _, id := range votersOf(future.Configuration()) {
		name, _, _ := strings.Cut(id, "/")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Pipelines reports whether Raft sends a follower entries before it has answered
// for the earlier ones.
func (c *Control) Pipelines() bool {
	c.partMu.Lock()
	defer c.partMu.Unlock()
	p, err := c.part.transport.AppendEntriesPipeline("nobody", "nowhere")
	if err == nil {
		_ = p.Close()
	}
	return !errors.Is(err, raft.ErrPipelineReplicationNotSupported)
}
