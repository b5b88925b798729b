// Package safepath opens and makes paths below a root directory whose content
// is hostile.
//
// A container's root file system comes from an image, and while a container
// runs its processes rename things under our hands. Joining strings
// ("/roots/c1" + "/etc/passwd") hands control to whoever can place a symbolic
// link: the kernel resolves the link against the host's root. Every function
// here instead takes the root as a directory descriptor (O_PATH is enough, see
// [OpenRoot]) and a path inside it, and guarantees that the object it works on
// was reached without ever leaving that directory.
//
// # Two scopes
//
// [Open] and everything built on it treat the root as "/": absolute paths and
// absolute links start at the root, ".." at the root stays there. Images are
// full of absolute links (/var/run -> /run), so this is the scope for their
// content. [OpenBeneath] is for directories that have no business pointing
// outside: whatever would leave the root is EXDEV.
//
// Neither scope follows the magic links of procfs (/proc/self/exe,
// /proc/1/root, …): ELOOP.
//
// # Two ways
//
// On Linux 5.6 and later, openat2(2) does the resolution atomically in the
// kernel. Before that, and when a directory is being renamed so busily that
// openat2 keeps answering EAGAIN, a walk opens one component at a time with
// O_PATH|O_NOFOLLOW, reads links itself, and answers ".." from its own stack
// of descriptors; the walk never asks the kernel for "..", which is the one
// step by which a directory moved away could lead outside. Both ways follow
// at most 40 links, and a fuzz test holds them to the same answers.
//
// # Descriptors
//
// Descriptors are plain ints, because the small setup process that becomes the
// user's command links this package and does without package os. All are
// close-on-exec; the caller owns what is returned and never loses what it
// passed in. Errors are [*fs.PathError] around a [unix.Errno], so both
// errors.Is(err, unix.ELOOP) and errors.Is(err, fs.ErrNotExist) work.
package safepath
