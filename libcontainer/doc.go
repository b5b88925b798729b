// Package libcontainer starts processes in containers on Linux: with
// namespaces, control groups, a root file system and rights of their own. It
// knows nothing of images, names or networks; it knows descriptors, paths and
// numbers.
//
// # Use
//
// A [Launcher] is made once per process. It holds a sealed copy of the init
// binary (package libcontainer/cmd/berth-init), so that nothing a container does
// can reach the file on the host. [Launcher.Start] makes a container from a
// [Config] and runs its first process; [Launcher.Exec] runs another one in it.
// Both return a [Process], which is a child of the calling process: it is waited
// for with [Process.Wait]. Who starts often keeps a [Pool], in which half of each start
// is done ahead of time.
//
// A Config is plain data and can be kept as JSON. What is not data, descriptors
// and the control group, goes into [IO].
//
// # What a container is made of
//
// Nothing is implied: a Config without Mounts has no /proc, one without
// Namespaces shares those of the caller. [DefaultMounts], [DefaultMasked],
// [DefaultReadOnly] and [DefaultDevices] are the parts of the usual container,
// to be put together by the caller; a privileged container is one that leaves
// some out.
//
// # Promises
//
// The caller's threads are never left in a namespace or cgroup of a container.
// No mount of a container is ever visible on the host. A failed Start leaves
// nothing behind. The command inherits descriptors 0 to 2 and no others. Errors
// are [*StepError] and name the step that failed; callers branch on [ErrNotFound],
// [ErrNotExecutable], [ErrUser], [ErrConfig].
//
// It needs root, a /proc, and Linux 3.10 or later; newer kernels are used for what
// they do better, and each such use has a fallback that the tests force. Private
// user namespaces need 5.12 for volumes with mapped owners, 5.19 for layers.
package libcontainer
