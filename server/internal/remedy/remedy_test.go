package remedy

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVolumesMayBeEmptiedOnlyWhereOthersCanRefillThem(t *testing.T) {
	const putBack = "restore the file"
	for members, says := range map[int]string{
		1: "n0 is the only member",
		2: "cannot admit n0 as a new member without its vote",
		3: "the other 2 of the 3 members hold the table and the records too: when \"stemedb cluster status\" of one of them shows at least 2 of them alive and whole, empty both volumes of n0",
		5: "the other 4 of the 5 members hold the table and the records too: when \"stemedb cluster status\" of one of them shows at least 3 of them alive and whole, empty both volumes of n0",
	} {
		text := Volumes(members, "n0", putBack)
		require.Contains(t, text, says)
		require.Contains(t, text, putBack)
		require.Equal(t, members < 3, strings.Contains(text, "do not empty the volumes"), text)
		require.Equal(t, members >= 3, strings.Contains(text, "empty both"), text)
	}
	both := Volumes(Unknown, "n0", putBack)
	require.Contains(t, both, "When n0 is the only member, or one of two, do not empty its volumes")
	require.Contains(t, both, "When it is one of three or more, and \"stemedb cluster status\" of another one shows a majority of them alive and whole, you can also empty both volumes of n0")
}

func TestLostRecordsAreRefilledOnlyWhereThereAreOthers(t *testing.T) {
	one, three, unknown := Lost(1, "n0"), Lost(3, "n0"), Lost(Unknown, "n0")
	require.Contains(t, one, "stemedb cluster accept-loss n0 --yes")
	require.Contains(t, one, "do not empty the volumes")
	require.NotContains(t, one, "the other members")
	require.Equal(t, "the other members refill it", three)
	require.Contains(t, unknown, three)
	require.Contains(t, unknown, "when it is the only member, restore a backup, or accept the loss: stemedb cluster accept-loss n0 --yes; do not empty the volumes")
}
