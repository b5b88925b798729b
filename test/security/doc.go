// Package security holds the end-to-end half of the security regression suite: each test is named after its row and
// attacks a whole engine from inside a container, from an image, or from another user of the host. What a single
// package can prove is proven there. The tests carry the build tag e2e.
package security
