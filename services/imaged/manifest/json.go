package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxDepth is far more than any of the documents needs.
const maxDepth = 64

// Decode reads a JSON document into v, provided that it can be understood in one
// way only.
func Decode(raw []byte, v any) error {
	if err := unambiguous(raw); err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

// freeKeys hold maps whose keys are anybody's own words, where "Foo" and "foo"
// are two things.
var freeKeys = map[string]bool{
	"annotations": true, "labels": true, "exposedports": true, "volumes": true, "env": true,
}

// unambiguous makes sure that raw is one JSON value in which no object names a
// key twice. encoding/json takes the last of several, and any of the same
// spelling in another case; other parsers take the first, or only the exact
// one (CVE-2021-41190 and its kind).
func unambiguous(raw []byte) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := walk(d, false, 0); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("data behind the JSON document")
	}
	return nil
}

// walk reads one value. free: if it is an object, its keys are free words.
func walk(d *json.Decoder, free bool, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("JSON nested deeper than %d", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return err
	}
	switch t {
	case json.Delim('{'):
		return walkObject(d, free, depth)
	case json.Delim('['):
		for d.More() {
			if err := walk(d, false, depth+1); err != nil {
				return err
			}
		}
		_, err = d.Token()
	}
	return err
}

func walkObject(d *json.Decoder, free bool, depth int) error {
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		key := t.(string) // More and the decoder's own syntax check leave nothing else
		folded := strings.ToLower(key)
		if !free {
			key = folded
		}
		if seen[key] {
			return fmt.Errorf("the key %.40q occurs twice", t)
		}
		seen[key] = true
		if err := walk(d, freeKeys[folded] && !free, depth+1); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}
