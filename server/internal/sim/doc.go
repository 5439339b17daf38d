// Package sim runs whole clusters inside one test: real nodes on simulated disks
// (which take time, and lose unsynced data), on a simulated network (delays,
// cuts, resets) and in virtual time (testing/synctest), while clients write and
// read, directly and through gateways, and a random schedule of overlapping
// faults is generated from a seed (faults_test.go).
//
// It checks the cluster's promises to its callers:
//
//   - every write that was acknowledged is seen by each later quorum read, at
//     every node: records, signatures, votes, lists of subjects;
//   - records that a quorum read has shown are shown by later ones, acknowledged
//     or not;
//   - a revoked key writes nothing after the time limit;
//   - without faults nearly every request succeeds;
//   - in the end every node by itself holds everything, all nodes hold the same,
//     no cursor is ahead of the records held, a rebuilt index equals the previous
//     one, and comparisons of members have found nothing;
//   - no member is refilled if nothing happened to its volumes.
//
// A seed reproduces its schedule; goroutines of one moment may still run in a
// different order. In the index only syncs take time: goleveldb holds mutexes
// while it reads, and virtual time does not advance while a goroutine waits for a
// mutex. For the same reason a lock of this project that is held during disk
// operations stops a simulation, which is how such locks are found.
//
// The simulation's assumptions about disks and networks are checked by the tests
// of package wal, and by the gate tests and faults on a real cluster.
// test/mutants checks that the simulation notices defects.
//
//	go test ./server/internal/sim -run TestFaults                  the default seeds
//	STEMEDB_SIM_SEEDS=5000 go test ./server/internal/sim ...        more of them
//	STEMEDB_SIM_FROM=5001 STEMEDB_SIM_SEEDS=500 go test ...         the next ones
//	STEMEDB_SIM_SEED=17 go test -v ./server/internal/sim ...        one, with its log
package sim
