package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// etcd is a single member with its default durability: every put is in the
// log and synced before it is answered.
type etcd struct {
	proc *process
	// clients have one connection each, like clients on different machines and
	// like the clients of the other systems here; shared is one connection for
	// all, which saves system calls on both sides.
	clients []*clientv3.Client
	shared  *clientv3.Client
}

func startEtcd(ctx context.Context, binary, dir string, port, clients int) (*etcd, error) {
	url := "http://127.0.0.1:" + strconv.Itoa(port)
	peer := "http://127.0.0.1:" + strconv.Itoa(port+1)
	proc, err := start("etcd", dir, nil, binary,
		"--data-dir", filepath.Join(dir, "etcd"), "--log-level", "error",
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--initial-cluster", "default="+peer, "--quota-backend-bytes", "8589934592")
	if err != nil {
		return nil, err
	}
	if _, err := proc.await(ctx, 30*time.Second, httpOK(ctx, http.DefaultClient, url+"/health")); err != nil {
		proc.stop(syscall.SIGKILL)
		return nil, err
	}
	e := &etcd{proc: proc}
	for range clients + 1 {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			e.stop()
			return nil, fmt.Errorf("connect to etcd: %w", err)
		}
		e.clients = append(e.clients, client)
	}
	e.shared, e.clients = e.clients[clients], e.clients[:clients]
	return e, nil
}

func (e *etcd) stop() {
	for _, client := range append(e.clients, e.shared) {
		if client != nil {
			_ = client.Close()
		}
	}
	e.proc.stop(syscall.SIGTERM)
}

// put writes one value of a record's size under a new random-looking key, each
// client on its own connection.
func (e *etcd) put(records *corpus) op {
	return func(ctx context.Context, client int, seq int64) error {
		key, value := records.keyValue(seq)
		_, err := e.clients[client].Put(ctx, key, value)
		return err
	}
}

// putShared is put with all clients on one connection.
func (e *etcd) putShared(records *corpus) op {
	return func(ctx context.Context, _ int, seq int64) error {
		key, value := records.keyValue(seq)
		_, err := e.shared.Put(ctx, key, value)
		return err
	}
}

// txn writes each records in one transaction (etcd allows 128 operations).
func (e *etcd) txn(records *corpus, each int64) op {
	return func(ctx context.Context, client int, seq int64) error {
		ops := make([]clientv3.Op, 0, each)
		for i := range each {
			key, value := records.keyValue(seq*each + i)
			ops = append(ops, clientv3.OpPut(key, value))
		}
		_, err := e.clients[client].Txn(ctx).Then(ops...).Commit()
		return err
	}
}
