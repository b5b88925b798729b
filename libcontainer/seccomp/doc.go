// Package seccomp decides which system calls a container may make.
//
// A [Profile] is a list of rules over system calls by name, some of them
// bound to capabilities, to an architecture or to a kernel version. [Default]
// is the built-in one; [Parse] reads one in Docker's JSON format.
//
// [Profile.Compile] turns a profile into a classic BPF program for one
// [Target], which package filter loads. This is done by the daemon that
// starts containers, not in the container: a compiled program is plain bytes,
// and a [Cache] keeps one for each set of capabilities seen.
//
// # The program
//
//	architecture?           unknown: denied, whatever the profile says
//	  x32 bit?              amd64 only; the two ABIs share an architecture;
//	                        ENOSYS where the kernel has no x32
//	    number < or ≥ …?    binary search over ranges of equal verdict
//	      allow | deny | look at arguments
//
// The search takes some seven comparisons, where a chain of one comparison for
// each call takes hundreds. The kernel (5.11 and later) furthermore remembers
// the numbers that are allowed whatever their arguments and does not run the
// program for them at all, which works only as long as the path there loads
// nothing but architecture and number: arguments are loaded in the leaves.
//
// # Answers
//
// What a profile denies is an errno and never a killed process. Calls that
// are newer than every call the profile names are ENOSYS rather than EPERM, so
// that programs fall back to older calls, as they do on an older kernel.
package seccomp

//go:generate go run gen.go
