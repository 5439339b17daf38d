package peertls_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/network/memnet"
	"github.com/stemedb/stemedb/server/internal/peertls"
)

const (
	secretA = "0123456789abcdef0123456789abcdef"
	secretB = "fedcba9876543210fedcba9876543210"
)

// greet accepts one connection and echoes one line.
func greet(l net.Listener, answer string) {
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.WriteString(conn, answer)
			}()
		}
	}()
}

func transport(t *testing.T, cfg peertls.Config) *peertls.Transport {
	t.Helper()
	tr, err := peertls.New(cfg)
	require.NoError(t, err)
	return tr
}

func listen(t *testing.T, tr *peertls.Transport) *peertls.Listener {
	t.Helper()
	l, err := tr.Listen(context.Background(), ":18182")
	require.NoError(t, err)
	greet(l.GRPC(), "grpc")
	greet(l.Raft(), "raft")
	return l
}

func TestSecretsAndProtocols(t *testing.T) {
	tests := []struct {
		name           string
		server, client []string
		accepted       bool
	}{
		{"same secret", []string{secretA}, []string{secretA}, true},
		{"another secret", []string{secretA}, []string{secretB}, false},
		{"first step of a rotation", []string{secretA}, []string{secretA, secretB}, true},
		{"second step", []string{secretA, secretB}, []string{secretB, secretA}, true},
		{"second step, other way", []string{secretB, secretA}, []string{secretA, secretB}, true},
		{"last step", []string{secretB, secretA}, []string{secretB}, true},
		{"a step was skipped", []string{secretA}, []string{secretB, secretA}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := memnet.New(1)
				server := transport(t, peertls.Config{Network: n.Host("s").Start(), Name: "s", Secrets: test.server})
				defer server.Close()
				l := listen(t, server)
				defer l.Close()
				client := transport(t, peertls.Config{Network: n.Host("c").Start(), Name: "c", Secrets: test.client})
				defer client.Close()
				for proto, want := range map[string]string{peertls.ProtoGRPC: "grpc", peertls.ProtoRaft: "raft"} {
					conn, err := client.Dial(t.Context(), "s:18182", proto)
					var got []byte
					if err == nil {
						// In TLS 1.3 a client learns of its refusal when it reads.
						got, err = io.ReadAll(conn)
						conn.Close()
					}
					if test.accepted {
						require.NoError(t, err)
						require.Equal(t, want, string(got))
					} else {
						require.Error(t, err)
						require.Empty(t, got)
					}
				}
			})
		})
	}
}

func TestStrangersAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(1)
		reg := prometheus.NewRegistry()
		server := transport(t, peertls.Config{Network: n.Host("s").Start(), Name: "s", Secrets: []string{secretA}, Registerer: reg})
		defer server.Close()
		l := listen(t, server)
		defer l.Close()
		stranger := n.Host("x").Start()
		dial := func() net.Conn {
			conn, err := stranger.Dial(t.Context(), "s:18182")
			require.NoError(t, err)
			return conn
		}
		// A silent connection ends with the handshake's timeout.
		start := time.Now()
		_, err := io.ReadAll(dial())
		require.NoError(t, err)
		require.Equal(t, 5*time.Second, time.Since(start))
		// Noise is refused immediately.
		conn := dial()
		conn.Write([]byte("GET / HTTP/1.1\r\nHost: s\r\n\r\n"))
		start = time.Now()
		io.ReadAll(conn)
		require.Less(t, time.Since(start), time.Second)
		// TLS without a certificate, too old a TLS, an unknown protocol.
		for _, cfg := range []*tls.Config{
			{InsecureSkipVerify: true, NextProtos: []string{"h2"}},
			{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12},
			{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}},
			{InsecureSkipVerify: true},
		} {
			conn := tls.Client(dial(), cfg)
			got, err := io.ReadAll(conn)
			require.Error(t, err)
			require.Empty(t, got)
		}
		// Many silent connections do not lock members out for longer than a handshake.
		for range 300 {
			dial()
		}
		member := transport(t, peertls.Config{Network: n.Host("m").Start(), Name: "m", Secrets: []string{secretA}, HandshakeTimeout: time.Minute})
		defer member.Close()
		start = time.Now()
		ok, err := member.Dial(t.Context(), "s:18182", peertls.ProtoGRPC)
		require.NoError(t, err)
		ok.Close()
		require.Less(t, time.Since(start), 16*time.Second)
		stranger.Kill()
		require.Greater(t, count(t, reg, "stemedb_peer_handshakes_refused_total"), 5.0)
	})
}

func count(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// authority makes certificates as an operator's cert-manager would.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "operator"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{key, cert}
}

// write puts a leaf for the names into dir.
func (a *authority) write(t *testing.T, dir string, serial int64, names ...string) peertls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	c := peertls.Config{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), CAFile: filepath.Join(dir, "ca.crt")}
	for file, block := range map[string]*pem.Block{
		c.CertFile: {Type: "CERTIFICATE", Bytes: der}, c.KeyFile: {Type: "PRIVATE KEY", Bytes: keyDER}, c.CAFile: {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
	}
	return c
}

func TestOperatorsFiles(t *testing.T) {
	dirS, dirC := t.TempDir(), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New(1)
		ca := newAuthority(t)
		cfg := ca.write(t, dirS, 10, "s")
		cfg.Network, cfg.Name = n.Host("s").Start(), "s"
		server := transport(t, cfg)
		defer server.Close()
		l := listen(t, server)
		defer l.Close()
		cfg = ca.write(t, dirC, 11, "c")
		var clientClock clock.Shifted
		cfg.Network, cfg.Name, cfg.Clock = n.Host("c").Start(), "c", &clientClock
		client := transport(t, cfg)
		defer client.Close()
		serial := func() (int64, error) {
			conn, err := client.Dial(t.Context(), "s:18182", peertls.ProtoRaft)
			if err != nil {
				return 0, err
			}
			defer conn.Close()
			if _, err := io.ReadAll(conn); err != nil {
				return 0, err
			}
			return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.Int64(), nil
		}
		got, err := serial()
		require.NoError(t, err)
		require.Equal(t, int64(10), got)

		// For a wrong clock, a certificate is not valid yet or no longer valid.
		for _, by := range []time.Duration{-2 * time.Hour, 2 * time.Hour} {
			clientClock.Set(by)
			_, err = serial()
			require.ErrorIs(t, err, peertls.ErrNotMember)
		}
		clientClock.Set(0)

		// A half-written pair is not used; the complete one is.
		require.NoError(t, os.WriteFile(filepath.Join(dirS, "tls.crt"), []byte("half"), 0o600))
		time.Sleep(time.Minute)
		got, err = serial()
		require.NoError(t, err)
		require.Equal(t, int64(10), got)
		ca.write(t, dirS, 20, "s")
		time.Sleep(time.Minute)
		got, err = serial()
		require.NoError(t, err)
		require.Equal(t, int64(20), got)

		// Another host's certificate, and another authority's, are refused.
		ca.write(t, dirS, 30, "elsewhere")
		time.Sleep(time.Minute)
		_, err = serial()
		require.ErrorIs(t, err, peertls.ErrNotMember)
		newAuthority(t).write(t, dirS, 40, "s")
		time.Sleep(time.Minute)
		_, err = serial()
		require.ErrorIs(t, err, peertls.ErrNotMember)
	})
}

func TestBadConfigurationIsNamed(t *testing.T) {
	dir := t.TempDir()
	_, err := peertls.New(peertls.Config{Name: "a"})
	require.ErrorContains(t, err, "secret")
	_, err = peertls.New(peertls.Config{CertFile: filepath.Join(dir, "none.crt"), KeyFile: "k", CAFile: "c"})
	require.ErrorContains(t, err, "none.crt")
}
