// Package registry speaks the OCI distribution protocol to container registries: it
// resolves names, fetches manifests and blobs, pushes them, and checks a login.
//
// A [Client] is made once and shared; credentials come with each call, because they belong
// to the person who called, not to the daemon. The client keeps connections and short-lived
// tokens, and nothing on disk.
//
// What a registry says is never taken on trust. Names and digests are validated before a
// URL is made of them, every body has a size limit, every wait ends, and manifests are
// hashed before they are returned. Blobs are the exception: they are streamed, so the
// reader of [Client.Blob] checks the length and its caller must check the digest.
//
// # Where credentials go
//
// An origin is scheme, host and port. Authorization is sent to the registry's own origin
// and, for the token protocol alone, to the realm that origin named:
//
//	registry   realm                            token asked for
//	https      https, any host                  yes
//	https      http                             refused
//	http       https, any host                  yes
//	http       http, same host name             yes
//	http       http, both on the loopback       yes
//	http       http, elsewhere                  only if the realm's Host has PlainHTTP or Insecure
//
// A redirect that leaves the origin loses Authorization for the rest of its chain, even if
// the chain comes back. From https a redirect to http is refused. Challenges are heard only
// from the registry's own origin. Layers with foreign URLs are fetched from the registry or
// not at all.
//
// Registries are reached by https. A registry on this machine's loopback that answers a TLS
// greeting in clear HTTP, as `docker-registry` does out of the box, is spoken to in clear;
// anywhere else that takes PlainHTTP or Insecure in its [Host]. A failed certificate check
// is final.
//
// Sources: OCI distribution-spec v1.1, RFC 9110 §11 (challenges), the token protocol in
// github.com/distribution/distribution docs/spec/auth.
package registry
