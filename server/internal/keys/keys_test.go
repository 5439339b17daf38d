package keys

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGenerateAndValidate(t *testing.T) {
	raw, err := Generate(Test, bytes.NewReader(make([]byte, 24)))
	require.NoError(t, err)
	require.Equal(t, "steme_test_"+strings.Repeat("0", 48), raw)
	require.NoError(t, ValidateRaw(raw))
	require.True(t, WellFormed(raw))
	_, err = Generate("prod", nil)
	require.Error(t, err)
	_, err = Generate(Live, bytes.NewReader(nil))
	require.Error(t, err)

	secret := strings.Repeat("ab", 24)
	for _, bad := range []string{
		"", "steme_", "steme_live_", "stem_live_" + secret, "steme_prod_" + secret, "steme_live_" + secret[:47],
		"steme_live_" + secret + "0", "steme_live_" + strings.ToUpper(secret), "steme_live_" + secret[:47] + "g", " steme_live_" + secret,
	} {
		err := ValidateRaw(bad)
		require.Error(t, err, bad)
		require.False(t, WellFormed(bad))
		require.NotContains(t, err.Error(), secret, "an error must not show a key")
	}
}

func TestHash(t *testing.T) {
	// BLAKE3-256 of the empty string, from the function's own test vectors.
	require.Equal(t, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262", HashOf("").String())
	h := HashOf("x")
	back, err := ParseHash(strings.ToUpper(h.String()))
	require.NoError(t, err)
	require.Equal(t, h, back)
	for _, bad := range []string{"", "ab", strings.Repeat("g", 64), h.String() + "00"} {
		_, err := ParseHash(bad)
		require.Error(t, err)
	}
	text, err := json.Marshal(map[Hash]Key{h: {Hash: h, Role: Admin}})
	require.NoError(t, err)
	var read map[Hash]Key
	require.NoError(t, json.Unmarshal(text, &read))
	require.Equal(t, h, read[h].Hash)
}

func TestCheck(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, row := range []struct {
		name string
		key  Key
		want Reason
	}{
		{"fresh", Key{Enabled: true}, Usable},
		{"off", Key{}, Disabled},
		{"expires in a second", Key{Enabled: true, ExpiresAt: 1001}, Usable},
		{"expires now", Key{Enabled: true, ExpiresAt: 1000}, Expired},
		{"in its grace", Key{Enabled: true, RotatedTo: &Hash{}, GraceUntil: 1001}, Usable},
		{"grace over", Key{Enabled: true, RotatedTo: &Hash{}, GraceUntil: 1000}, Rotated},
		{"revoked beats all", Key{RevokedAt: 5, ExpiresAt: 5, RotatedTo: &Hash{}}, Revoked},
		{"revoked in its grace", Key{Enabled: true, RevokedAt: 5, RotatedTo: &Hash{}, GraceUntil: 2000}, Revoked},
	} {
		require.Equal(t, row.want, row.key.Check(now), row.name)
	}
}

// A rotation without grace and a revocation end a key on every member, whatever
// the clocks of the member that took the request and of the member that checks
// the key show.
func TestNoClockBringsAnEndedKeyBack(t *testing.T) {
	k := Key{Enabled: true, Version: 1}
	clocks := []int64{-3600, 0, 1, 1_000_000, 1_000_000 - 3600, 1_000_000 + 3600}
	for _, taken := range clocks {
		old, fresh, err := k.Rotate(Hash{1}, taken, 0)
		require.NoError(t, err)
		revoked := k.RevokedNow(taken)
		for _, checked := range clocks {
			require.Equal(t, Rotated, old.Check(time.Unix(checked, 0)), "taken at %d, checked at %d", taken, checked)
			require.Equal(t, Revoked, revoked.Check(time.Unix(checked, 0)), "taken at %d, checked at %d", taken, checked)
			require.Equal(t, Usable, fresh.Check(time.Unix(checked, 0)))
		}
		require.Equal(t, Rotated, old.Check(time.Time{}))
		require.Equal(t, Revoked, revoked.Check(time.Time{}))
	}
}

// When the time is unknown, only keys without a time limit and keys that have
// ended are decided.
func TestCheckWithoutTheTime(t *testing.T) {
	for _, row := range []struct {
		name string
		key  Key
		want Reason
	}{
		{"no limit", Key{Enabled: true}, Usable},
		{"off", Key{}, Disabled},
		{"off, with an expiry", Key{ExpiresAt: 9}, Disabled},
		{"an expiry", Key{Enabled: true, ExpiresAt: 1 << 40}, Undecided},
		{"a grace", Key{Enabled: true, RotatedTo: &Hash{}, GraceUntil: 1 << 40}, Undecided},
		{"revoked in its grace", Key{Enabled: true, RevokedAt: 5, RotatedTo: &Hash{}, GraceUntil: 1 << 40}, Revoked},
		{"rotated without grace, with an expiry", Key{Enabled: true, RotatedTo: &Hash{}, ExpiresAt: 1 << 40}, Rotated},
	} {
		require.Equal(t, row.want, row.key.Check(time.Time{}), row.name)
	}
}

func TestRegister(t *testing.T) {
	fresh := Key{Hash: Hash{1}, Project: "a", Role: ReadOnly, Enabled: true}
	after, created, err := Register(nil, fresh)
	require.NoError(t, err)
	require.True(t, created)
	require.EqualValues(t, 1, after.Version)

	again, created, err := Register(&after, fresh)
	require.NoError(t, err)
	require.False(t, created)
	require.Equal(t, after, again)

	for _, change := range []func(*Key){
		func(k *Key) { k.Project = "b" }, func(k *Key) { k.Role = Admin }, func(k *Key) { k.ExpiresAt = 9 },
	} {
		other := fresh
		change(&other)
		_, _, err := Register(&after, other)
		require.ErrorIs(t, err, ErrExists)
	}
	revoked := after.RevokedNow(5)
	_, _, err = Register(&revoked, fresh)
	require.ErrorIs(t, err, ErrRevoked, "nothing brings a revoked key back")
}

func TestTransitions(t *testing.T) {
	k := Key{Hash: Hash{1}, Project: "a", Role: WriteAgent, Label: "l", Enabled: true, ExpiresAt: 50, Version: 3}
	off := false
	p, err := k.Patched(Patch{Version: 3, Enabled: &off})
	require.NoError(t, err)
	require.EqualValues(t, 4, p.Version)
	require.False(t, p.Enabled)
	require.Equal(t, "l", p.Label, "a field that the patch does not name stays")
	_, err = p.Patched(Patch{Version: 3, Enabled: &off})
	require.ErrorIs(t, err, ErrVersion)

	old, fresh, err := k.Rotate(Hash{2}, 100, 60)
	require.NoError(t, err)
	require.Equal(t, Usable, fresh.Check(time.Unix(10, 0)))
	require.EqualValues(t, 160, old.GraceUntil)
	require.Equal(t, []any{k.Project, k.Role, k.Label, k.ExpiresAt, uint64(1)}, []any{fresh.Project, fresh.Role, fresh.Label, fresh.ExpiresAt, fresh.Version})
	_, _, err = old.Rotate(Hash{3}, 100, 0)
	require.ErrorIs(t, err, ErrRotated)

	gone := k.RevokedNow(7)
	require.Equal(t, gone, gone.RevokedNow(9), "the first time counts")
	_, _, err = gone.Rotate(Hash{3}, 100, 0)
	require.ErrorIs(t, err, ErrRevoked)
	_, err = gone.Patched(Patch{Version: gone.Version, Enabled: &off})
	require.ErrorIs(t, err, ErrRevoked)
}

func TestRights(t *testing.T) {
	for _, role := range Roles() {
		parsed, err := ParseRole(string(role))
		require.NoError(t, err)
		require.Equal(t, role, parsed)
		require.True(t, role.Allows(Public))
		require.True(t, role.Allows(Identity))
		for _, class := range Classes() {
			require.True(t, !role.Allows(class) || Admin.Allows(class), "admin has every right that another role has")
		}
	}
	require.False(t, ReadOnly.Allows(Write))
	require.False(t, WriteAgent.Allows(Administer))
	require.False(t, Backup.Allows(Read))
	require.False(t, Role("root").Allows(Identity), "an unknown role has no rights")
	_, err := ParseRole("root")
	require.Error(t, err)
}

func TestLabels(t *testing.T) {
	require.NoError(t, ValidateLabel("CI of payments – main"))
	for _, bad := range []string{strings.Repeat("l", 129), "a\nb", "\xff"} {
		require.Error(t, ValidateLabel(bad))
	}
}
