package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// postgres is one server with synchronous_commit=on and all other durability
// settings at their defaults.
type postgres struct {
	proc *process
	pool *pgxpool.Pool
}

const (
	pgTable  = `CREATE TABLE claim (id bytea PRIMARY KEY, body bytea NOT NULL)`
	pgInsert = `INSERT INTO claim (id, body) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	pgMany   = `INSERT INTO claim (id, body) SELECT * FROM unnest($1::bytea[], $2::bytea[]) ON CONFLICT DO NOTHING`
)

func startPostgres(ctx context.Context, bin, dir string, port, clients int) (*postgres, error) {
	data := filepath.Join(dir, "postgres")
	attr, err := unprivileged(dir)
	if err != nil {
		return nil, err
	}
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", "bench", "--auth=trust", "-E", "UTF8", "--locale=C")
	initdb.SysProcAttr = attr
	initdb.Dir = dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	proc, err := startAs("postgres", dir, attr, nil, filepath.Join(bin, "postgres"),
		"-D", data, "-p", strconv.Itoa(port), "-k", dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "synchronous_commit=on",
		"-c", "max_connections="+strconv.Itoa(clients+20), "-c", "shared_buffers=512MB", "-c", "max_wal_size=4GB")
	if err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig(fmt.Sprintf("postgres://bench@127.0.0.1:%d/postgres?pool_max_conns=%d", port, clients))
	if err != nil {
		return nil, fmt.Errorf("configure pool: %w", err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		proc.stop(syscall.SIGINT)
		return nil, fmt.Errorf("connect to postgres: %w", err)
	}
	p := &postgres{proc: proc, pool: pool}
	if _, err := proc.await(ctx, 30*time.Second, func() error { return pool.Ping(ctx) }); err != nil {
		p.stop()
		return nil, err
	}
	if _, err := pool.Exec(ctx, pgTable); err != nil {
		p.stop()
		return nil, fmt.Errorf("create table: %w", err)
	}
	return p, nil
}

// unprivileged: PostgreSQL refuses to run as root, so as root it runs as the
// user that Debian's package created.
func unprivileged(dir string) (*syscall.SysProcAttr, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("find the user postgres (install Debian's postgresql): %w", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chmod(dir, 0o777); err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}

func (p *postgres) stop() {
	p.pool.Close()
	p.proc.stop(syscall.SIGINT)
}

func (p *postgres) insert(records *corpus) op {
	return func(ctx context.Context, _ int, seq int64) error {
		key, value := records.keyValue(seq)
		_, err := p.pool.Exec(ctx, pgInsert, []byte(key), []byte(value))
		return err
	}
}

func (p *postgres) insertMany(records *corpus, each int64) op {
	return func(ctx context.Context, _ int, seq int64) error {
		keys, values := make([][]byte, each), make([][]byte, each)
		for i := range each {
			k, v := records.keyValue(seq*each + i)
			keys[i], values[i] = []byte(k), []byte(v)
		}
		_, err := p.pool.Exec(ctx, pgMany, keys, values)
		return err
	}
}
