package libcontainer_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"berth/libcontainer"
	"berth/libcontainer/caps"
	"berth/libcontainer/mount"
)

// A container with the usual isolation, over a root file system that holds nothing
// but busybox.
func Example() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	if err := prepare(dir); err != nil {
		fmt.Println(err)
		return
	}

	launcher, err := libcontainer.New(filepath.Join(dir, "berth-init"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer launcher.Close()

	config := &libcontainer.Config{
		Root:       libcontainer.Root{Bind: filepath.Join(dir, "root"), Attr: mount.NoDev},
		Namespaces: libcontainer.PrivateNamespaces(),
		Hostname:   "example",
		Masked:     libcontainer.DefaultMasked(),
		ReadOnly:   libcontainer.DefaultReadOnly(),
		Devices:    libcontainer.DefaultDevices(),
		Command: libcontainer.Command{
			Args: []string{"/bin/sh", "-c", "echo process $$ of $(hostname); exit 3"},
			Caps: caps.Default,
		},
	}
	for _, m := range libcontainer.DefaultMounts(libcontainer.DefaultShm) {
		if m.Type != "cgroup" { // there is none in this example
			config.Mounts = append(config.Mounts, m)
		}
	}
	process, err := launcher.Start(context.Background(), config, libcontainer.IO{Stdout: os.Stdout})
	if err != nil {
		fmt.Println(err) // such as "mount proc: permission denied"
		return
	}
	defer process.Close()
	status, err := process.Wait()
	fmt.Println("exit status", status.Code, err)
	// Output:
	// process 1 of example
	// exit status 3 <nil>
}

// prepare builds the init binary and makes a root file system.
func prepare(dir string) error {
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "berth-init"), "berth/libcontainer/cmd/berth-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := build.Run(); err != nil {
		return err
	}
	bin := filepath.Join(dir, "root/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	if err := exec.Command("cp", busybox, filepath.Join(bin, "sh")).Run(); err != nil {
		return err
	}
	return os.Symlink("sh", filepath.Join(bin, "hostname"))
}
