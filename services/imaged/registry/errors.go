package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"

	"berth/internal/fault"
)

// problem is a kind of failure with the word for it that programs may rely on.
type problem struct {
	kind   fault.Kind
	reason string
}

// Every error of this package is one of these, or a context's end. Its text is one complete
// sentence that names the image or the registry and holds no credentials; its hint is the
// next step.
var (
	malformed       = problem{fault.InvalidArgument, "REFERENCE_MALFORMED"}
	notFound        = problem{fault.NotFound, "REGISTRY_NOT_FOUND"}
	loginNeeded     = problem{fault.Unauthenticated, "REGISTRY_LOGIN_NEEDED"}
	loginRefused    = problem{fault.Unauthenticated, "REGISTRY_LOGIN_REFUSED"}
	denied          = problem{fault.PermissionDenied, "REGISTRY_DENIED"}
	unavailable     = problem{fault.Unavailable, "REGISTRY_UNAVAILABLE"}
	interrupted     = problem{fault.Unavailable, "DOWNLOAD_INTERRUPTED"}
	untrusted       = problem{fault.FailedPrecondition, "REGISTRY_TLS"}    // certificate or protocol not acceptable
	refused         = problem{fault.FailedPrecondition, "REGISTRY_UNSAFE"} // obeying the registry would leak or downgrade
	tooLarge        = problem{fault.ResourceExhausted, "REGISTRY_TOO_LARGE"}
	corrupt         = problem{fault.DataLoss, "REGISTRY_CORRUPT"} // digest, length or format is not what it has to be
	unsupported     = problem{fault.Unimplemented, "REGISTRY_UNSUPPORTED"}
	badConfig       = problem{fault.FailedPrecondition, "REGISTRY_BAD_CONFIG"}
	unreadableLocal = problem{fault.Internal, "PUSH_SOURCE_UNREADABLE"}
)

func (p problem) errorf(format string, args ...any) *fault.Error {
	return p.kind.Errorf(p.reason, format, args...)
}

// InterruptedError is returned by the reader of [Client.Blob] when the transfer broke off
// and asking again from Offset may succeed.
type InterruptedError struct {
	Offset int64 // of the next byte wanted, counted from the start of the blob
	Size   int64 // of the whole blob
	Err    error
}

func (e *InterruptedError) Error() string {
	return fmt.Sprintf("download interrupted at byte %d of %d: %v", e.Offset, e.Size, e.Err)
}

// Unwrap gives the error a reason of its own: Unavailable without one is how gRPC says that
// imaged itself is away.
func (e *InterruptedError) Unwrap() []error {
	return []error{interrupted.errorf("download interrupted").Hint("pull again: it goes on where it was"), e.Err}
}

func invalid(format string, args ...any) error {
	return malformed.errorf(format, args...)
}

// validDigest keeps anything but well-formed digests of known algorithms away from URLs.
func validDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return invalid("digest %q: %v", string(d), err)
	}
	return nil
}

// hopError is a connection that failed on the way of a redirect.
type hopError struct {
	host string
	err  error
}

func (e *hopError) Error() string { return e.err.Error() }
func (e *hopError) Unwrap() error { return e.err }

// errStalled is the cause with which a watch cancels its request.
var errStalled = errors.New("no progress")

// connectError describes a request that got no answer.
func (c *Client) connectError(ctx context.Context, r *request, err error) error {
	who := r.who
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errStalled) {
		return fmt.Errorf("connect to %s: %w", who, ctx.Err())
	}
	var own *fault.Error
	if errors.As(err, &own) {
		return err
	}
	var hop *hopError
	if errors.As(err, &hop) {
		who = "storage host " + r.outside(hop.host) + " of " + who
	}
	// *url.Error prints the URL, and a storage URL's query is as good as a password.
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	p := unavailable
	if isTLSError(err) {
		p = untrusted
	}
	what, hint := c.describe(r, err)
	e := p.errorf("connect to %s: %s", who, what)
	if hint != "" {
		e = e.Hint("%s", hint)
	}
	return e
}

// describe says in the user's words why a connection failed, and what may help.
func (c *Client) describe(r *request, err error) (what, hint string) {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		cert      x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		dns       *net.DNSError
		timeout   net.Error
	)
	switch {
	case errors.As(err, &authority):
		return "its certificate is signed by an unknown authority", c.whereCertsGo()
	case errors.As(err, &host):
		return "its certificate is for another host: " + r.outside(host.Error()), "check the registry's name"
	case errors.As(err, &cert) && cert.Reason == x509.Expired:
		return "its certificate has expired or is not yet valid", "check the registry's certificate and this machine's clock"
	case errors.As(err, &verify):
		return "its certificate is not acceptable: " + r.outside(verify.Err.Error()), "check the registry's certificate"
	case isTLSAlert(err):
		return "it broke off the TLS handshake: " + r.outside(err.Error()), "it may want a client certificate"
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return "it does not speak TLS", "if it is not meant to, list it under insecure_registries in the engine's configuration"
	case errors.Is(err, errStalled), errors.Is(err, context.Canceled):
		return fmt.Sprintf("no answer within %v", c.stall), "try again later"
	case errors.Is(err, errNotLoopback):
		return "its name leads off this machine", "check /etc/hosts"
	case errors.As(err, &dns) && dns.IsNotFound:
		return "no such host", "check the registry's name"
	case errors.As(err, &dns):
		return "its name cannot be looked up now", "check this machine's DNS"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused", "is it running?"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "no route to it", "check this machine's network"
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("no answer within %v", c.connect), "check the address, network and firewall"
	case isBrokenConnection(err):
		return "it closed the connection", "try again later"
	case strings.ContainsAny(err.Error(), `"`), strings.Contains(err.Error(), "malformed"):
		// net/http quotes what it could not read, which may be our own password coming
		// back.
		return "its answer is not proper HTTP", "check the address"
	}
	return r.outside(err.Error()), ""
}

func (c *Client) whereCertsGo() string {
	if c.certsDir == "" {
		return "add its CA file for this registry to the engine's configuration"
	}
	return "put its CA certificate into " + c.certsDir + "/HOST:PORT/ca.crt"
}

func isTLSError(err error) bool {
	var (
		verify *tls.CertificateVerificationError
		record tls.RecordHeaderError
	)
	return errors.As(err, &verify) || isTLSAlert(err) || errors.As(err, &record) ||
		errors.Is(err, http.ErrSchemeMismatch)
}

// isTLSAlert tells what the other side said before it hung up; crypto/tls has no type for
// it but this operation.
func isTLSAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// isBrokenConnection tells errors that a fresh connection may cure.
func isBrokenConnection(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		strings.Contains(err.Error(), "server closed idle connection") // net/http exports no name for it
}

// oneLine makes text from outside fit for one line of a terminal: no control characters,
// nothing longer than a sentence or two.
func oneLine(s string) string {
	const limit = 240
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd || (0x80 <= r && r < 0xa0) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if runes := []rune(s); len(runes) > limit {
		s = string(runes[:limit]) + "…"
	}
	return s
}
