package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	stemedb "github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/client/agentkey"
	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/keys"
)

const claimSubject = "code://go/example.com/app/tls"

// claimArgs is a command line that describes a whole claim.
func claimArgs(verb, value string, more ...string) []string {
	return append([]string{
		"claim", verb, "--subject", claimSubject, "--predicate", "cert_verification",
		"--text", value, "--source-class", "expert",
	}, more...)
}

// atHome gives the commands a configuration folder without any keys.
func atHome(t *testing.T) (agentFile string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv(agentkey.Variable, "")
	t.Setenv("STEMEDB_API_KEY", "")
	return filepath.Join(dir, "stemedb", "agent.key")
}

func TestAClaimIsSignedSentVotedOnAndReadByHand(t *testing.T) {
	atHome(t)
	t.Setenv("STEMEDB_URL", running(t, nil))

	code, out, errOut := command("", claimArgs("assert", "off", "--confidence", "0.5", "--source-metadata", "file=a=b.go")...)
	require.Equal(t, exitOK, code, errOut)
	require.Regexp(t, `^created [0-9a-f]{64}\n$`, out)
	require.Contains(t, errOut, "made the agent key")
	hash := strings.Fields(out)[1]

	code, out, errOut = command("", "claim", "vote", hash, "--weight", "-0.5", "-o", "json")
	require.Equal(t, exitOK, code, errOut)
	require.Contains(t, out, `"status":"created"`)

	code, out, errOut = command("", "claim", "get", hash)
	require.Equal(t, exitOK, code, errOut)
	for _, says := range []string{hash, claimSubject, "off (text)", "0.5", "expert", "file=a=b.go", "-0.5 by ", "proposed"} {
		require.Contains(t, out, says)
	}
	code, out, errOut = command("", "claim", "get", hash, "-o", "json", "--scope", "own,shared", "--consistency", "local")
	require.Equal(t, exitOK, code, errOut)
	var got stemedb.Record
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	require.Equal(t, hash, got.ID().String())
	require.Len(t, got.Signatures, 1)

	code, out, errOut = command("", claimArgs("assert", "on", "--parent-hash", hash, "--lifecycle", "approved")...)
	require.Equal(t, exitOK, code, errOut)
	second := strings.Fields(out)[1]
	code, out, errOut = command("", "claim", "query", claimSubject, "--lifecycle", "approved", "--source-class", "expert")
	require.Equal(t, exitOK, code, errOut)
	require.Contains(t, out, second)
	code, out, errOut = command("", "claim", "query", claimSubject, "--limit", "1")
	require.Equal(t, exitOK, code, errOut)
	require.Equal(t, 2, strings.Count(out, "\n"), "a heading and one claim: %s", out)
	require.Contains(t, errOut, "--cursor ")
	code, out, errOut = command("", "claim", "query", claimSubject, "--lens", "consensus", "--predicate", "cert_verification")
	require.Equal(t, exitOK, code, errOut)
	require.Contains(t, out, "ANSWER")
	require.Contains(t, out, second)
}

// The API accepts the output of sign, and assert accepts it as a file.
func TestASignedClaimCanBeSentByOthers(t *testing.T) {
	atHome(t)
	url := running(t, nil)
	code, signed, errOut := command("", claimArgs("sign", "off")...)
	require.Equal(t, exitOK, code, errOut)
	require.Equal(t, 1, strings.Count(signed, "\n"), "one line, so that several make NDJSON")
	a, err := record.ParseAssertionJSON([]byte(signed))
	require.NoError(t, err)
	require.InDelta(t, time.Now().Unix(), a.Timestamp, 60)

	resp, err := http.Post(url+"/v1/assert", "application/json", strings.NewReader(signed))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusCreated, resp.StatusCode)
	code, out, errOut := command(signed, "claim", "assert", "--file", "-", "--url", url)
	require.Equal(t, exitOK, code, errOut)
	require.Equal(t, "exists "+a.ID().String()+"\n", out)

	// A second agent adds its signature to the same claim.
	other := filepath.Join(t.TempDir(), "other.key")
	_, err = agentkey.Create(other)
	require.NoError(t, err)
	code, both, errOut := command(signed, "claim", "sign", "--file", "-", "--agent-key-file", other)
	require.Equal(t, exitOK, code, errOut)
	b, err := record.ParseAssertionJSON([]byte(both))
	require.NoError(t, err)
	require.Len(t, b.Signatures, 2)
	require.Equal(t, a.ID(), b.ID())

	code, vote, errOut := command("", "claim", "vote", a.ID().String(), "--weight", "1", "--print")
	require.Equal(t, exitOK, code, errOut)
	_, err = record.ParseVoteJSON([]byte(vote))
	require.NoError(t, err)
	resp, err = http.Post(url+"/v1/vote", "application/json", strings.NewReader(vote))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusCreated, resp.StatusCode)
}

func TestTheAgentKeyIsMadeOnceForItsOwnerAlone(t *testing.T) {
	file := atHome(t)
	agent := func(args ...string) string {
		code, out, errOut := command("", append(claimArgs("sign", "off"), args...)...)
		require.Equal(t, exitOK, code, errOut)
		a, err := record.ParseAssertionJSON([]byte(out))
		require.NoError(t, err)
		return a.Signatures[0].Agent.String()
	}
	first := agent()
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.Equal(t, first, agent(), "the key is kept")

	t.Setenv(agentkey.Variable, strings.Repeat("07", 32))
	require.NotEqual(t, first, agent(), "the variable wins over the default file")
	require.Equal(t, first, agent("--agent-key-file", file), "the flag wins over the variable")
}

func TestClaimCommandsSayWhatIsWrong(t *testing.T) {
	file := atHome(t)
	hash := strings.Repeat("ab", 32)
	missing := filepath.Join(t.TempDir(), "missing")
	for _, row := range []struct {
		in   string
		args []string
		says []string
	}{
		{"", []string{"claim", "sign", "--subject", "s", "--predicate", "p", "--source-class", "expert"}, []string{"--text, --number, --boolean, --reference"}},
		{"", claimArgs("sign", "x", "--number", "1"), []string{"exactly one"}},
		{"", []string{"claim", "sign", "--subject", "s", "--predicate", "p", "--text", "x"}, []string{"--source-class", "regulatory"}},
		{"", claimArgs("sign", "x", "--source-class", "rumour"), []string{"--source-class", "rumour", "anecdotal"}},
		{"", claimArgs("sign", "x", "--lifecycle", "done"), []string{"--lifecycle", "done", "under_review"}},
		{"", claimArgs("sign", "x", "--confidence", "2"), []string{"confidence", "0 to 1"}},
		{"", claimArgs("sign", "x", "--subject", ""), []string{"subject", "empty"}},
		{"", claimArgs("sign", "x", "--parent-hash", "12"), []string{"--parent-hash", "12"}},
		{"", claimArgs("sign", "x", "--source-metadata", "alone"), []string{"--source-metadata", "key=value"}},
		{"", claimArgs("sign", "x", "--timestamp", "1764000000000"), []string{"timestamp", "milliseconds"}},
		{"", claimArgs("sign", "x", "--agent-key-file", missing), []string{missing, "openssl rand"}},
		{"{}", claimArgs("sign", "x", "--file", "-"), []string{"--file and --subject"}},
		{"{}", []string{"claim", "sign", "--file", "-"}, []string{"subject", "missing"}},
		{`{"signatures":[]}`, []string{"claim", "assert", "--file", "-"}, []string{"missing"}},
		{"", []string{"claim", "sign", "--file", missing}, []string{"--file", missing}},
		{"", []string{"claim", "sign", "--subject", "s", "--predicate", "p", "--source-class", "expert", "--boolean", "yes"}, []string{"--boolean", "yes"}},
		{"", []string{"claim", "vote", hash}, []string{"--weight"}},
		{"", []string{"claim", "vote", hash, "--weight", "7"}, []string{"weight", "-1"}},
		{"", []string{"claim", "vote", "12", "--weight", "1"}, []string{"HASH", "12"}},
		{"", []string{"claim", "get", "12"}, []string{"HASH", "12"}},
		{"", []string{"claim", "get", hash, "-o", "xml"}, []string{"--output", "xml"}},
		{"", []string{"claim", "get", hash, "--url", "nonsense"}, []string{"nonsense", "https://"}},
		{"", []string{"claim", "query", "s", "--source-class", "rumour"}, []string{"--source-class", "rumour"}},
		{"", []string{"claim", "query"}, []string{"arg"}},
	} {
		code, out, errOut := command(row.in, row.args...)
		require.Equal(t, exitUsage, code, "%v: %s", row.args, errOut)
		require.Empty(t, out)
		for _, says := range row.says {
			require.Contains(t, errOut, says, "%v", row.args)
		}
	}
	require.NoFileExists(t, file, "a wrong command line makes no key")
}

func TestClaimCommandsSortWhatTheServerAnswers(t *testing.T) {
	atHome(t)
	raw, err := keys.Generate(keys.Test, nil)
	require.NoError(t, err)
	url := running(t, func(c *config.Config) { c.AuthEnabled, c.RootAPIKey = true, config.Secret(raw) })
	t.Setenv("STEMEDB_URL", url)
	unknown := strings.Repeat("ab", 32)

	code, _, errOut := command("", "claim", "get", unknown)
	require.Equal(t, exitNo, code, errOut)
	require.Contains(t, errOut, "key_missing")
	file := filepath.Join(t.TempDir(), "api-key")
	require.NoError(t, os.WriteFile(file, []byte(raw), 0o600))
	require.Eventually(t, func() bool { // until the root key is registered
		code, _, errOut = command("", "claim", "get", unknown, "--api-key-file", file)
		return strings.Contains(errOut, "no_such_record")
	}, time.Minute, 10*time.Millisecond)
	require.Equal(t, exitNo, code)

	t.Setenv("STEMEDB_API_KEY", raw)
	code, _, errOut = command("", "claim", "get", unknown)
	require.Equal(t, exitNo, code)
	require.Contains(t, errOut, "no_such_record")

	code, _, errOut = command("", "claim", "get", unknown, "--url", "http://127.0.0.1:1", "--timeout", "50ms")
	require.Equal(t, exitFailed, code, errOut)
}

// A claim's text is untrusted: it must not control the terminal.
func TestClaimsAreShownWithoutControlCharacters(t *testing.T) {
	atHome(t)
	t.Setenv("STEMEDB_URL", running(t, nil))
	code, out, errOut := command("", claimArgs("assert", "a\x1b[2J\n::add-mask::b", "--source-metadata", "k=\x1b[2J\nx")...)
	require.Equal(t, exitOK, code, errOut)
	hash := strings.Fields(out)[1]
	for _, args := range [][]string{{"get", hash}, {"query", claimSubject}, {"query", claimSubject, "--lens", "recency"}} {
		code, out, errOut := command("", append([]string{"claim"}, args...)...)
		require.Equal(t, exitOK, code, errOut)
		require.NotContains(t, out, "\x1b")
		require.NotContains(t, out, "\n::")
		require.Contains(t, out, `\x1b[2J`)
	}
}

// A warning about lost records is not part of the result.
func TestReadsWarnThatTheNodeLostRecords(t *testing.T) {
	atHome(t)
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Stemedb-Incomplete", "records are lost")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte("{}"))
	}))
	t.Cleanup(server.Close)
	t.Setenv("STEMEDB_URL", server.URL)
	for _, args := range [][]string{{"query", claimSubject}, {"query", claimSubject, "--lens", "recency"}, {"query", claimSubject, "-o", "json"}} {
		code, out, errOut := command("", append([]string{"claim"}, args...)...)
		require.Equal(t, exitOK, code, errOut)
		require.NotContains(t, out, "records are lost")
		require.Contains(t, errOut, "warning: the answer may lack records: records are lost")
	}
	status = http.StatusNotFound
	code, _, errOut := command("", "claim", "get", strings.Repeat("ab", 32))
	require.Equal(t, exitNo, code, errOut)
	require.Contains(t, errOut, "warning: the answer may lack records: records are lost")
}
