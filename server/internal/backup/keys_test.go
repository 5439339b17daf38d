package backup

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

// keyTable is a server's table of keys, with its rules.
type keyTable map[record.Hash]client.Key

func (t keyTable) RegisterKey(_ context.Context, hash record.Hash, k client.NewKey) (*client.Key, error) {
	held, ok := t[hash]
	if held.RevokedAt != 0 {
		return nil, &client.Error{Status: 409, Code: "revoked_for_good"}
	}
	if ok && (held.Project != k.Project || held.Role != k.Role) {
		return nil, &client.Error{Status: 409, Code: "key_exists"}
	}
	if !ok {
		held = client.Key{Hash: hash, Project: k.Project, Role: k.Role, Label: k.Label, ExpiresAt: k.ExpiresAt, Enabled: true, Version: 1}
		t[hash] = held
	}
	return &held, nil
}

func (t keyTable) ChangeKey(_ context.Context, hash record.Hash, change client.KeyChange) (*client.Key, error) {
	held := t[hash]
	if change.Version != held.Version {
		return nil, &client.Error{Status: 409, Code: "version_conflict"}
	}
	held.Enabled, held.Version = *change.Enabled, held.Version+1
	t[hash] = held
	return &held, nil
}

func (t keyTable) RevokeKey(_ context.Context, hash record.Hash) error {
	held := t[hash]
	held.RevokedAt = 1
	t[hash] = held
	return nil
}

func TestARestoreOfKeysRevivesNoRevokedOne(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	at := now.Unix()
	key := func(n byte, edit func(*client.Key)) client.Key {
		k := client.Key{Hash: record.Hash{n}, Project: "p", Role: "write_agent", Enabled: true}
		if edit != nil {
			edit(&k)
		}
		return k
	}
	m := &Manifest{Point: client.BackupPoint{Keys: []client.Key{
		key(1, nil),
		key(2, func(k *client.Key) { k.RevokedAt = at - 100 }),
		key(3, func(k *client.Key) { k.RotatedTo, k.GraceUntil = "x", at-1 }),
		key(4, func(k *client.Key) { k.RotatedTo, k.GraceUntil = "x", at+60 }),
		key(5, func(k *client.Key) { k.Enabled = false }),
		key(6, func(k *client.Key) { k.ExpiresAt = at - 1 }),
		key(7, func(k *client.Key) { k.Root = true }),
		key(8, nil), // revoked in the cluster since
		key(9, nil), // another key there
		key(10, func(k *client.Key) { k.RevokedAt, k.ExpiresAt = at-100, at-50 }),
	}}}
	table := keyTable{
		{8}: key(8, func(k *client.Key) { k.RevokedAt = at - 10 }),
		{9}: key(9, func(k *client.Key) { k.Project = "other" }),
	}
	for range 2 { // the second time changes nothing
		done, err := RestoreKeys(t.Context(), table, m, now)
		require.NoError(t, err)
		require.Equal(t, RestoredKeys{Registered: 3, Revoked: 4, Skipped: 2, Conflicts: []record.Hash{{9}}}, done)
		for n, revoked := range map[byte]bool{1: false, 2: true, 3: true, 4: false, 5: false, 8: true, 9: false, 10: true} {
			require.Equal(t, revoked, table[record.Hash{n}].RevokedAt != 0, "key %d", n)
		}
		require.Equal(t, at+60, table[record.Hash{4}].ExpiresAt, "the rotated key ends with its grace")
		require.False(t, table[record.Hash{5}].Enabled)
		require.Equal(t, "other", table[record.Hash{9}].Project)
		require.NotContains(t, table, record.Hash{6})
		require.NotContains(t, table, record.Hash{7})
	}
}
