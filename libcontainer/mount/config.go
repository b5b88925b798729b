package mount

import "berth/libcontainer/internal/wire"

// A Mount is one mount of a container, as plain data.
//
// Type is "bind", or the name of a file system the container may have of its
// own (proc, sysfs, tmpfs, devpts, mqueue, …), or "cgroup", which stands for
// whatever shows the container its control groups on this host.
type Mount struct {
	Type        string
	Source      string      `json:",omitempty"` // bind: an absolute path on the host; it must exist
	Destination string      // absolute path in the container; missing directories are made
	Options     []string    `json:",omitempty"` // of the file system: "size=64m", "mode=1777"
	Attr        Attr        `json:",omitempty"`
	Recursive   bool        `json:",omitempty"` // bind: with all that is mounted below Source; Attr goes for all of it
	Propagation Propagation `json:",omitempty"`
	IDMap       bool        `json:",omitempty"` // bind: owners are shown through the container's id mappings (Linux 5.12)
}

// Root describes the root file system: an overlay if Lower is not empty, else
// the directory Bind.
type Root struct {
	Bind    string   `json:",omitempty"` // a directory on the host
	Lower   []string `json:",omitempty"` // layers, topmost first; at most 127 before Linux 6.5
	Images  bool     `json:",omitempty"` // each of Lower is a file with an EROFS image (Linux 5.4)
	Upper   string   `json:",omitempty"` // where changes go; none: the overlay is read-only
	Work    string   `json:",omitempty"` // an empty directory on the file system of Upper
	Options []string `json:",omitempty"` // more overlay options: "userxattr", "volatile", "index=off"
	Attr    Attr     `json:",omitempty"` // ReadOnly takes effect once every mountpoint has been made
	IDMap   bool     `json:",omitempty"` // owners are shown through the container's id mappings (overlay: Linux 5.19)
}

// A Device is a device node. Type is 'c', 'b' or 'p' (FIFO).
type Device struct {
	Path  string
	Type  rune
	Major uint32
	Minor uint32
	Mode  uint32 // permission bits
	UID   uint32 `json:",omitempty"`
	GID   uint32 `json:",omitempty"`
	// Source is the node on the host to bind where nodes cannot be made, in
	// user namespaces; "" is Path.
	Source string `json:",omitempty"`
}

// Encode appends m to a message.
func (m *Mount) Encode(e *wire.Encoder) {
	e.String(m.Type)
	e.String(m.Source)
	e.String(m.Destination)
	e.Strings(m.Options)
	e.Uint(uint64(m.Attr))
	e.Bool(m.Recursive)
	e.String(string(m.Propagation))
	e.Bool(m.IDMap)
}

// DecodeMount reads what Encode wrote.
func DecodeMount(d *wire.Decoder) Mount {
	return Mount{
		Type:        d.String(),
		Source:      d.String(),
		Destination: d.String(),
		Options:     d.Strings(),
		Attr:        Attr(d.Uint()),
		Recursive:   d.Bool(),
		Propagation: Propagation(d.String()),
		IDMap:       d.Bool(),
	}
}

// Encode appends r to a message.
func (r *Root) Encode(e *wire.Encoder) {
	e.String(r.Bind)
	e.Strings(r.Lower)
	e.Bool(r.Images)
	e.String(r.Upper)
	e.String(r.Work)
	e.Strings(r.Options)
	e.Uint(uint64(r.Attr))
	e.Bool(r.IDMap)
}

// DecodeRoot reads what Encode wrote.
func DecodeRoot(d *wire.Decoder) Root {
	return Root{
		Bind:    d.String(),
		Lower:   d.Strings(),
		Images:  d.Bool(),
		Upper:   d.String(),
		Work:    d.String(),
		Options: d.Strings(),
		Attr:    Attr(d.Uint()),
		IDMap:   d.Bool(),
	}
}

// Encode appends v to a message.
func (v *Device) Encode(e *wire.Encoder) {
	e.String(v.Path)
	e.String(v.Source)
	for _, n := range []uint32{uint32(v.Type), v.Major, v.Minor, v.Mode, v.UID, v.GID} {
		e.Uint(uint64(n))
	}
}

// DecodeDevice reads what Encode wrote.
func DecodeDevice(d *wire.Decoder) Device {
	v := Device{Path: d.String(), Source: d.String()}
	v.Type = rune(d.Uint())
	for _, p := range []*uint32{&v.Major, &v.Minor, &v.Mode, &v.UID, &v.GID} {
		*p = uint32(d.Uint())
	}
	return v
}
