// Package sim runs whole clusters inside one test: real nodes on simulated
// disks (which lose what was not synced), on a simulated network (delays, cuts,
// resets) and in virtual time (testing/synctest), while clients write and read
// and a schedule of faults is drawn from a seed.
//
// What it checks is what the cluster promises its callers: every write that was
// acknowledged is seen by each later quorum read, whoever is asked, and in the
// end every node alone holds all of them.
//
// A seed reproduces its schedule; goroutines of one moment may still run in
// another order. What it assumes of disks and networks is checked by the tests
// of package wal, by the gate tests on a real cluster, and by faults there.
//
//	go test ./server/internal/sim -run TestFaults                  the default seeds
//	STEMEDB_SIM_SEEDS=5000 go test ./server/internal/sim ...        more of them
//	STEMEDB_SIM_SEED=17 go test -v ./server/internal/sim ...        one, with its log
package sim
