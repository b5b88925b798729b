package images

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	"berth/services/imaged/graph"

	"github.com/opencontainers/go-digest"
)

func put(b *journal.Batch, key string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", key, err)
	}
	b.Put(key, raw)
	return nil
}

// each decodes the records below prefix, in no order.
func each[T any](j *journal.Journal, prefix string, decode func([]byte) (T, error), f func(key string, value T) error) error {
	for key, raw := range j.Scan(prefix) {
		v, err := decode(raw)
		if err != nil {
			return fault.DataLoss.Errorf("BAD_RECORD", "record %s is damaged: %w", key, err)
		}
		if err := f(key[len(prefix):], v); err != nil {
			return err
		}
	}
	return nil
}

// A start decodes a record for each blob, layer, image and name. The functions below read what put writes of the usual
// ones, in a tenth of the time that encoding/json takes, and leave everything else to it.

func decodeBlob(raw []byte) (b Blob, err error) {
	s := scanner{text: raw}
	s.lit(`{"size":`)
	size := s.number()
	var diffID string
	if s.has(`,"diff_id":"`) {
		diffID = s.plain()
	}
	if s.lit(`}`); s.done() {
		return Blob{Size: size, DiffID: digest.Digest(diffID)}, nil
	}
	return b, json.Unmarshal(raw, &b)
}

func decodeLayer(raw []byte) (l graph.Layer, err error) {
	s := scanner{text: raw}
	s.lit(`{"name":"`)
	name := s.plain()
	s.lit(`,"bytes":`)
	size := s.number()
	s.lit(`,"entries":`)
	entries := s.number()
	if s.lit(`}`); s.done() {
		return graph.Layer{Name: name, Bytes: size, Entries: entries}, nil
	}
	return l, json.Unmarshal(raw, &l)
}

func decodeRef(raw []byte) (r Ref, err error) {
	s := scanner{text: raw}
	s.lit(`{"image":"`)
	image := s.plain()
	var target string
	if s.has(`,"target":"`) {
		target = s.plain()
	}
	var index string
	if s.has(`,"index":"`) {
		index = s.plain()
	}
	s.lit(`,"since":"`)
	since := s.time()
	if s.lit(`}`); s.done() {
		return Ref{Image: digest.Digest(image), Target: digest.Digest(target), Index: digest.Digest(index), Since: since}, nil
	}
	return r, json.Unmarshal(raw, &r)
}

func decodeImage(raw []byte) (i Image, err error) {
	s := scanner{text: raw}
	var fast Image
	s.lit(`{"id":"`)
	fast.ID = digest.Digest(s.plain())
	s.lit(`,"manifest":"`)
	fast.Manifest = digest.Digest(s.plain())
	s.lit(`,"media_type":"`)
	fast.MediaType = mediaType(s.plain())
	s.lit(`,"layers":[`)
	fast.Layers = make([]Layer, 0, bytes.Count(raw, []byte(`"blob":`)))
	for more := !s.has(`]`); more; more = !s.has(`]`) {
		if len(fast.Layers) > 0 {
			s.lit(`,`)
		}
		s.lit(`{"blob":"`)
		l := Layer{Blob: digest.Digest(s.plain())}
		s.lit(`,"diff_id":"`)
		l.DiffID = digest.Digest(s.plain())
		s.lit(`}`)
		fast.Layers = append(fast.Layers, l)
		if s.bad {
			break
		}
	}
	s.lit(`,"stored":"`)
	fast.Stored = s.time()
	if s.has(`,"summary":{`) {
		fast.Summary = &Summary{}
		if s.has(`"created":"`) {
			created := s.time()
			fast.Summary.Created = &created
		}
		s.lit(`}`)
	}
	if s.lit(`}`); s.done() {
		return fast, nil
	}
	return i, json.Unmarshal(raw, &i)
}

// mediaType gives one string for all records that have the same.
func mediaType(text string) string {
	for _, t := range []string{"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"} {
		if t == text {
			return t
		}
	}
	return text
}

// scanner reads JSON of which it is known how it goes on. What does not fit ends it.
type scanner struct {
	text []byte
	bad  bool
}

// has takes want, if the text goes on with it.
func (s *scanner) has(want string) bool {
	if s.bad || len(s.text) < len(want) || string(s.text[:len(want)]) != want {
		return false
	}
	s.text = s.text[len(want):]
	return true
}

func (s *scanner) lit(want string) {
	if !s.has(want) {
		s.bad = true
	}
}

func (s *scanner) done() bool { return !s.bad && len(s.text) == 0 }

// number takes a whole number that is not negative and has at most 18 digits.
func (s *scanner) number() (n int64) {
	at := 0
	for ; at < len(s.text) && at < 18 && s.text[at] >= '0' && s.text[at] <= '9'; at++ {
		n = 10*n + int64(s.text[at]-'0')
	}
	if at == 0 || at > 1 && s.text[0] == '0' {
		s.bad = true
	}
	s.text = s.text[at:]
	return n
}

// plain takes the rest of a string, with its quote, that stands for itself: ASCII without an escape.
func (s *scanner) plain() string {
	for at, c := range s.text {
		switch {
		case c == '"':
			text := string(s.text[:at])
			s.text = s.text[at+1:]
			return text
		case c < ' ' || c == '\\' || c >= 0x7f:
			s.bad = true
			return ""
		}
	}
	s.bad = true
	return ""
}

func (s *scanner) time() (t time.Time) {
	if t.UnmarshalText([]byte(s.plain())) != nil {
		s.bad = true
	}
	return t
}
