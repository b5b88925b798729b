package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth/libcontainer/netlink"
)

// ErrUnavailable is returned when no server answers on the socket.
var ErrUnavailable = errors.New("no server for network namespaces")

// Client asks a [Server] for namespaces. It connects when first used and again
// whenever the server comes back.
type Client struct {
	path string
	lost func()

	mu   sync.Mutex // one request at a time
	link *link      // nil: not connected
}

// link is one connection. A goroutine reads it at all times, so that the
// server's death is noticed when it happens and not with the next request.
type link struct {
	conn    *net.UnixConn
	replies chan reply // closed when the server is gone
}

type reply struct {
	kind byte
	text string
	fds  []int
}

// NewClient returns a client of the server at path. When the server goes away,
// and with it every namespace that no process was in, lost is called on a
// goroutine of its own.
func NewClient(path string, lost func()) *Client {
	return &Client{path: path, lost: lost}
}

// Namespace is a namespace in reach: File names it to the kernel, Conn
// configures it. Both belong to the holder.
type Namespace struct {
	ID   string
	File *os.File
	Conn *netlink.Conn
}

// Close closes both descriptors; the server's own keeps the namespace alive.
func (n *Namespace) Close() error {
	return errors.Join(n.File.Close(), n.Conn.Close())
}

// New has a namespace made under id, which is new to the server.
func (c *Client) New(ctx context.Context, id string) (*Namespace, error) {
	list, err := c.NewBatch(ctx, []string{id})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// NewBatch has a namespace made under each of the ids, at most [MaxNew], all or
// none.
func (c *Client) NewBatch(ctx context.Context, ids []string) ([]*Namespace, error) {
	return c.obtain(ctx, opNew, ids)
}

// Get reaches a namespace the server already holds. The error unwraps to
// os.ErrNotExist if it does not.
func (c *Client) Get(ctx context.Context, id string) (*Namespace, error) {
	list, err := c.obtain(ctx, opGet, []string{id})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// Drop has the server let go of the namespaces.
func (c *Client) Drop(ctx context.Context, ids ...string) error {
	const perPacket = maxPacket/65 - 1 // ids have at most 64 bytes
	for len(ids) > 0 {
		n := min(len(ids), perPacket)
		if _, err := c.request(ctx, opDrop, strings.Join(ids[:n], "\n")); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// List returns the ids of all namespaces the server holds.
func (c *Client) List(ctx context.Context) ([]string, error) {
	r, err := c.request(ctx, opList, "")
	if err != nil {
		return nil, err
	}
	return strings.Fields(r.text), nil
}

// Close hangs up. Namespaces stay with the server.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil {
		return nil
	}
	err := c.link.conn.Close()
	c.link = nil
	return err
}

func (c *Client) obtain(ctx context.Context, op byte, ids []string) ([]*Namespace, error) {
	r, err := c.request(ctx, op, strings.Join(ids, "\n"))
	if err != nil {
		return nil, err
	}
	if len(r.fds) != 2*len(ids) {
		closeAll(r.fds)
		return nil, fmt.Errorf("network namespace %s: %d descriptors came with it, want %d", strings.Join(ids, ", "), len(r.fds), 2*len(ids))
	}
	list := make([]*Namespace, len(ids))
	for i, id := range ids {
		list[i] = &Namespace{id, os.NewFile(uintptr(r.fds[2*i]), "netns:"+id), netlink.NewConn(r.fds[2*i+1])}
	}
	return list, nil
}

// request sends one request and collects its answer. Once it is sent the answer
// is awaited whatever ctx says, but for the server's death: the server works on
// one request at a time and never blocks for long, and an answer nobody reads
// would be taken for that of the next request.
func (c *Client) request(ctx context.Context, op byte, arg string) (reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return reply{}, err
	}
	if err := c.connect(ctx); err != nil {
		return reply{}, err
	}
	if err := send(c.link.conn, op, arg); err != nil {
		c.disconnect()
		return reply{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	var whole reply
	for r := range c.link.replies {
		whole.kind = r.kind
		whole.text += r.text
		whole.fds = append(whole.fds, r.fds...)
		if r.kind != replyMore {
			return whole, whole.failure()
		}
	}
	closeAll(whole.fds)
	c.disconnect()
	return reply{}, fmt.Errorf("%w: it went away during a request", ErrUnavailable)
}

func (r reply) failure() error {
	if r.kind == replyOK {
		return nil
	}
	closeAll(r.fds)
	if r.kind == replyUnknown {
		return fmt.Errorf("%s: %w", r.text, os.ErrNotExist)
	}
	return errors.New(r.text)
}

// connect makes sure there is a live link.
func (c *Client) connect(ctx context.Context) error {
	if c.link != nil {
		select {
		case <-c.link.replies: // nothing is asked, so this can only be its end
			c.disconnect()
		default:
			return nil
		}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", c.path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	l := &link{conn.(*net.UnixConn), make(chan reply)}
	c.link = l
	go func() {
		l.read()
		if c.lost != nil {
			c.lost()
		}
	}()
	return nil
}

func (c *Client) disconnect() {
	if c.link != nil {
		c.link.conn.Close()
		c.link = nil
	}
}

// read passes on packets until the connection ends.
func (l *link) read() {
	defer close(l.replies)
	buf := make([]byte, maxPacket)
	oob := make([]byte, unix.CmsgSpace(2*MaxNew*4))
	for {
		n, oobn, _, _, err := l.conn.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			return
		}
		l.replies <- reply{buf[0], string(buf[1:n]), rights(oob[:oobn])}
	}
}

// rights returns the descriptors in a control message; Go's reader has already
// made them close-on-exec.
func rights(oob []byte) []int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for _, m := range messages {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
