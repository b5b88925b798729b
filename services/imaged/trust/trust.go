// Package trust decides whether an image may be pulled, by who signed it.
//
// Rules say so by repository: whatever may be pulled, nothing, or what a signature by one of some public keys vouches
// for. Signatures are in the format of cosign's "simple signing": a small JSON document, the payload, says of which
// repository and digest it speaks, and is signed as it stands. They lie in the image's own repository, written by
// whoever may write there, and are hostile until one verifies; so all of it is bounded in size and number.
//
//	trust.go      the rules, and which one counts
//	find.go       where signatures lie in a registry
//	payload.go    what a signature speaks of
//	key.go        public keys, and whether a signature is by one of them
//
// What is checked is a digest that the puller computed of the bytes it will use. Nothing is resolved here a second time,
// so there is no moment in which a tag could move.
package trust

import (
	"context"
	"errors"
	"io"
	"path"
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/registry"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Missing is the reason of the error that says that there is no good signature.
const Missing = "SIGNATURE_MISSING"

// What rules may require.
const (
	Signed = "signed" // a signature by one of the keys
	Accept = "accept" // nothing
	Reject = "reject" // nothing may be pulled
)

// Rule is what holds for some repositories.
type Rule struct {
	// Repositories are patterns of canonical names without tag, "docker.io/library/debian"; "*" stands for what has no
	// slash, and a "/**" at the end for everything below. "**" is everything.
	Repositories []string
	Require      string
	Keys         []string // PEM files of public keys; for Signed
	// SignedAs are patterns of the repositories that a signature may speak of; none: the repository itself.
	SignedAs []string
}

// Policy is a list of rules, of which the first that fits counts. What none fits is accepted. A nil Policy accepts all.
type Policy struct {
	registry Registry
	rules    []rule
}

type rule struct {
	Rule
	keys []key
}

// Registry is what looking for signatures needs of a registry client.
type Registry interface {
	Manifest(ctx context.Context, ref reference.Named, auth registry.Auth) ([]byte, ocispec.Descriptor, error)
	Referrers(ctx context.Context, repo reference.Named, subject digest.Digest, artifactType string, auth registry.Auth) ([]ocispec.Descriptor, error)
	Blob(ctx context.Context, repo reference.Named, desc ocispec.Descriptor, offset int64, auth registry.Auth) (io.ReadCloser, error)
}

// New reads the keys of the rules. Without rules it gives nil.
func New(reg Registry, rules []Rule) (*Policy, error) {
	if len(rules) == 0 {
		return nil, nil
	}
	p := &Policy{registry: reg}
	for n, r := range rules {
		r.Repositories = lower(r.Repositories)
		made := rule{Rule: r}
		where := func(format string, args ...any) error { return bad(n, format, args...) }
		if len(r.Repositories) == 0 {
			return nil, where("repositories is missing")
		}
		for _, pattern := range append(r.Repositories, r.SignedAs...) {
			if err := checkPattern(pattern); err != nil {
				return nil, where("%w", err)
			}
		}
		switch r.Require {
		case Signed:
			if len(r.Keys) == 0 {
				return nil, where("require = %q wants keys", Signed)
			}
		case Accept, Reject:
			if len(r.Keys)+len(r.SignedAs) > 0 {
				return nil, where("keys and signed_as go with require = %q", Signed)
			}
		default:
			return nil, where("require = %q: want %s, %s or %s", r.Require, Signed, Accept, Reject)
		}
		for _, file := range r.Keys {
			keys, err := readKeys(file)
			if err != nil {
				return nil, where("%w", err)
			}
			made.keys = append(made.keys, keys...)
		}
		p.rules = append(p.rules, made)
	}
	return p, nil
}

func bad(n int, format string, args ...any) error {
	args = append([]any{n + 1}, args...)
	return fault.InvalidArgument.Errorf("BAD_CONFIG", "imaged.signatures, rule %d: "+format, args...)
}

// lower is for patterns: registries have no capitals but in how they are written, paths none at all.
func lower(patterns []string) []string {
	all := make([]string, len(patterns))
	for i, p := range patterns {
		all[i] = strings.ToLower(p)
	}
	return all
}

// Rules is how many there are.
func (p *Policy) Rules() int {
	if p == nil {
		return 0
	}
	return len(p.rules)
}

// checkPattern refuses patterns that could never fit, such as "debian" for "docker.io/library/debian": a rule that
// silently protects nothing is worse than none.
func checkPattern(pattern string) error {
	if pattern == "**" {
		return nil
	}
	bare := strings.TrimSuffix(pattern, "/**")
	if _, err := path.Match(bare, ""); err != nil || bare == "" || strings.Contains(bare, "**") || strings.ContainsAny(bare, "@ ") {
		return errors.New("pattern " + pattern + " is malformed")
	}
	first, rest, _ := strings.Cut(bare, "/")
	if rest == "" && bare == pattern || !strings.ContainsAny(first, ".:*") && first != "localhost" {
		return errors.New("pattern " + pattern + " must begin with a registry, as docker.io/library/debian does")
	}
	if i := strings.LastIndexByte(bare, ':'); i > strings.LastIndexByte(bare, '/') && bare != first {
		return errors.New("pattern " + pattern + " must not have a tag")
	}
	return nil
}

// fits reports whether one of the patterns means a repository. It gives that one.
func fits(patterns []string, repo string) (string, bool) {
	for _, p := range patterns {
		below, tree := strings.CutSuffix(p, "/**")
		if p == "**" {
			return p, true
		}
		if !tree {
			if ok, _ := path.Match(p, repo); ok {
				return p, true
			}
			continue
		}
		// As many elements of the name as the pattern has, and at least one more.
		parts := strings.Split(repo, "/")
		n := strings.Count(below, "/") + 1
		if len(parts) > n {
			if ok, _ := path.Match(below, strings.Join(parts[:n], "/")); ok {
				return p, true
			}
		}
	}
	return "", false
}

// ruleFor is the rule for a repository, and its pattern that fits; nil: all is accepted.
func (p *Policy) ruleFor(name reference.Named) (*rule, string) {
	if p == nil {
		return nil, ""
	}
	for i := range p.rules {
		for _, spelt := range spellings(name) {
			if pattern, ok := fits(p.rules[i].Repositories, spelt); ok {
				return &p.rules[i], pattern
			}
		}
	}
	return nil, ""
}

// spellings are the names that rules for a repository may have: a registry that is written in capitals, or with the port
// it has anyway, is the same registry and must not get around its rule.
func spellings(name reference.Named) []string {
	domain, path := strings.ToLower(reference.Domain(name)), reference.Path(name)
	all := []string{domain + "/" + path}
	for _, port := range []string{":443", ":80"} {
		if bare, ok := strings.CutSuffix(domain, port); ok {
			all = append(all, bare+"/"+path)
		}
	}
	return all
}

// Needs reports whether pulls of name need a signature. PermissionDenied if nothing may be pulled: no request is made
// then.
func (p *Policy) Needs(name reference.Named) (bool, error) {
	r, pattern := p.ruleFor(name)
	switch {
	case r == nil || r.Require == Accept:
		return false, nil
	case r.Require == Reject:
		return false, refused("REJECTED_BY_POLICY", name, "the policy for %q rejects all images", pattern)
	}
	return true, nil
}

func refused(reason string, name reference.Named, format string, args ...any) error {
	args = append([]any{reference.FamiliarString(name)}, args...)
	return fault.PermissionDenied.Errorf(reason, "pull %s: refused: "+format, args...).With("image", reference.FamiliarString(name))
}

// Check verifies that a key of the rule for name vouches for what was fetched under it, whose digest is d. Errors of the
// registry, other than that there is no signature, are not taken for an answer.
func (p *Policy) Check(ctx context.Context, name reference.Named, d digest.Digest, auth registry.Auth) error {
	if needed, err := p.Needs(name); err != nil || !needed {
		return err
	}
	r, pattern := p.ruleFor(name)
	s := &search{Registry: p.registry, rule: r, name: name, digest: d, auth: auth}
	ok, err := s.run(ctx)
	if err != nil || ok {
		return err
	}
	return refused(Missing, name, "the policy for %q wants a signature of %s: %s", pattern, d, s.found())
}
