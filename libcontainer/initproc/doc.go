// Package initproc is the process that becomes a container: it is started in
// new namespaces with all privileges, makes a small world around itself, gives
// the privileges up and turns into the user's command by execve(2).
//
//	launcher                                  init
//	clone into namespaces and cgroups ──────► execve of the sealed init binary
//	Setup ──────────────────────────────────► undumpable; every descriptor above 2 close-on-exec
//	                                          enter the namespaces of others, make the rest
//	                                          root file system, /proc, /sys, /dev, volumes, masks
//	                                          pivot_root, detach the host's tree
//	                                          hostname, sysctls, limits, terminal
//	                                          user, capabilities, seccomp
//	Report, with the terminal's master  ◄──── just before execve
//	end of stream: the command runs     ◄──── the socket is close-on-exec
//	  or a second Report: execve failed ◄────
//
// With Command.Init it turns into a process 1 that stays, with the command as its
// child: see resident.go.
//
// Everything of the launcher's that init holds is close-on-exec from its first
// instruction on, so what the command inherits is descriptors 0 to 2 and nothing
// else. Everything privileged that names an object by path happens before the
// container's own mounts exist, or goes through package safepath, or through a
// descriptor whose file system was verified.
//
// The binary is small because it is started once per container: no fmt, no os,
// no encoding/json, no net. It runs on one locked thread; the other threads of
// the Go runtime vanish at execve.
package initproc
