package main

import (
	"errors"
	"net/http"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// smallVolume mounts a volume of that many bytes.
func smallVolume(t *testing.T, dir, size string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a small volume can be mounted by root only")
	}
	require.NoError(t, os.MkdirAll(dir, 0o700))
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size)
	if errors.Is(err, syscall.EPERM) {
		t.Skip("root may not mount here: ", err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { // after that of the process
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Log(err)
		}
	})
}

// fill makes a file that leaves that many bytes free on its volume.
func fill(t *testing.T, name string, leave uint64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer f.Close()
	for range 100 {
		var st syscall.Statfs_t
		require.NoError(t, syscall.Fstatfs(int(f.Fd()), &st))
		info, err := f.Stat()
		require.NoError(t, err)
		err = syscall.Fallocate(int(f.Fd()), 0, 0, info.Size()+int64(st.Bavail*uint64(st.Bsize)-leave))
		if !errors.Is(err, syscall.ENOSPC) {
			require.NoError(t, err)
			return
		}
		// The server has taken some of it since.
	}
	t.Fatal("the server takes the free space as fast as it is counted")
}

// A DB volume that becomes nearly full, and then completely full, is named.
// Writes get 507, reads and restarts work, and everything resumes by itself
// when there is space.
func TestProcessOnAFullDBVolume(t *testing.T) {
	p := newProcess(t)
	smallVolume(t, p.dir+"/db", "448m")
	filler := p.dir + "/db/filler"
	p.start("")
	p.awaitReady()
	id := p.write("before", 20, 0)[7]
	p.eventually(func() bool { // the next start's reserve is set aside
		info, err := os.Stat(p.dir + "/db/ballast")
		return err == nil && info.Size() == 64<<20
	})
	p.requireReasons()

	fill(t, filler, 150<<20)
	nearly := p.requireReasons("nearly_full")["nearly_full"]
	require.Equal(t, "packs", nearly.Volume)
	require.Contains(t, nearly.Detail, p.dir+"/db")
	p.write("while nearly full", 20, 0)

	fill(t, filler, 0)
	number := 0
	refused := func() bool {
		number++
		status, body := p.assert(claim("full", number, 0))
		if status == http.StatusInsufficientStorage {
			require.Contains(t, body, "free or add disk space")
			return true
		}
		require.Equal(t, http.StatusCreated, status, body)
		return false
	}
	requireReadOnly := func() {
		p.eventually(refused)
		status, _, body := p.read(id, "quorum")
		require.Equal(t, http.StatusOK, status, body)
		reasons := p.requireReasons("nearly_full", "read_only")
		require.Contains(t, reasons["read_only"].Detail, p.dir+"/db")
	}
	requireReadOnly()
	p.stop()
	p.start("")
	p.awaitReady()
	requireReadOnly()
	p.kill()
	p.start("")
	p.awaitReady()
	requireReadOnly()

	require.NoError(t, os.Remove(filler))
	p.eventually(func() bool { return !refused() })
	p.requireReasons()
	after := p.write("afterwards", 20, 0)
	status, _, body := p.read(after[0], "quorum")
	require.Equal(t, http.StatusOK, status, body)
	p.stop()
}

// A WAL volume that is full does the same.
func TestProcessOnAFullWALVolume(t *testing.T) {
	p := newProcess(t)
	smallVolume(t, p.dir+"/wal", "640m")
	p.start("")
	p.awaitReady()
	id := p.write("before", 20, 0)[7]
	fill(t, p.dir+"/wal/filler", 0)
	number := 0
	p.eventually(func() bool {
		number++
		status, _ := p.assert(claim("full", number, 0))
		return status == http.StatusInsufficientStorage
	})
	reasons := p.requireReasons("nearly_full", "read_only")
	require.Equal(t, "wal", reasons["nearly_full"].Volume)
	status, _, body := p.read(id, "quorum")
	require.Equal(t, http.StatusOK, status, body)
	require.NoError(t, os.Remove(p.dir+"/wal/filler"))
	p.eventually(func() bool { status, _ := p.assert(claim("room", number, 0)); return status == http.StatusCreated })
	p.requireReasons()
	p.stop()
}
