package wal

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/vfs/memfs"
)

// FuzzRecovery puts arbitrary bytes, and arbitrary batch frames with a valid
// checksum, after or over a durable prefix. For any input, opening neither
// crashes nor hangs, bytes that were not overwritten stay readable, and a log
// that opened accepts writes that survive.
func FuzzRecovery(f *testing.F) {
	f.Add([]byte{0}, uint16(0), false)
	f.Add([]byte("0123456789abcdef0123456789abcdef"), uint16(0), true)
	f.Add(binary.LittleEndian.AppendUint32(nil, batchWord), uint16(40), false)
	seed := make([]byte, 0, 64)
	seed = binary.LittleEndian.AppendUint64(seed, 0)
	seed = binary.LittleEndian.AppendUint64(seed, 1<<32|5000)
	seed = binary.LittleEndian.AppendUint32(seed, 64)
	seed = binary.LittleEndian.AppendUint32(seed, 1)
	f.Add(seed, uint16(0), true)
	f.Add(append(seed, seed...), uint16(8), true)
	f.Add(append([]byte{255, 255, 255, 255}, seed...), uint16(512), false)
	f.Fuzz(func(t *testing.T, data []byte, back uint16, frames bool) {
		if len(data) > 8<<10 {
			return
		}
		d := memfs.New(1)
		o := small(d)
		l := mustOpen(t, o)
		all := fill(t, l, 0, 4)
		end := l.End()
		require.NoError(t, l.Close())
		salt := l.cur.salt

		from := max(int64(end.Offset())-int64(back), 0)
		file, err := d.OpenFile(l.segmentName(1), os.O_RDWR, 0)
		require.NoError(t, err)
		if frames {
			data = asFrames(data, salt, end.Segment(), uint32(from)&^7)
			from &^= 7
		}
		_, err = file.WriteAt(data[:min(int64(len(data)), o.SegmentSize-from)], from)
		require.NoError(t, err)
		require.NoError(t, file.Close())

		begun := time.Now()
		l, err = Open(o)
		require.Less(t, time.Since(begun), 20*time.Second)
		if err != nil {
			require.Less(t, from, int64(headerSize), "only a foreign header may keep the log from opening: %v", err)
			return
		}
		readable := func() {
			for pos, want := range all {
				over := int64(pos.Offset())+int64(frameSize(len(want))) > from && int64(pos.Offset()) < from+int64(len(data))
				if over {
					_, err := l.Read(pos) // must return, with any result
					_ = err
					continue
				}
				e, err := l.Read(pos)
				require.NoError(t, err)
				require.Equal(t, want, string(e.Payload))
			}
		}
		readable()
		if from >= int64(end.Offset()) && !frames {
			require.True(t, l.Whole())
			require.Empty(t, l.Damage())
		}
		_, _, err = scanAll(l, 0)
		require.NoError(t, err)
		pos, err := put(l, "after")
		if err == nil {
			require.NoError(t, l.Close())
			d.Crash(memfs.LoseAll)
			l = mustOpen(t, o)
			e, err := l.Read(pos[0])
			require.NoError(t, err)
			require.Equal(t, "after", string(e.Payload))
			readable()
		} else {
			require.False(t, errors.Is(err, ErrFailed), err)
		}
		require.NoError(t, l.Close())
	})
}

// asFrames treats data as the payloads of batch frames and gives them valid
// checksums; a start of 0 becomes the right one too.
func asFrames(data []byte, salt, seq, off uint32) []byte {
	var out []byte
	for len(data) >= batchPayload {
		pos := makePosition(seq, off+uint32(len(out)))
		p := append([]byte(nil), data[:batchPayload]...)
		data = data[batchPayload:]
		if binary.LittleEndian.Uint64(p) == 0 {
			binary.LittleEndian.PutUint64(p, uint64(pos))
		}
		out = binary.LittleEndian.AppendUint32(out, batchWord)
		out = binary.LittleEndian.AppendUint32(out, frameCRC(salt, pos, batchWord, p))
		out = append(out, p...)
	}
	return out
}
