// Package faults breaks the engine in every way its design promises to survive: daemons killed at each fault point, the
// monitor killed, backends stopped, clients gone, power cut, disks full. All of it from outside: real programs, the CLI
// and the gRPC API, signals. The tests carry the build tag e2e; `make test-e2e` runs them in their short form,
// `make test-powercut` the long one of the power cuts.
package faults
