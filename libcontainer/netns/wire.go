package netns

import "net"

// The first byte of a packet says what it is; see the package comment.
const (
	opNew  = 'N'
	opGet  = 'G'
	opDrop = 'D'
	opList = 'L'

	replyOK      = 'k'
	replyMore    = 'm'
	replyUnknown = 'n'
	replyError   = 'e'
)

// MaxNew bounds the namespaces made by one request: the kernel takes 253
// descriptors a message (SCM_MAX_FD), and there are two for each.
const MaxNew = 64

// maxPacket bounds a packet, well below the default socket buffer (212,992 B).
const maxPacket = 32 << 10

func send(conn *net.UnixConn, kind byte, text string) error {
	_, err := conn.Write(append([]byte{kind}, text...))
	return err
}

// validID reports whether id may name a namespace: 1 to 64 letters, digits,
// dashes, dots and underscores.
func validID(id string) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}
