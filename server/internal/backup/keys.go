package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

// KeyServer is the part of client.Client that a restore of API keys needs. It needs a key
// with the role admin.
type KeyServer interface {
	RegisterKey(ctx context.Context, hash record.Hash, k client.NewKey) (*client.Key, error)
	ChangeKey(ctx context.Context, hash record.Hash, change client.KeyChange) (*client.Key, error)
	RevokeKey(ctx context.Context, hash record.Hash) error
}

// RestoredKeys counts the keys of a backup by outcome.
type RestoredKeys struct {
	// Registered work again; those that were disabled are disabled. Revoked were revoked
	// in the backup or in the cluster, or rotated with their grace over, and are registered
	// as revoked, so that nobody can register them again. Skipped are root keys, which each cluster takes from its own
	// configuration, and keys that had expired.
	Registered, Revoked, Skipped int
	// Conflicts are registered in this cluster with another project or role, and were
	// left as they are.
	Conflicts []record.Hash
}

// RestoreKeys registers the API keys of a backup by their hashes. It is idempotent, and a
// revocation wins, in the backup or in the cluster: a key that the cluster has revoked
// stays revoked.
func RestoreKeys(ctx context.Context, s KeyServer, m *Manifest, now time.Time) (RestoredKeys, error) {
	var done RestoredKeys
	for i := range m.Point.Keys {
		k := &m.Point.Keys[i]
		gone := k.RevokedAt != 0 || k.RotatedTo != "" && k.GraceUntil <= now.Unix()
		if k.Root || !gone && k.ExpiresAt != 0 && k.ExpiresAt <= now.Unix() {
			done.Skipped++
			continue
		}
		err := restoreKey(ctx, s, k, gone)
		var refused *client.Error
		switch {
		case errors.As(err, &refused) && refused.Code == "key_exists":
			done.Conflicts = append(done.Conflicts, k.Hash)
		case errors.As(err, &refused) && refused.Code == "revoked_for_good":
			done.Revoked++
		case err != nil:
			return done, fmt.Errorf("restore the key %v of project %s: %w", k.Hash, k.Project, err)
		case gone:
			done.Revoked++
		default:
			done.Registered++
		}
	}
	return done, nil
}

func restoreKey(ctx context.Context, s KeyServer, k *client.Key, gone bool) error {
	wanted := client.NewKey{Project: k.Project, Role: k.Role, Label: k.Label, ExpiresAt: k.ExpiresAt}
	if gone {
		wanted.ExpiresAt = 0 // it may have passed, and the key is revoked at once
	} else if k.RotatedTo != "" {
		wanted.ExpiresAt = k.GraceUntil
	}
	held, err := s.RegisterKey(ctx, k.Hash, wanted)
	if err != nil {
		return err
	}
	if gone {
		return s.RevokeKey(ctx, k.Hash)
	}
	if k.Enabled || !held.Enabled || held.RevokedAt != 0 {
		return nil
	}
	off := false
	_, err = s.ChangeKey(ctx, k.Hash, client.KeyChange{Version: held.Version, Enabled: &off})
	return err
}
