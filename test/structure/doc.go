// Package structure holds the tests of the tree itself: which way imports
// point, what may touch the kernel, that packages and skipped tests say what
// they are, and that documents generated from the code are up to date. They
// need neither root nor a build tag. Every exception to a rule stands in a table
// beside it with its reason.
//
// After a change to what a document is generated from:
//
//	make docs
package structure
