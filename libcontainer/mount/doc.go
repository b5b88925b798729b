// Package mount builds mounts out of sight and attaches them when they are
// complete.
//
// Since Linux 5.2 a mount can exist as a mere descriptor: fsopen(2) makes a
// file system, open_tree(2) copies a mount, mount_setattr(2) (5.12) sets its
// flags, and move_mount(2) attaches the finished thing to a directory that is
// named by a descriptor as well. No table on the host ever shows a container's
// mount, nothing half-configured is ever visible, and no path is looked up
// twice. A [Tree] is such a mount.
//
// Kernels before 5.12 get the same property by other means: a private tmpfs
// serves as the staging place, mount(2) makes and adjusts the mount there,
// where nobody else can reach, and MS_MOVE attaches it to
// /proc/self/fd/TARGET. A [Builder] decides which way to go; callers cannot
// tell the difference.
//
// A Builder works in the mount namespace of the calling thread and, for the
// old way, changes it. Use it only in a namespace of your own, with private
// propagation.
//
// The package also holds the plain data that describes a container's mounts:
// [Mount], [Root], [Device]. It is linked into the small setup process and
// therefore does without package fmt.
package mount
