package safepath

import (
	"strings"

	"golang.org/x/sys/unix"
)

// walker resolves a path one component at a time.
//
// Its directories are all descriptors it opened itself with O_NOFOLLOW, each
// an entry of the one before, so no rename can make it read a link unawares
// or turn ".." into a way out.
type walker struct {
	request
	root  int
	stack []int // open directories below root, outermost first; owned
	links int   // symbolic links followed so far
}

// walkOnce resolves path from the root. EAGAIN means that a component changed
// its kind between two looks at it.
func walkOnce(root int, path string, r request) (int, error) {
	w := walker{request: r, root: root}
	defer w.toRoot()
	return w.open(path)
}

func (w *walker) open(path string) (int, error) {
	if err := w.absolute(path); err != nil {
		return -1, err
	}
	for {
		name, rest := next(path)
		last := strings.Trim(rest, "/") == ""
		switch name {
		case "", ".":
		case "..":
			if err := w.up(); err != nil {
				return -1, err
			}
		default:
			// "name/" asks for the directory behind name, links included.
			leaf := rest == ""
			fd, link, err := -1, "", error(nil)
			if leaf {
				fd, link, err = w.leaf(name)
			} else {
				link, err = w.down(name)
			}
			if err != nil {
				return -1, err
			}
			if link != "" {
				path = link + rest
				if err := w.follow(link); err != nil {
					return -1, err
				}
				continue
			}
			if leaf {
				return fd, nil
			}
		}
		if last {
			return w.here()
		}
		path = rest
	}
}

// next splits off the first component. What follows it keeps its slashes, so
// that a trailing one is not forgotten.
func next(path string) (name, rest string) {
	path = strings.TrimLeft(path, "/")
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}

// dir is the directory the walk stands in.
func (w *walker) dir() int {
	if n := len(w.stack); n > 0 {
		return w.stack[n-1]
	}
	return w.root
}

func (w *walker) toRoot() {
	for _, fd := range w.stack {
		unix.Close(fd)
	}
	w.stack = w.stack[:0]
}

// absolute takes the walk back to the root if path begins there.
func (w *walker) absolute(path string) error {
	if path[0] != '/' {
		return nil
	}
	if w.beneath {
		return unix.EXDEV
	}
	w.toRoot()
	return nil
}

func (w *walker) follow(link string) error {
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	return w.absolute(link)
}

// up takes one step back along the way we came.
func (w *walker) up() error {
	n := len(w.stack)
	if n == 0 {
		if w.beneath {
			return unix.EXDEV
		}
		return nil
	}
	unix.Close(w.stack[n-1])
	w.stack = w.stack[:n-1]
	return nil
}

// down enters the directory name, or returns the text of the link it is.
func (w *walker) down(name string) (link string, err error) {
	fd, err := w.peek(name)
	if err == unix.ENOENT && w.make != makeNothing {
		// EEXIST: somebody was faster, and what they made is looked at
		// like anything else.
		if err := unix.Mkdirat(w.dir(), name, w.dirMode); err != nil && err != unix.EEXIST {
			return "", err
		}
		fd, err = w.peek(name)
	}
	if err != nil {
		return "", err
	}
	switch kind, err := kindOf(fd); {
	case err != nil:
		unix.Close(fd)
		return "", err
	case kind == unix.S_IFLNK:
		defer unix.Close(fd)
		return readlink(fd)
	case kind != unix.S_IFDIR:
		unix.Close(fd)
		return "", unix.ENOTDIR
	}
	w.stack = append(w.stack, fd)
	return "", nil
}

// leaf opens the last component, or returns the text of the link it is if
// links are to be followed there.
func (w *walker) leaf(name string) (fd int, link string, err error) {
	const exclusive = unix.O_CREAT | unix.O_EXCL
	if w.flags&unix.O_NOFOLLOW != 0 || w.flags&exclusive == exclusive {
		fd, err = openat(w.dir(), name, w.flags|unix.O_NOFOLLOW, w.mode)
		return fd, "", err
	}
	look, err := w.peek(name)
	if err == unix.ENOENT {
		return w.create(name)
	}
	if err != nil {
		return -1, "", err
	}
	defer unix.Close(look)
	kind, err := kindOf(look)
	if err != nil {
		return -1, "", err
	}
	if kind == unix.S_IFLNK {
		link, err = readlink(look)
		return -1, link, err
	}
	fd, err = openat(w.dir(), name, w.flags|unix.O_NOFOLLOW, w.mode)
	return fd, "", lostRace(err)
}

// create makes the last component, if the request asks for it.
func (w *walker) create(name string) (int, string, error) {
	switch {
	case w.make == makeFile:
		// Only the name is wanted: made exclusively, then opened anew like
		// one that was there, by the next attempt.
		fd, err := openat(w.dir(), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, w.mode)
		if err == nil {
			unix.Close(fd)
		}
		if err == nil || err == unix.EEXIST {
			err = unix.EAGAIN
		}
		return -1, "", err
	case w.flags&unix.O_CREAT != 0:
		fd, err := openat(w.dir(), name, w.flags|unix.O_NOFOLLOW, w.mode)
		return fd, "", lostRace(err)
	}
	return -1, "", unix.ENOENT
}

// lostRace turns the error for a link, where there was none a moment ago, into
// the order to begin again.
func lostRace(err error) error {
	if err == unix.ELOOP {
		return unix.EAGAIN
	}
	return err
}

// here opens the directory the walk stands in.
func (w *walker) here() (int, error) {
	if w.flags&unix.O_CREAT != 0 {
		return -1, unix.EISDIR
	}
	return openat(w.dir(), ".", w.flags, 0)
}

func (w *walker) peek(name string) (int, error) {
	return openat(w.dir(), name, unix.O_PATH|unix.O_NOFOLLOW, 0)
}

// kindOf returns the S_IFMT bits of what fd refers to.
func kindOf(fd int) (uint32, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return st.Mode & unix.S_IFMT, err
}

// readlink returns the text of the link that fd (O_PATH|O_NOFOLLOW) refers
// to, never empty. Magic links are ELOOP, as with RESOLVE_NO_MAGICLINKS.
func readlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	text := string(buf[:n])
	if text == "" {
		return "", unix.ENOENT
	}
	magic, err := isMagic(fd, text)
	if err != nil {
		return "", err
	}
	if magic {
		return "", unix.ELOOP
	}
	return text, nil
}

// isMagic reports whether the link fd, which reads text, is one that the
// kernel would follow by reference instead of by text. There is no call to ask
// that, but only procfs has them, and what they read is an absolute path,
// "(unreachable)…", or "type:…" (proc_pid_fd(5)); the ordinary links there
// ("self", "self/mounts") are relative.
func isMagic(fd int, text string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false, err
	}
	return st.Type == unix.PROC_SUPER_MAGIC && (text[0] == '/' || strings.ContainsAny(text, ":(")), nil
}
