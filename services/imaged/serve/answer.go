package serve

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"berth/internal/fault"
)

// The codes of the distribution specification.
const (
	blobUnknown         = "BLOB_UNKNOWN"
	uploadInvalid       = "BLOB_UPLOAD_INVALID"
	uploadUnknown       = "BLOB_UPLOAD_UNKNOWN"
	digestInvalid       = "DIGEST_INVALID"
	manifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	manifestInvalid     = "MANIFEST_INVALID"
	manifestUnknown     = "MANIFEST_UNKNOWN"
	nameInvalid         = "NAME_INVALID"
	nameUnknown         = "NAME_UNKNOWN"
	sizeInvalid         = "SIZE_INVALID"
	unauthorized        = "UNAUTHORIZED"
	denied              = "DENIED"
	unsupported         = "UNSUPPORTED"
	tooMany             = "TOOMANYREQUESTS"
)

// fail answers with an error. Its body is left out of answers to HEAD by net/http.
func (c *call) fail(status int, code, format string, args ...any) {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	c.w.text = fmt.Sprintf(format, args...)
	c.json(status, map[string][]item{"errors": {{code, c.w.text}}})
}

// failWith answers with an error of the parts below; code is what its usual kinds are called here.
func (c *call) failWith(err error, code string) {
	switch fault.KindOf(err) {
	case fault.NotFound:
		c.fail(http.StatusNotFound, code, "%v", err)
	case fault.InvalidArgument, fault.DataLoss, fault.Unimplemented:
		c.fail(http.StatusBadRequest, code, "%v", err)
	case fault.FailedPrecondition:
		c.fail(http.StatusBadRequest, code, "%v", err)
	case fault.Cancelled, fault.DeadlineExceeded:
		c.fail(http.StatusRequestTimeout, code, "%v", err)
	case fault.ResourceExhausted:
		status := http.StatusTooManyRequests
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			status = http.StatusInsufficientStorage
		}
		c.Log.Warn("refused for want of room", "repository", c.path, "error", err)
		c.fail(status, tooMany, "%s", roomText(status))
	default:
		c.Log.Error("request failed", "method", c.r.Method, "repository", c.path, "error", err)
		c.fail(http.StatusInternalServerError, unsupported, "the registry failed; its log says why")
	}
}

// roomText says of a shortage what a stranger may know.
func roomText(status int) string {
	if status == http.StatusInsufficientStorage {
		return "the registry's disk is full"
	}
	return "the registry takes no more at the moment"
}

func (c *call) json(status int, body any) {
	raw, err := json.Marshal(body)
	if err != nil {
		c.w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if c.w.Header().Get("Content-Type") == "" {
		c.w.Header().Set("Content-Type", "application/json")
	}
	c.w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	c.w.WriteHeader(status)
	c.w.Write(raw)
}

// log writes a line a request: what changes something at level info.
func (c *call) log(began time.Time) {
	level := c.Log.Debug
	if c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
		level = c.Log.Info
	}
	level("request", "method", c.r.Method, "path", c.r.URL.Path, "status", c.w.status, "user", c.user, "from", c.r.RemoteAddr,
		"duration", time.Since(began).Round(time.Millisecond).String(), "error", c.w.text)
}
