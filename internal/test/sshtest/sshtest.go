// Package sshtest has keys, hosts and messages for tests of the SSH agent
// protocol, other agents, a clock, and a search for secrets in memory.
package sshtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/wire"

	client "golang.org/x/crypto/ssh/agent"
)

// The keys of all tests. They are made once, because RSA keys take long.
var (
	P256    = sync.OnceValue(func() crypto.Signer { return NewECDSA(elliptic.P256()) })
	P384    = sync.OnceValue(func() crypto.Signer { return NewECDSA(elliptic.P384()) })
	P521    = sync.OnceValue(func() crypto.Signer { return NewECDSA(elliptic.P521()) })
	RSA2048 = sync.OnceValue(func() crypto.Signer { return Must(rsa.GenerateKey(rand.Reader, 2048)) })
	Ed25519 = sync.OnceValue(func() crypto.Signer { return Must(Second(ed25519.GenerateKey(rand.Reader))) })
	CA      = sync.OnceValue(func() ssh.Signer { return Must(ssh.NewSignerFromSigner(NewECDSA(elliptic.P256()))) })
)

// NewECDSA returns a new key.
func NewECDSA(c elliptic.Curve) crypto.Signer { return Must(ecdsa.GenerateKey(c, rand.Reader)) }

// Must returns v, and panics if there is an error.
func Must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// PublicOf returns the public key of s.
func PublicOf(s crypto.Signer) ssh.PublicKey { return Must(ssh.NewPublicKey(s.Public())) }

func newHost() ssh.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return Must(ssh.NewSignerFromSigner(key))
}

// FixedHost returns a host key that is the same in every process, so that fuzzing
// processes can share their inputs.
func FixedHost() ssh.Signer {
	return Must(ssh.NewSignerFromSigner(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))))
}

// Certify returns a host with a certificate that does not expire. change may be
// nil, or change the certificate before it is signed.
func Certify(host, ca ssh.Signer, principals []string, change func(*ssh.Certificate)) ssh.Signer {
	cert := &ssh.Certificate{
		Key: host.PublicKey(), CertType: ssh.HostCert, KeyId: "host",
		ValidPrincipals: principals, ValidBefore: ssh.CertTimeInfinity,
	}
	if change != nil {
		change(cert)
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		panic(err)
	}
	return Must(ssh.NewCertSigner(cert, host))
}

// WithAlgorithm makes an RSA signer use one algorithm.
func WithAlgorithm(s ssh.Signer, algorithm string) ssh.Signer {
	return Must(ssh.NewSignerWithAlgorithms(s.(ssh.AlgorithmSigner), []string{algorithm}))
}

// SignedBy returns a signature as ssh sends it.
func SignedBy(host ssh.Signer, data []byte) []byte {
	if m, ok := host.(ssh.MultiAlgorithmSigner); ok {
		return ssh.Marshal(Must(m.SignWithAlgorithm(rand.Reader, data, m.Algorithms()[0])))
	}
	return ssh.Marshal(Must(host.Sign(rand.Reader, data)))
}

// UnixSeconds returns a time as certificates have it.
func UnixSeconds(t time.Time) uint64 { return uint64(t.Unix()) }

// A Log keeps what was logged.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *Log) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *Log) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

// Count returns how often s was logged.
func (r *Log) Count(s string) int { return strings.Count(r.String(), s) }

// Soon waits until is returns true.
func Soon(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after a minute, not yet: %s", what)
		}
	}
}

// DialUnix connects to a socket until the test ends.
func DialUnix(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc.(*net.UnixConn)
}

// Send writes messages, each in a frame, with one call.
func Send(t testing.TB, w io.Writer, messages ...[]byte) {
	t.Helper()
	var b []byte
	for _, m := range messages {
		b = append(b, wire.Frame(m)...)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
}

// Recv reads one message.
func Recv(t testing.TB, r io.Reader) []byte {
	t.Helper()
	m, err := TryRecv(r)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TryRecv reads one message.
func TryRecv(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint32(length[:]))
	_, err := io.ReadFull(r, m)
	return m, err
}

// Exchange sends a message and returns the answer.
func Exchange(t testing.TB, rw io.ReadWriter, message []byte) []byte {
	t.Helper()
	Send(t, rw, message)
	return Recv(t, rw)
}

// IsClosed waits until the other side closes the connection, and fails the test if
// it sends anything first.
func IsClosed(t testing.TB, r io.Reader) {
	t.Helper()
	b, err := io.ReadAll(r)
	if len(b) > 0 || (err != nil && !errors.Is(err, io.ErrClosedPipe) && !strings.Contains(err.Error(), "reset")) {
		t.Fatalf("got %x, %v instead of a closed connection", b, err)
	}
}

// SignatureIn returns the signature in an answer.
func SignatureIn(answer []byte) (*ssh.Signature, error) {
	var m struct {
		Blob []byte `sshtype:"14"`
	}
	if err := ssh.Unmarshal(answer, &m); err != nil {
		return nil, err
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(m.Blob, &sig); err != nil {
		return nil, err
	}
	if len(sig.Rest) > 0 {
		return nil, fmt.Errorf("%d bytes behind the signature", len(sig.Rest))
	}
	return &sig, nil
}

// VerifyAnswer checks the signature in an answer.
func VerifyAnswer(t testing.TB, pub ssh.PublicKey, data, answer []byte) {
	t.Helper()
	sig, err := SignatureIn(answer)
	if err != nil {
		t.Fatalf("answer %x: %v", answer[:min(len(answer), 40)], err)
	}
	if err := pub.Verify(data, sig); err != nil {
		t.Fatal(err)
	}
}

// CountListed returns how many identities a list has.
func CountListed(t testing.TB, answer []byte) int {
	t.Helper()
	if len(answer) < 5 || answer[0] != wire.MsgIdentitiesAnswer {
		t.Fatalf("answer %x is not a list", answer)
	}
	return int(binary.BigEndian.Uint32(answer[1:]))
}

// The hosts of all tests, most with different types of keys, and an authority.
var (
	HostA  = sync.OnceValue(newHost)
	HostB  = sync.OnceValue(func() ssh.Signer { return Must(ssh.NewSignerFromSigner(P384())) })
	HostC  = sync.OnceValue(func() ssh.Signer { return Must(ssh.NewSignerFromSigner(RSA2048())) })
	HostD  = sync.OnceValue(newHost)
	HostCA = sync.OnceValue(newHost)
)

// The simplest answers, and the request for a list.
var (
	Failed    = []byte{wire.MsgFailure}
	Succeeded = []byte{wire.MsgSuccess}
	ListThem  = []byte{wire.MsgRequestIdentities}
)

// SignMessage returns a sign request.
func SignMessage(blob, data []byte, flags uint32) []byte {
	return ssh.Marshal(struct {
		Blob  []byte `sshtype:"13"`
		Data  []byte
		Flags uint32
	}{blob, data, flags})
}

// RemoveMessage returns a request to remove an identity.
func RemoveMessage(blob []byte) []byte {
	return ssh.Marshal(struct {
		Blob []byte `sshtype:"18"`
	}{blob})
}

// BindBody returns what follows the name in a session-bind.
func BindBody(host ssh.Signer, sessionID string, forwarding bool) []byte {
	return ssh.Marshal(struct {
		Host, SessionID, Signature []byte
		Forwarding                 bool
	}{host.PublicKey().Marshal(), []byte(sessionID), SignedBy(host, []byte(sessionID)), forwarding})
}

// Extension returns an extension request.
func Extension(name string, body []byte) []byte {
	return ssh.Marshal(struct {
		Name string `sshtype:"27"`
		Body []byte `ssh:"rest"`
	}{name, body})
}

// Userauth returns the data of a login, with the method of RFC 4252 or, if host is
// not nil, with the one that names the host.
func Userauth(key ssh.PublicKey, sessionID, user string, host ssh.PublicKey) UserauthData {
	m := UserauthData{
		SessionID: []byte(sessionID), Number: 50, User: user,
		Service: "ssh-connection", Method: "publickey", HasSig: 1,
		Algorithm: key.Type(), Key: key.Marshal(),
	}
	if host != nil {
		m.Method = "publickey-hostbound-v00@openssh.com"
		m.Rest = ssh.Marshal(struct{ Host []byte }{host.Marshal()})
	}
	return m
}

// UserauthData is the data that a client signs to log in (RFC 4252, section 7).
type UserauthData struct {
	SessionID []byte
	Number    byte
	User      string
	Service   string
	Method    string
	HasSig    byte
	Algorithm string
	Key       []byte
	Rest      []byte `ssh:"rest"`
}

// Login returns Userauth as it is signed.
func Login(key ssh.PublicKey, sessionID, user string, host ssh.PublicKey) []byte {
	return ssh.Marshal(Userauth(key, sessionID, user, host))
}

// A Fake is an agent that does what a test wants.
type Fake struct {
	Path string
	l    net.Listener
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	got   [][][]byte // the messages of each connection
}

// Pretend starts a Fake. serve is called for each connection, which is closed when
// it returns; n counts them.
func Pretend(t testing.TB, serve func(f *Fake, n int, nc net.Conn)) *Fake {
	t.Helper()
	f := &Fake{Path: filepath.Join(t.TempDir(), "s")}
	l, err := net.Listen("unix", f.Path)
	if err != nil {
		t.Fatal(err)
	}
	f.l = l
	f.wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			n := len(f.conns)
			f.conns, f.got = append(f.conns, nc), append(f.got, nil)
			f.mu.Unlock()
			f.wg.Go(func() { defer nc.Close(); serve(f, n, nc) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		f.mu.Lock()
		for _, nc := range f.conns {
			nc.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

// Answering starts a Fake that answers each message with what says returns. nil
// closes the connection.
func Answering(t testing.TB, says func(message []byte) []byte) *Fake {
	return Pretend(t, func(f *Fake, n int, nc net.Conn) {
		for {
			m := f.Next(n, nc)
			if m == nil {
				return
			}
			answer := says(m)
			if answer == nil {
				return
			}
			if _, err := nc.Write(answer); err != nil {
				return
			}
		}
	})
}

// Next reads and keeps the next message of connection n. It returns nil at the end.
func (f *Fake) Next(n int, nc net.Conn) []byte {
	m, err := TryRecv(nc)
	if err != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got[n] = append(f.got[n], m)
	return m
}

// Received returns the messages of each connection.
func (f *Fake) Received() [][][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([][][]byte(nil), f.got...)
}

// Has reports whether a message was received.
func (f *Fake) Has(message []byte) bool {
	for _, c := range f.Received() {
		for _, m := range c {
			if bytes.Equal(m, message) {
				return true
			}
		}
	}
	return false
}

// A RealAgent is an ssh-agent, which tests can stop, kill and start again.
type RealAgent struct {
	Path string
	cmd  *exec.Cmd
}

// StartAgent starts an ssh-agent, or skips the test if there is none.
func StartAgent(t testing.TB) *RealAgent {
	t.Helper()
	a := &RealAgent{Path: filepath.Join(t.TempDir(), "s")}
	a.Start(t)
	t.Cleanup(a.Kill)
	return a
}

// Start starts the agent, for the first time or after a Kill.
func (a *RealAgent) Start(t testing.TB) {
	t.Helper()
	os.Remove(a.Path)
	a.cmd = exec.Command("ssh-agent", "-D", "-a", a.Path)
	a.cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	if err := a.cmd.Start(); err != nil {
		t.Skipf("needs ssh-agent: %v", err)
	}
	Soon(t, "ssh-agent listens", func() bool {
		nc, err := net.Dial("unix", a.Path)
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
}

// Kill ends the agent.
func (a *RealAgent) Kill() {
	a.cmd.Process.Kill()
	a.cmd.Wait()
}

// Signal sends a signal to the agent. After SIGSTOP it waits until the agent has
// stopped.
func (a *RealAgent) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := a.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	if s != syscall.SIGSTOP {
		return
	}
	Soon(t, "ssh-agent has stopped", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(stat, []byte(") T "))
	})
}

// Add adds a key to the agent.
func (a *RealAgent) Add(t testing.TB, comment string, key any) {
	t.Helper()
	nc, err := net.Dial("unix", a.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := client.NewClient(nc).Add(client.AddedKey{PrivateKey: key, Comment: comment}); err != nil {
		t.Fatal(err)
	}
}

// OpenFiles returns how many descriptors this process has.
func OpenFiles(t testing.TB) int {
	t.Helper()
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	all, err := d.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return len(all) - 1
}

// NoEnd serves a connection of a Fake: it reads everything and answers nothing.
func NoEnd(_ *Fake, _ int, nc net.Conn) { io.Copy(io.Discard, nc) }

// Message returns a message with these fields. It is not the code under test, so
// that each field can be wrong.
func Message(number byte, fields ...any) []byte {
	b := []byte{number}
	for _, f := range fields {
		switch f := f.(type) {
		case string:
			b = wire.AppendString(b, f)
		case []byte:
			b = wire.AppendString(b, string(f))
		case *big.Int:
			b = append(b, ssh.Marshal(struct{ *big.Int }{f})...)
		case byte:
			b = append(b, f)
		default:
			panic(fmt.Sprintf("a field of type %T", f))
		}
	}
	return b
}

// Second returns the last two of three results, for Must.
func Second[A, B any](_ A, b B, err error) (B, error) { return b, err }

// PrivateFields returns the fields of a private key between its type and its
// comment.
func PrivateFields(s crypto.Signer, certified bool) []any {
	switch k := s.(type) {
	case *rsa.PrivateKey:
		f := []any{k.D, k.Precomputed.Qinv, k.Primes[0], k.Primes[1]}
		if !certified {
			f = append([]any{k.N, big.NewInt(int64(k.E))}, f...)
		}
		return f
	case *ecdsa.PrivateKey:
		d := new(big.Int).SetBytes(Must(k.Bytes()))
		if certified {
			return []any{d}
		}
		curve := strings.TrimPrefix(PublicOf(k).Type(), "ecdsa-sha2-")
		return []any{curve, Must(k.PublicKey.Bytes()), d}
	case ed25519.PrivateKey:
		return []any{[]byte(k[32:]), []byte(k)}
	}
	panic(fmt.Sprintf("a key of type %T", s))
}

// Adding returns a request to add s, or its certificate if cert is not nil.
func Adding(s crypto.Signer, cert *ssh.Certificate) []byte {
	var fields []any
	if cert != nil {
		fields = []any{cert.Type(), cert.Marshal()}
	} else {
		fields = []any{PublicOf(s).Type()}
	}
	fields = append(append(fields, PrivateFields(s, cert != nil)...), "me@here")
	return Message(wire.MsgAddIdentity, fields...)
}

// CertFor returns a certificate for s that does not expire. Each change is made
// before it is signed.
func CertFor(s crypto.Signer, change ...func(*ssh.Certificate)) *ssh.Certificate {
	cert := &ssh.Certificate{
		Key: PublicOf(s), CertType: ssh.UserCert, KeyId: "id",
		ValidPrincipals: []string{"me"}, ValidBefore: ssh.CertTimeInfinity,
	}
	for _, c := range change {
		c(cert)
	}
	if err := cert.SignCert(rand.Reader, CA()); err != nil {
		panic(err)
	}
	return cert
}

// Signers returns one key of each type that the agent holds, by name.
func Signers() map[string]crypto.Signer {
	return map[string]crypto.Signer{
		"rsa": RSA2048(), "p256": P256(), "p384": P384(), "p521": P521(), "ed25519": Ed25519(),
	}
}

// SshAgent starts an ssh-agent and returns its socket.
func SshAgent(t testing.TB) string {
	t.Helper()
	return StartAgent(t).Path
}
