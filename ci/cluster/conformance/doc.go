// Package conformance holds the cluster providers k3d and kind to those
// projects' own code: their configuration files are read and validated by it,
// and the commands that the providers run are parsed by it. The package is a
// separate module because of those projects' dependencies.
package conformance
