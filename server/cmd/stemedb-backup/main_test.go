package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsouza/fake-gcs-server/fakestorage"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

// buildServer compiles the server of this tree.
func buildServer(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "stemedb")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./server/cmd/stemedb")
	build.Dir, build.Env = "../../..", append(os.Environ(), "GOWORK=off")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return binary
}

const rootKey = "steme_test_" + "0123456789abcdef0123456789abcdef0123456789abcdef"

// startServer runs a single server with auth until the test ends.
func startServer(t *testing.T, binary string) (url string, c *client.Client) {
	t.Helper()
	var ports []int
	for range 4 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		require.NoError(t, l.Close())
	}
	dir := t.TempDir()
	var logs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, "serve", "--node-name", "n0",
		"--wal-dir", filepath.Join(dir, "wal"), "--db-dir", filepath.Join(dir, "db"),
		"--bind-addr", fmt.Sprintf("127.0.0.1:%d", ports[0]), "--gateway-addr", fmt.Sprintf("127.0.0.1:%d", ports[1]),
		"--replication-addr", fmt.Sprintf("127.0.0.1:%d", ports[2]), "--gossip-addr", fmt.Sprintf("127.0.0.1:%d", ports[3]),
		"--shutdown-grace", "0s")
	cmd.Env = []string{"STEMEDB_AUTH_ENABLED=true", "STEMEDB_ROOT_API_KEY=" + rootKey}
	cmd.Stderr = &logs
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	url = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	c, err := client.New(url, rootKey)
	require.NoError(t, err)
	require.Eventually(t, func() bool { _, err := c.Keys(t.Context(), "", "", 1); return err == nil }, time.Minute, 50*time.Millisecond, "%s", &logs)
	return url, c
}

// run runs one command line.
func run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, log bytes.Buffer
	cmd := command(&out, &log)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), log.String(), err
}

func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	out, log, err := run(t, args...)
	require.NoError(t, err, "%s", log)
	return out
}

// write makes claims durable and returns their ids.
func write(t *testing.T, c *client.Client, from, count int) (ids []record.Hash) {
	t.Helper()
	for i := from; i < from+count; i++ {
		a := &record.Assertion{Content: record.Content{
			Subject: "code://backup", Predicate: "number", Object: record.Number(float64(i)), Confidence: 0.5,
			SourceClass: record.Observational, Timestamp: uint64(time.Now().Unix()),
		}}
		a.Sign(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
		_, err := c.Assert(t.Context(), a)
		require.NoError(t, err)
		ids = append(ids, a.ID())
	}
	return ids
}

// gcs starts a server of the storage API of Google Cloud and returns a remote in it.
func gcs(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	server, err := fakestorage.NewServerWithOptions(fakestorage.Options{
		Scheme: "http", Host: "127.0.0.1", Port: uint16(l.Addr().(*net.TCPAddr).Port),
		ExternalURL: "http://" + address, PublicHost: address, Writer: io.Discard,
	})
	require.NoError(t, err)
	t.Cleanup(server.Stop)
	server.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: "backups"})
	for name, value := range map[string]string{
		"TYPE": "google cloud storage", "ENDPOINT": "http://" + address + "/storage/v1/", "ANONYMOUS": "true", "PROJECT_NUMBER": "1", "BUCKET_POLICY_ONLY": "true",
	} {
		t.Setenv("RCLONE_CONFIG_GCS_"+name, value)
	}
	return "gcs:backups/stemedb"
}

// What a real server holds goes to storage and into another server, with its keys.
// Both kinds of remote are tried: a folder and a bucket.
func TestARealServerIsBackedUpAndRestored(t *testing.T) {
	t.Setenv("RCLONE_CONFIG", filepath.Join(t.TempDir(), "none.conf"))
	binary := buildServer(t)
	t.Setenv("STEMEDB_API_KEY", rootKey)
	for name, remote := range map[string]string{"folder": filepath.Join(t.TempDir(), "backups"), "bucket": gcs(t)} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("STEMEDB_BACKUP_REMOTE", remote)
			from, source := startServer(t, binary)
			minted, err := source.MintKey(t.Context(), client.NewKey{Project: "alpha", Role: "write_agent"})
			require.NoError(t, err)
			revoked, err := source.MintKey(t.Context(), client.NewKey{Project: "alpha", Role: "read_only"})
			require.NoError(t, err)
			writer, err := client.New(from, minted.Secret)
			require.NoError(t, err)
			ids := write(t, writer, 0, 50)
			require.NoError(t, source.RevokeKey(t.Context(), revoked.Hash))
			mustRun(t, "create", "--url", from)
			ids = append(ids, write(t, writer, 50, 5)...)
			_, log, err := run(t, "create", "--url", from)
			require.NoError(t, err)
			require.Contains(t, log, `"full":false`)
			require.Contains(t, log, `"copied_chunks":1`)
			require.Contains(t, mustRun(t, "verify"), "110 records")
			require.Equal(t, 3, strings.Count(mustRun(t, "list"), "\n"))

			to, _ := startServer(t, binary)
			require.Contains(t, mustRun(t, "restore", "--url", to, "--keys"), "110 records created, 0 held already, 0 invalid")
			require.Contains(t, mustRun(t, "restore", "--url", to, "--keys"), "0 records created, 110 held already")
			project, err := client.New(to, minted.Secret)
			require.NoError(t, err)
			for _, id := range ids {
				r, err := project.Get(t.Context(), id)
				require.NoError(t, err, "the project's key works on")
				require.Len(t, r.Signatures, 1)
			}
			old, err := client.New(to, revoked.Secret, client.WithRetries())
			require.NoError(t, err)
			_, err = old.Get(t.Context(), ids[0])
			require.ErrorContains(t, err, "revoked")

			mustRun(t, "prune", "--keep-last", "1", "--keep-within", "0s")
			require.Equal(t, 2, strings.Count(mustRun(t, "list"), "\n"))
			damage(t, remote)
			out, _, err := run(t, "verify")
			require.Error(t, err, out)
			require.Equal(t, exitDamaged, exitCode(err))
			require.ErrorContains(t, err, "chunks/")
		})
	}
}

// damage removes one chunk of a remote.
func damage(t *testing.T, remote string) {
	t.Helper()
	r, err := openRemote(t.Context(), remote)
	require.NoError(t, err)
	all, err := r.List(t.Context(), "chunks/")
	require.NoError(t, err)
	require.NotEmpty(t, all)
	require.NoError(t, r.Delete(t.Context(), all[0].Name))
}

func TestInvalidUsageNamesTheSetting(t *testing.T) {
	t.Setenv("STEMEDB_BACKUP_REMOTE", "")
	for text, args := range map[string][]string{
		"STEMEDB_BACKUP_REMOTE": {"list"},
		"no-such-remote":        {"list", "--remote", "no-such-remote:bucket"},
		"--api-key-file":        {"create", "--remote", t.TempDir(), "--api-key-file", "/does/not/exist"},
		"there is no backup":    {"verify", "--remote", t.TempDir()},
		"unknown flag":          {"create", "--nonsense"},
	} {
		_, _, err := run(t, args...)
		require.ErrorContains(t, err, text, "%v", args)
	}
	require.Equal(t, exitUsage, exitCode(usageError{context.Canceled}))
}
