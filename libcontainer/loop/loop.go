// Package loop attaches files to loop devices (loop(4)), read-only and in such a
// way that a device is free again when nobody uses it any more, however its users
// ended.
package loop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNone is the error of a host without loop devices.
var ErrNone = errors.New("the kernel has no loop devices (modprobe loop)")

// attempts is how often a free device is asked for. Between the kernel's answer and
// the use of it others may take the device, and each attempt that fails so is
// somebody else's success.
const attempts = 64

// A Device is a loop device that shows a file. Mounted or otherwise open it stays
// attached after Close; after its last user it is free.
type Device struct {
	Path string // "/dev/loop7"
	file *os.File
}

// Close lets go of the device.
func (d *Device) Close() error { return d.file.Close() }

// Options are for tests.
type Options struct {
	// Old uses the calls of kernels before 5.8, which lack LOOP_CONFIGURE.
	Old bool
	// between is called while a device has its file and not yet its flags.
	between func()
}

// Attach shows the open file fd, of which name says where it came from to those who
// list devices. Sectors have blockSize bytes: 512, 1024, 2048 or 4096. Reads go past
// the page cache of the file where its file system allows for it, so that nothing is
// in memory twice.
func Attach(fd int, name string, blockSize int, o Options) (*Device, error) {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, missing(&os.PathError{Op: "open", Path: "/dev/loop-control", Err: err})
	}
	defer unix.Close(control)
	for try := range attempts {
		d, err := attachFree(control, fd, name, blockSize, o)
		if !errors.Is(err, unix.EBUSY) {
			return d, err
		}
		// Others look for one as well: who waits for different times does not meet them again.
		time.Sleep(time.Duration(rand.IntN(200*(try+1))) * time.Microsecond)
	}
	return nil, fmt.Errorf("attach loop device: others took %d free ones: %w", attempts, unix.EBUSY)
}

func missing(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("%w: %w", ErrNone, err)
	}
	return err
}

func attachFree(control, fd int, name string, blockSize int, o Options) (*Device, error) {
	number, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, os.NewSyscallError("find a free loop device", err)
	}
	d := &Device{Path: "/dev/loop" + strconv.Itoa(number)}
	// Where /dev is not the kernel's own, udev makes the node after the device.
	for wait := time.Millisecond; ; wait *= 2 {
		d.file, err = os.OpenFile(d.Path, os.O_RDONLY, 0)
		if err == nil || wait > 100*time.Millisecond || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENXIO) {
			break
		}
		time.Sleep(wait)
	}
	if err != nil {
		return nil, missing(err)
	}
	if err := d.attach(fd, name, blockSize, o); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Device) attach(fd int, name string, blockSize int, o Options) error {
	// All at once (5.8): there is no moment at which a device has a file and does not
	// let go of it by itself.
	config := unix.LoopConfig{Fd: uint32(fd), Size: uint32(blockSize), Info: info(name)}
	config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	err := error(unix.EINVAL)
	if !o.Old {
		err = unix.IoctlLoopConfigure(int(d.file.Fd()), &config)
	}
	if err == unix.EINVAL || err == unix.ENOTTY || err == unix.ENOSYS {
		err = d.attachOld(fd, name, blockSize, o)
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", d.Path, err)
	}
	return nil
}

// attachOld takes several calls. Release finds what a process that ended between
// them has left.
func (d *Device) attachOld(fd int, name string, blockSize int, o Options) error {
	dev := int(d.file.Fd())
	if err := unix.IoctlSetInt(dev, unix.LOOP_SET_FD, fd); err != nil {
		return err
	}
	if o.between != nil {
		o.between()
	}
	status := info(name)
	if err := unix.IoctlLoopSetStatus64(dev, &status); err != nil {
		unix.IoctlSetInt(dev, unix.LOOP_CLR_FD, 0)
		return err
	}
	// Both are improvements that old kernels or file systems may not have.
	if blockSize != 512 {
		unix.IoctlSetInt(dev, unix.LOOP_SET_BLOCK_SIZE, blockSize) // 4.14
	}
	unix.IoctlSetInt(dev, unix.LOOP_SET_DIRECT_IO, 1) // 4.4
	return nil
}

func info(name string) unix.LoopInfo64 {
	i := unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}
	copy(i.File_name[:len(i.File_name)-1], name)
	return i
}

// Direct reports whether reads of the device go past the page cache of its file.
func (d *Device) Direct() (bool, error) {
	status, err := unix.IoctlLoopGetStatus64(int(d.file.Fd()))
	if err != nil {
		return false, os.NewSyscallError("read state of loop device", err)
	}
	return status.Flags&unix.LO_FLAGS_DIRECT_IO != 0, nil
}

// BlockSizeOf is the size of blocks of the EROFS file system in the open file fd, as
// a loop device can have them: reading in smaller units would be refused by
// disks that have none.
func BlockSizeOf(fd int) int {
	var super [16]byte
	const magic = 0xE0F5E1E2
	if n, err := unix.Pread(fd, super[:], 1024); err != nil || n < len(super) || binary.LittleEndian.Uint32(super[:]) != magic {
		return 512
	}
	return 1 << min(max(int(super[12]), 9), 12)
}
