// Package sim runs whole clusters inside one test: real nodes on simulated
// disks (which take time, and lose what was not synced), on a simulated network
// (delays, cuts, resets) and in virtual time (testing/synctest), while clients
// write and read, directly and through gateways, and a schedule of faults that
// overlap is drawn from a seed (faults_test.go).
//
// What it checks is what the cluster promises its callers:
//
//   - every write that was acknowledged is seen by each later quorum read, at
//     every node: records, signatures, votes, lists of subjects;
//   - whatever a quorum read has shown, later ones show, acknowledged or not;
//   - a key that was revoked writes nothing once the bound has passed;
//   - without faults nearly every request is answered as asked;
//   - in the end every node alone holds everything, all nodes hold the same, a
//     cursor vouches for nothing that is not held, an index that is made anew says
//     what the one before said, and comparison of members has found nothing;
//   - no member is refilled to whose volumes nothing happened.
//
// A seed reproduces its schedule; goroutines of one moment may still run in
// another order. Of the index only syncs take time: goleveldb holds mutexes while
// it reads, and virtual time stands still while a goroutine waits for a mutex. For
// the same reason a lock of our own that is held over disk operations stops a
// simulation, which is how such locks are found.
//
// What the simulation assumes of disks and networks is checked by the tests of
// package wal, by the gate tests on a real cluster, and by faults there. Whether
// it would notice a defect is checked by test/mutants.
//
//	go test ./server/internal/sim -run TestFaults                  the default seeds
//	STEMEDB_SIM_SEEDS=5000 go test ./server/internal/sim ...        more of them
//	STEMEDB_SIM_FROM=5001 STEMEDB_SIM_SEEDS=500 go test ...         the next ones
//	STEMEDB_SIM_SEED=17 go test -v ./server/internal/sim ...        one, with its log
package sim
