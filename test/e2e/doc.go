// Package e2e holds the gate tests: a release installed by Helm on a real
// three-node Kubernetes, real clients inside it, and faults while they work.
//
// They run on the cluster that STEMEDB_E2E_KUBECONFIG names and on no other.
// `make test` and `make gate` bring that cluster up and set the variables;
// without them the tests are skipped, loudly. TestGate1, which measures, has the
// cluster to itself; the others run side by side after it.
package e2e
