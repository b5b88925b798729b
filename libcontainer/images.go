package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/libcontainer/clock"
	"berth/libcontainer/initproc"
	"berth/libcontainer/loop"
	"berth/libcontainer/mount"
)

// maxImages is how many mounted images are kept.
const maxImages = 256

// images are the layers' images that are mounted, in no namespace and at no path,
// for the containers to come. One mount for all means that containers of an image
// share its files in memory, as they do where layers are directories, and that a
// launch mounts nothing but its overlay.
//
// An image goes when its file is deleted, of which the kernel tells: nothing is
// done while nothing happens. Overlays keep what they are made of.
type images struct {
	mu      sync.Mutex
	byPath  map[string]*image
	byWatch map[int32]*image
	clock   int64       // counts uses
	stacks  func() bool // once: overlay takes detached mounts as layers
	notify  *os.File    // inotify; nil before the first image
}

func newImages() *images { return &images{stacks: sync.OnceValue(mount.StacksDetached)} }

// image is a mounted image.
type image struct {
	path     string
	tree     *mount.Tree
	device   string // "/dev/loop7", which the mount keeps; empty: the file is mounted without
	dev, ino uint64
	watch    int32
	used     int64 // by the clock of images
	users    int   // launches under way
	gone     bool  // not in the maps any more
}

// take gives the images at paths, mounted for as long as the caller has not called
// the function that it gets with them. With loop each is on a loop device.
func (s *images) take(paths []string, loop bool) (taken []*image, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	release = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.release(taken)
	}
	for _, path := range paths {
		i, err := s.get(path, loop)
		if err != nil {
			s.release(taken)
			return nil, nil, err
		}
		s.clock++
		i.used = s.clock
		i.users++
		taken = append(taken, i)
	}
	s.trim()
	return taken, release, nil
}

func (s *images) release(taken []*image) {
	for _, i := range taken {
		if i.users--; i.users == 0 && i.gone {
			i.tree.Close()
		}
	}
}

// get finds or makes the mount of the file that is at path now.
func (s *images) get(path string, loop bool) (*image, error) {
	// Opened first: what is looked at is what is mounted, and no link, which whoever
	// unpacked the layer could have made.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &os.PathError{Op: "mount image", Path: path, Err: unix.ENOTBLK}
	}
	if i := s.byPath[path]; i != nil {
		if i.dev == st.Dev && i.ino == st.Ino && (i.device != "" || !loop) {
			return i, nil
		}
		s.drop(i)
	}
	i := &image{path: path, dev: st.Dev, ino: st.Ino, gone: true}
	if err := i.mount(fd, loop); err != nil {
		return nil, fmt.Errorf("mount image %s: %w", path, err)
	}
	if watch, err := s.observe(fd); err == nil { // else it goes with this launch
		i.watch, i.gone = watch, false
		s.byPath[path], s.byWatch[watch] = i, i
	}
	return i, nil
}

// mount mounts the image in the open file fd, on a loop device where the kernel
// mounts no files (before Linux 6.12, or built without) or the caller wants one.
func (i *image) mount(fd int, onLoop bool) (err error) {
	if !onLoop {
		if i.tree, err = mount.Image(fd); !errors.Is(err, unix.ENOTBLK) {
			return noEROFS(err)
		}
	}
	blockSize := loop.BlockSizeOf(fd)
	device, err := loop.Attach(fd, i.path, blockSize, loop.Options{})
	if errors.Is(err, loop.ErrNone) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return err
	}
	defer device.Close() // the mount keeps it
	i.device = device.Path
	if i.tree, err = mount.ImageOn(i.device); errors.Is(err, unix.EINVAL) && blockSize < os.Getpagesize() && !smallBlocks() {
		err = fmt.Errorf("%w: it was made on a newer kernel, with blocks of %d bytes, and Linux before 6.4 mounts blocks of a page only; start a newer kernel, or remove the image and pull it again on this one: %w",
			ErrUnsupported, blockSize, err)
	}
	return noEROFS(err)
}

// smallBlocks reports whether EROFS takes blocks smaller than a page. It is for words only: what can be mounted, trying tells.
func smallBlocks() bool {
	var u unix.Utsname
	var major, minor int
	if unix.Uname(&u) == nil {
		fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	}
	return major > 6 || major == 6 && minor >= 4
}

// noEROFS says what the answer to an unknown type of file system means.
func noEROFS(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: there is no EROFS (modprobe erofs): %w", ErrUnsupported, err)
	}
	return err
}

// drop forgets an image.
func (s *images) drop(i *image) {
	delete(s.byPath, i.path)
	delete(s.byWatch, i.watch)
	unix.InotifyRmWatch(int(s.notify.Fd()), uint32(i.watch))
	if i.gone = true; i.users == 0 {
		i.tree.Close()
	}
}

// trim drops the longest unused images that are too many.
func (s *images) trim() {
	for len(s.byPath) > maxImages {
		var oldest *image
		for _, i := range s.byPath {
			if i.users == 0 && (oldest == nil || i.used < oldest.used) {
				oldest = i
			}
		}
		if oldest == nil {
			return
		}
		s.drop(oldest)
	}
}

// observe has the kernel tell when the open file fd is deleted: its number of
// names is an attribute.
func (s *images) observe(fd int) (int32, error) {
	if s.notify == nil {
		notify, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return 0, err
		}
		s.notify = os.NewFile(uintptr(notify), "inotify")
		s.byPath, s.byWatch = map[string]*image{}, map[int32]*image{}
		go s.listen(s.notify)
	}
	watch, err := unix.InotifyAddWatch(int(s.notify.Fd()), "/proc/self/fd/"+strconv.Itoa(fd), unix.IN_ATTRIB)
	return int32(watch), err
}

func (s *images) listen(notify *os.File) {
	buf := make([]byte, 4096)
	for {
		n, err := notify.Read(buf)
		if err != nil {
			return // closed
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&buf[at]))
			s.changed(e.Wd, e.Mask)
			at += unix.SizeofInotifyEvent + int(e.Len)
		}
	}
}

// changed drops an image whose file is gone; all of them if the kernel has lost
// count of what happened.
func (s *images) changed(watch int32, mask uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if mask&unix.IN_Q_OVERFLOW != 0 {
		for _, i := range s.byPath {
			s.drop(i)
		}
		return
	}
	i := s.byWatch[watch]
	if i == nil {
		return
	}
	var st unix.Stat_t
	if err := unix.Lstat(i.path, &st); err != nil || st.Dev != i.dev || st.Ino != i.ino {
		s.drop(i)
	}
}

func (s *images) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.byPath {
		s.drop(i)
	}
	if s.notify != nil {
		s.notify.Close()
	}
}

// imageRoot makes the root of images. userns is -1 if owners are shown as they are.
func (p *plan) imageRoot(t *tracer, userns int) error {
	start := clock.Now()
	root := &p.setup.Root
	s := p.launcher.images
	staged := p.launcher.force&initproc.ForceStaged != 0 || !s.stacks()
	taken, release, err := s.take(root.Lower, staged || p.launcher.force&initproc.ForceLoop != 0)
	if err != nil {
		return &StepError{"mount images", unsupported(err)}
	}
	defer release()
	var tree *mount.Tree
	if staged {
		tree, err = p.stagedOverlay(taken, userns)
	} else {
		var fds []int
		for _, i := range taken {
			fds = append(fds, i.tree.FD())
		}
		tree, err = mount.ImageOverlay(root, fds, userns)
	}
	if err != nil {
		return &StepError{"mount overlay", unsupported(err)}
	}
	p.setup.RootFD = p.own(tree.FD())
	if t != nil {
		t.mark("mount overlay", start)
	}
	return nil
}

// stagedOverlay makes the overlay of images in a mount namespace that nobody else
// has and that is gone with its thread. The overlay keeps its layers.
func (p *plan) stagedOverlay(taken []*image, userns int) (tree *mount.Tree, err error) {
	var devices []string
	for _, i := range taken {
		devices = append(devices, i.device)
	}
	err = onNewThread(func() error {
		if err := privateMounts(); err != nil {
			return err
		}
		if userns >= 0 {
			if err := actAs(p.userns); err != nil {
				return err
			}
		}
		b := mount.NewBuilder(p.setup.Force&initproc.ForceMount != 0)
		defer b.Close()
		tree, err = b.DeviceOverlay(&p.setup.Root, devices, userns)
		return err
	})
	return tree, err
}

// onNewThread runs f on a thread that nothing else runs on and that ends with it,
// for what f changes about it.
func onNewThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread would not end. It is held here, so the next
			// goroutine has another.
			err := onNewThread(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}
