// Package registrytest runs the real docker-registry (Debian package docker-registry) on a
// free port of the loopback, for tests that want the genuine article rather than a fake.
//
// Each registry has its own storage, log and certificates under the test's temporary
// directory, and ends with the test.
package registrytest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The one account of a registry started with Auth.
const (
	User     = "tester"
	Password = "correct horse battery"
)

// htpasswd is that account; the hash is bcrypt of Password, cost 5, made with crypt(3).
const htpasswd = User + ":$2b$05$9Gb9hhPvd50mDH1YKmGOsuqeBftV5FYXSW9O1WkXAW.McJUYt0pRO\n"

// Options choose what sort of registry to run. The zero value speaks clear HTTP to anyone.
type Options struct {
	Auth bool // ask for User and Password (HTTP Basic)
	TLS  bool // speak https, with a certificate of a CA made for this registry
	// ClientCA is the file of a CA; with it and TLS, clients need a certificate of that CA.
	ClientCA string
	// Extra is appended to the registry's YAML configuration as it is.
	Extra string
}

// Registry is a running docker-registry.
type Registry struct {
	Host   string // 127.0.0.1:port, as references and command lines write it
	CAFile string // with TLS: the CA's certificate, PEM
	Dir    string // storage, for tests that damage or inspect it

	tb     testing.TB
	config string
	log    string
	cmd    *exec.Cmd
}

// Start runs a registry and waits until it answers. Without docker-registry on the machine
// the test is skipped.
func Start(tb testing.TB, o Options) *Registry {
	tb.Helper()
	binary, err := exec.LookPath("docker-registry")
	if err != nil {
		tb.Skipf("SKIPPED: needs docker-registry (apt-get install docker-registry): %v", err)
	}
	dir := tb.TempDir()
	r := &Registry{
		tb:     tb,
		Dir:    filepath.Join(dir, "storage"),
		config: filepath.Join(dir, "config.yml"),
		log:    filepath.Join(dir, "log"),
	}
	r.configure(o, dir, "127.0.0.1:0")
	r.run(binary)
	r.Host = r.address()
	r.waitForConnect()
	// From now on the port is fixed, so that Stop and Restart act like a server that was
	// rebooted.
	r.configure(o, dir, r.Host)
	tb.Cleanup(r.Stop)
	return r
}

// Stop ends the registry's process. Stopping twice is harmless.
func (r *Registry) Stop() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(5*time.Second, func() { _ = r.cmd.Process.Kill() })
	_ = r.cmd.Wait()
	kill.Stop()
	r.cmd = nil
}

// Restart stops the registry if it runs and starts it on the same port and storage.
func (r *Registry) Restart() {
	r.tb.Helper()
	r.Stop()
	binary, err := exec.LookPath("docker-registry")
	if err != nil {
		r.tb.Fatal(err)
	}
	r.run(binary)
	r.waitForConnect()
}

// Ref names an image in this registry: Ref("web:1") is "127.0.0.1:port/web:1".
func (r *Registry) Ref(image string) string { return r.Host + "/" + image }

// Pid is the registry's process id, 0 while it is stopped.
func (r *Registry) Pid() int {
	if r.cmd == nil {
		return 0
	}
	return r.cmd.Process.Pid
}

// Log is what the registry has written so far, access log included.
func (r *Registry) Log() string {
	b, _ := os.ReadFile(r.log)
	return string(b)
}

func (r *Registry) run(binary string) {
	r.tb.Helper()
	log, err := os.OpenFile(r.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer log.Close()
	r.cmd = exec.Command(binary, "serve", r.config)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	// Nothing from outside may configure it: the registry also reads REGISTRY_* variables.
	r.cmd.Env = []string{"PATH=/usr/bin:/bin", "OTEL_TRACES_EXPORTER=none"}
	if err := r.cmd.Start(); err != nil {
		r.tb.Fatalf("start docker-registry: %v", err)
	}
}

func (r *Registry) configure(o Options, dir, addr string) {
	r.tb.Helper()
	var c strings.Builder
	fmt.Fprintf(&c, "version: 0.1\nlog: {level: info, formatter: text}\n")
	fmt.Fprintf(&c, "storage:\n  filesystem: {rootdirectory: %q}\n  delete: {enabled: true}\n", r.Dir)
	if o.Auth {
		file := filepath.Join(dir, "htpasswd")
		r.write(file, []byte(htpasswd))
		fmt.Fprintf(&c, "auth: {htpasswd: {realm: test, path: %q}}\n", file)
	}
	fmt.Fprintf(&c, "http:\n  addr: %s\n", addr)
	if o.TLS {
		cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
		if r.CAFile == "" {
			r.CAFile = filepath.Join(dir, "ca.pem")
			ca := NewCA(r.tb)
			certPEM, keyPEM := ca.Issue(r.tb, "127.0.0.1", "localhost")
			r.write(r.CAFile, ca.PEM)
			r.write(cert, certPEM)
			r.write(key, keyPEM)
		}
		fmt.Fprintf(&c, "  tls:\n    certificate: %q\n    key: %q\n", cert, key)
		if o.ClientCA != "" {
			fmt.Fprintf(&c, "    clientcas: [%q]\n", o.ClientCA)
		}
	}
	c.WriteString(o.Extra)
	r.write(r.config, []byte(c.String()))
}

func (r *Registry) write(file string, content []byte) {
	r.tb.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		r.tb.Fatal(err)
	}
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// address waits for the registry to say which port it got.
func (r *Registry) address() string {
	r.tb.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if found := listening.FindStringSubmatch(r.Log()); found != nil {
			return found[1]
		}
	}
	r.Stop()
	r.tb.Fatalf("docker-registry did not start:\n%s", r.Log())
	return ""
}

func (r *Registry) waitForConnect() {
	r.tb.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var conn net.Conn
		if conn, err = net.Dial("tcp", r.Host); err == nil {
			conn.Close()
			return
		}
	}
	r.Stop()
	r.tb.Fatalf("docker-registry does not answer: %v\n%s", err, r.Log())
}

// CA is a certificate authority for one test.
type CA struct {
	PEM  []byte // its certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a CA that is valid for an hour.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	template := certificate("berth test CA")
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	ca := &CA{key: newKey(tb)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &ca.key.PublicKey, ca.key)
	if err == nil {
		ca.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		tb.Fatal(err)
	}
	ca.PEM = encode("CERTIFICATE", der)
	return ca
}

// Issue makes a certificate, with its key, for servers under the names and addresses given
// and for clients.
func (ca *CA) Issue(tb testing.TB, hosts ...string) (certPEM, keyPEM []byte) {
	tb.Helper()
	template := certificate(hosts[0])
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	key := newKey(tb)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)
}

func certificate(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Minute),
		NotAfter:     now.Add(time.Hour),
	}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func encode(kind string, der []byte) []byte {
	var b bytes.Buffer
	_ = pem.Encode(&b, &pem.Block{Type: kind, Bytes: der}) // a bytes.Buffer takes everything
	return b.Bytes()
}
