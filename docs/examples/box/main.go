// Command box runs a command in a container over a directory, with nothing but
// libcontainer: no daemon, no image, no network beyond a loopback interface.
//
//	box BERTH-INIT ROOTFS COMMAND [ARG...]
//
// It exits with the command's status.
package main

import (
	"context"
	"fmt"
	"os"

	"berth/libcontainer"
	"berth/libcontainer/caps"
	"berth/libcontainer/cgroup"
	"berth/libcontainer/seccomp"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: box BERTH-INIT ROOTFS COMMAND [ARG...]")
		os.Exit(2)
	}
	code, err := box(context.Background(), os.Args[1], os.Args[2], os.Args[3:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "box:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// box runs args in a container over the directory rootfs and returns the exit
// status.
func box(ctx context.Context, initBinary, rootfs string, args []string) (int, error) {
	launcher, err := libcontainer.New(initBinary) // once for a process
	if err != nil {
		return 0, err
	}
	defer launcher.Close()

	group, release, err := limits(fmt.Sprintf("/box-%d", os.Getpid()))
	if err != nil {
		return 0, err
	}
	defer release()

	// The filter depends on the capabilities: some calls need one.
	target, err := seccomp.Host()
	if err != nil {
		return 0, err
	}
	target.Caps = caps.Default
	filter, err := seccomp.Default().Compile(target)
	if err != nil {
		return 0, err
	}
	config := &libcontainer.Config{
		Root:       libcontainer.Root{Bind: rootfs},
		Namespaces: libcontainer.PrivateNamespaces(),
		Hostname:   "box",
		Mounts:     libcontainer.DefaultMounts(libcontainer.DefaultShm),
		Devices:    libcontainer.DefaultDevices(),
		Masked:     libcontainer.DefaultMasked(),
		ReadOnly:   libcontainer.DefaultReadOnly(),
		Command: libcontainer.Command{
			Args:    args,
			Env:     []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
			Caps:    caps.Default,
			Seccomp: filter,
		},
	}
	process, err := launcher.Start(ctx, config, libcontainer.IO{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Cgroup: group,
	})
	if err != nil {
		return 0, err // a *libcontainer.StepError: "mount proc: permission denied"
	}
	defer process.Close()
	for _, warning := range process.Warnings {
		fmt.Fprintln(os.Stderr, "box: warning:", warning)
	}
	status, err := process.Wait()
	return status.Code, err
}

// limits makes a control group of 64 MiB, half a processor and 32 processes
// below path, in whatever layout the host has.
func limits(path string) (group *cgroup.Group, release func(), err error) {
	layout, err := cgroup.Detect()
	if err != nil {
		return nil, nil, err
	}
	parent, err := cgroup.OpenParent(layout, path)
	if err != nil {
		return nil, nil, err
	}
	group, err = parent.Create("one", cgroup.Resources{
		Memory: cgroup.Memory{Limit: 64 << 20},
		CPU:    cgroup.CPU{Quota: 50_000, Period: 100_000}, // microseconds
		Pids:   32,
	})
	if err != nil {
		parent.Delete()
		return nil, nil, err
	}
	return group, func() {
		if err := group.Delete(); err != nil {
			fmt.Fprintln(os.Stderr, "box:", err)
		}
		if err := parent.Delete(); err != nil {
			fmt.Fprintln(os.Stderr, "box:", err)
		}
	}, nil
}
