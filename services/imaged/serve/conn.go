package serve

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// A client that neither sends nor takes a byte for a while is cut off. http.Server's own timeouts are for whole requests,
// and a layer may take hours; so the deadline of the connection moves on with each piece.

// writer is a http.ResponseWriter whose client must make progress.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
	status  int
	text    string // of the error, for the log
}

func newWriter(w http.ResponseWriter, stall time.Duration) *writer {
	return &writer{ResponseWriter: w, control: http.NewResponseController(w), stall: stall}
}

func (w *writer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	w.ok()
	w.control.SetWriteDeadline(time.Now().Add(w.stall))
	return w.ResponseWriter.Write(p)
}

func (w *writer) ok() {
	if w.status == 0 {
		w.status = http.StatusOK
	}
}

// finish gives time for what the server itself still writes.
func (w *writer) finish() {
	w.ok()
	w.control.SetWriteDeadline(time.Now().Add(w.stall))
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// body is a request's body whose client must make progress.
func (w *writer) body(b io.ReadCloser) io.ReadCloser { return &body{ReadCloser: b, w: w} }

type body struct {
	io.ReadCloser
	w *writer
}

func (b *body) Read(p []byte) (int, error) {
	b.w.control.SetReadDeadline(time.Now().Add(b.w.stall))
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		// The server goes on reading to notice a client that leaves.
		b.w.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// errTooLong is a body of more bytes than there may be.
var errTooLong = errors.New("request is too long")

// readAll reads a body of at most limit bytes.
func readAll(r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, errTooLong
	}
	raw, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = errTooLong
	}
	return raw, err
}
