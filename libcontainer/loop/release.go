package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Release frees the loop devices that show files below dir and would stay when
// their last user has gone: what a process leaves that ends while it attaches one.
// A device in use is free after its last user. It gives their paths.
//
// Nobody may be attaching files of dir meanwhile.
func Release(dir string) (freed []string, err error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(backing), strings.TrimSuffix(dir, "/")+"/") {
			continue // it went away, or is another's
		}
		path := "/dev/" + strings.Split(file, "/")[3]
		ok, err := release(path, strings.TrimSuffix(string(backing), "\n"))
		if ok {
			freed = append(freed, path)
		}
		errs = append(errs, err)
	}
	return freed, errors.Join(errs...)
}

func release(path, backing string) (bool, error) {
	dev, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	defer dev.Close()
	status, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if errors.Is(err, unix.ENXIO) || err == nil && status.Flags&unix.LO_FLAGS_AUTOCLEAR != 0 {
		return false, nil // free, or will be without us
	}
	if err == nil {
		err = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
	}
	if err != nil {
		return false, fmt.Errorf("free %s of %s: %w", path, backing, err)
	}
	return true, nil
}
