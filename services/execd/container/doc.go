// Package container knows what containers there are, what they are called and
// which state each is in.
//
// A [Container] changes by [Container.Move] only, which asks one table whether
// its state allows the change, and makes a new [Info]. An Info is never changed
// once it can be seen, so that listing a thousand containers takes no lock of
// any of them and waits for nothing that is being done to one.
//
// The package does nothing to processes or files: see package lifecycle.
package container
