package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	stemedb "github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// binary is the program, built once.
var binary = sync.OnceValues(func() (path string, err error) {
	dir, err := os.MkdirTemp("", "stemedb-test-")
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "stemedb")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		return path, fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// process is the real binary with its own folders and ports.
type process struct {
	t      *testing.T
	binary string
	name   string
	dir    string // holds both volumes and the log
	api    string // host:port, as are the others
	peers  string
	gossip string
	always []string // arguments of every start
	secret string   // of the cluster; "": a single node
	root   string   // the root API key

	command *exec.Cmd
	ended   chan struct{} // closed when the process has ended, with err
	err     error
}

func newProcess(t *testing.T) *process {
	t.Helper()
	return newProcesses(t, 1)[0]
}

// newProcesses are the members of one cluster.
func newProcesses(t *testing.T, count int) (ps []*process) {
	t.Helper()
	path, err := binary()
	require.NoError(t, err)
	ports := freePorts(t, 3*count)
	var join []string
	for i := range count {
		p := &process{t: t, binary: path, name: fmt.Sprint("n", i), dir: t.TempDir()}
		p.api, p.peers, p.gossip = ports[3*i], ports[3*i+1], ports[3*i+2]
		ps, join = append(ps, p), append(join, p.peers)
	}
	for _, p := range ps {
		if count > 1 {
			p.always = []string{"--cluster-join", strings.Join(join, ","), "--advertise-addr", "127.0.0.1"}
			p.secret = "a secret that the members of this test share"
		}
	}
	return ps
}

// freePorts returns addresses that are free for TCP and UDP. They are below the
// range from which the kernel takes the ports of connections, so that none of
// them is taken before a listener uses it.
func freePorts(t *testing.T, count int) (addrs []string) {
	t.Helper()
	for port := 10_000 + rand.IntN(9_000); port < 20_000 && len(addrs) < count; port++ {
		addr := fmt.Sprint("127.0.0.1:", port)
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		udp, err := net.ListenPacket("udp", addr)
		require.NoError(t, tcp.Close())
		if err != nil {
			continue
		}
		require.NoError(t, udp.Close())
		addrs = append(addrs, addr)
	}
	require.Len(t, addrs, count)
	return addrs
}

// start runs the server with that limit of open files (0: the test's limit).
func (p *process) start(files string, more ...string) {
	args := append([]string{
		"serve", "--node-name", p.name, "--wal-dir", p.dir + "/wal", "--db-dir", p.dir + "/db", "--bind-addr", p.api,
		"--gateway-addr", "127.0.0.1:0", "--replication-addr", p.peers, "--gossip-addr", p.gossip, "--shutdown-grace", "0s",
	}, append(p.always, more...)...)
	p.command = exec.Command(p.binary, args...)
	if files != "" {
		p.command = exec.Command("sh", append([]string{"-c", `ulimit -n "$0" && exec "$@"`, files, p.binary}, args...)...)
	}
	p.command.Env = []string{}
	if p.secret != "" {
		p.command.Env = append(p.command.Env, "STEMEDB_CLUSTER_SECRET="+p.secret)
	}
	if p.root != "" {
		p.command.Env = append(p.command.Env, "STEMEDB_AUTH_ENABLED=true", "STEMEDB_ROOT_API_KEY="+p.root)
	}
	log, err := os.Create(p.dir + "/log")
	require.NoError(p.t, err)
	defer log.Close()
	p.command.Stderr = log
	require.NoError(p.t, p.command.Start())
	command, ended := p.command, make(chan struct{})
	p.ended = ended
	go func() {
		p.err = command.Wait()
		close(ended)
	}()
	p.t.Cleanup(func() { // when a check failed before its end
		_ = command.Process.Kill()
		<-ended
	})
}

// wait returns how the process ended.
func (p *process) wait() error {
	<-p.ended
	return p.err
}

// stop ends the server gracefully.
func (p *process) stop() {
	require.NoError(p.t, p.command.Process.Signal(syscall.SIGTERM))
	require.NoError(p.t, p.wait(), "%s", p.log())
}

// kill ends the server like a crash.
func (p *process) kill() {
	require.NoError(p.t, p.command.Process.Kill())
	require.Error(p.t, p.wait())
}

func (p *process) log() string {
	text, err := os.ReadFile(p.dir + "/log")
	require.NoError(p.t, err)
	return string(text)
}

// call sends a request over a connection that is then closed; status 0 is an
// error of the connection.
func (p *process) call(method, path, key string, body []byte) (status int, header http.Header, text string) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(p.t.Context(), method, "http://"+p.api+path, bytes.NewReader(body))
	require.NoError(p.t, err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("X-API-Key", key)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil, err.Error()
	}
	return resp.StatusCode, resp.Header, string(b)
}

func (p *process) get(path string) (status int, body string) {
	status, _, body = p.call(http.MethodGet, path, "", nil)
	return status, body
}

func (p *process) ready() bool {
	status, _ := p.get("/v1/health/ready")
	return status == http.StatusOK
}

func (p *process) awaitReady() {
	p.t.Helper()
	p.eventually(p.ready)
}

func (p *process) eventually(holds func() bool) {
	p.t.Helper()
	require.Eventually(p.t, holds, time.Minute, 20*time.Millisecond, "%s", lastOf{p})
}

// lastOf shows the end of the log when a check has failed.
type lastOf struct{ p *process }

func (l lastOf) String() string {
	text := l.p.log()
	return text[max(0, len(text)-4000):]
}

// health is the answer of /v1/health: the status, and the reasons by code.
func (p *process) health() (status string, reasons map[string]healthReason) {
	_, text := p.get("/v1/health")
	var body struct {
		Status  any
		Reasons []healthReason
	}
	require.NoError(p.t, json.Unmarshal([]byte(text), &body), text)
	reasons = map[string]healthReason{}
	for _, r := range body.Reasons {
		require.NotEmpty(p.t, r.Remedy, r.Code)
		reasons[r.Code] = r
	}
	return fmt.Sprint(body.Status), reasons
}

var reasonIsGiven = regexp.MustCompile(`(?m)^stemedb_health_reason{reason="(\w+)"} 1$`)

type healthReason struct{ Code, Detail, Remedy, Volume string }

// requireReasons waits until the summary has exactly these reasons, and
// requires the same ones in the metrics.
func (p *process) requireReasons(codes ...string) map[string]healthReason {
	p.t.Helper()
	var status string
	var reasons map[string]healthReason
	p.eventually(func() bool {
		status, reasons = p.health()
		for _, code := range codes {
			if _, given := reasons[code]; !given {
				return false
			}
		}
		return len(reasons) == len(codes)
	})
	if len(codes) == 0 {
		require.Equal(p.t, "ok", status)
	}
	_, metrics := p.get("/metrics")
	var shown []string
	for _, m := range reasonIsGiven.FindAllStringSubmatch(metrics, -1) {
		shown = append(shown, m[1])
	}
	require.ElementsMatch(p.t, codes, shown)
	return reasons
}

// claimTime is the time of every claim of a run, so that a repeated one has the same id.
var claimTime = uint64(time.Now().Unix())

// claim returns a signed claim with a text of that many bytes.
func claim(subject string, number, size int) *record.Assertion {
	text := fmt.Sprintf("%s number %06d ", subject, number)
	a := &record.Assertion{Content: record.Content{
		Subject: "code://" + subject, Predicate: "p", Object: record.Text(text + strings.Repeat("x", max(0, size-len(text)))),
		Confidence: 1, SourceClass: record.Expert, Timestamp: claimTime,
	}}
	a.Sign(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	return a
}

// write sends claims in batches; each of them is acknowledged.
func (p *process) write(subject string, count, size int) (ids []string) {
	c, err := stemedb.New("http://"+p.api, p.root)
	require.NoError(p.t, err)
	defer c.CloseIdleConnections()
	claims := make([]*record.Assertion, count)
	for i := range claims {
		claims[i] = claim(subject, i, size)
		ids = append(ids, claims[i].ID().String())
	}
	results, err := c.AssertBatch(context.Background(), claims)
	require.NoError(p.t, err)
	for _, r := range results {
		require.NoError(p.t, r.Err)
	}
	return ids
}

// read requests a record from this node alone or by a quorum.
func (p *process) read(id, consistency string) (status int, header http.Header, body string) {
	return p.call(http.MethodGet, "/v1/assertions/"+id+"?consistency="+consistency, p.root, nil)
}

// assert sends one claim.
func (p *process) assert(a *record.Assertion) (status int, body string) {
	b, err := json.Marshal(a)
	require.NoError(p.t, err)
	status, _, body = p.call(http.MethodPost, "/v1/assert", p.root, b)
	return status, body
}
