// Package cgroup puts limits on groups of processes, on cgroup v1, on cgroup v2 and on the mixture of both,
// behind one type.
//
// The kernel shows control groups as directories. In v1 every controller (memory, cpu, ...) or set of
// co-mounted controllers has a tree of its own, and a process sits in one directory of each; in v2 there is one
// tree for all. A "hybrid" host has v1 trees for the controllers and, beside them, a v2 tree with few or none.
// [Detect] finds out, [OpenParent] makes the directory all groups of an engine live under, and
// [Parent.Create] makes a [Group] below it: the same name in every tree.
//
// # Getting a process into a group
//
// Writing a pid to cgroup.procs waits for an RCU grace period, about 9 ms. Two faster ways:
//
//   - v1: a thread writes 0 to each `tasks` file, then forks; the child is born inside. [Group.Enter] does that
//     for the calling thread, [Group.LeaveTo] brings it back. 0.3 ms for nine trees.
//   - v2: clone3 with CLONE_INTO_CGROUP (Linux 5.7) and the descriptor of [Group.FD].
//
// A launcher does both, in this order, and need not know which host it is on: Enter does nothing on pure v2,
// and FD is -1 on pure v1. [Group.AddProcess] is the slow way for all other cases. The thread need not be back
// before the child is used: LeaveTo can wait, and a thread that ends has left as well.
//
// # What it does not do
//
// It speaks to no systemd over D-Bus and moves no process it was not given. It writes only below the parent
// path, with one exception the kernel asks for: on v2 a controller must be switched on in the
// cgroup.subtree_control of each ancestor.
//
// Sources: Documentation/admin-guide/cgroup-v1/*.rst and cgroup-v2.rst of the kernel, cgroups(7).
package cgroup
