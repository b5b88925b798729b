// Package lifecycle takes containers through their lives: it creates, starts,
// stops and removes them, hears of their ends, and finds them again when execd
// comes back.
//
// It is the one place where state (package container), disk (records), processes
// (keeper, by way of the monitor), cgroups and events meet. What a caller waits
// for is done at once; what only tidies up is left to a janitor behind the reply.
package lifecycle
