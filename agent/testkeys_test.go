package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"
)

// softKey signs with any crypto.Signer. Its fields make it ask for a PIN, wait
// or break.
type softKey struct {
	crypto.Signer
	required bool          // what AuthRequired says
	pin      []byte        // nil: any auth value will do
	tries    int           // reported with a wrong PIN, -1: not known
	begun    chan struct{} // if set, each Sign sends to it first
	gate     chan struct{} // if set, each Sign then waits to receive, or for its context
	deaf     bool          // … or not for its context
	panics   bool

	ended chan struct{} // each Sign that its context ended sends to it

	mu    sync.Mutex
	auths []string // what Sign was called with
}

func (k *softKey) AuthRequired() bool { return k.required }

func (k *softKey) Sign(ctx context.Context, auth, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.begun != nil {
		k.begun <- struct{}{}
	}
	if k.panics {
		panic("a key that panics")
	}
	if err := k.wait(ctx); err != nil {
		k.ended <- struct{}{}
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.auths = append(k.auths, string(auth))
	if k.pin != nil && !bytes.Equal(k.pin, auth) {
		if k.tries > 0 {
			k.tries--
		}
		return nil, fmt.Errorf("signing: %w", wrongPIN(k.tries))
	}
	return k.Signer.Sign(rand.Reader, digest, opts)
}

func (k *softKey) wait(ctx context.Context) error {
	switch {
	case k.gate == nil:
		return nil
	case k.deaf:
		<-k.gate
		return nil
	}
	select {
	case <-k.gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (k *softKey) tried() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]string(nil), k.auths...)
}

type wrongPIN int

func (wrongPIN) Error() string            { return "TPM_RC_AUTH_FAIL" }
func (wrongPIN) WrongAuth() bool          { return true }
func (e wrongPIN) TriesLeft() (int, bool) { return int(e), e >= 0 }

// The signers of all tests; RSA keys take their time to make.
var (
	p256   = sync.OnceValue(func() crypto.Signer { return newECDSA(elliptic.P256()) })
	p384   = sync.OnceValue(func() crypto.Signer { return newECDSA(elliptic.P384()) })
	p521   = sync.OnceValue(func() crypto.Signer { return newECDSA(elliptic.P521()) })
	rsa2k  = sync.OnceValue(func() crypto.Signer { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	caSign = sync.OnceValue(func() ssh.Signer { return must(ssh.NewSignerFromSigner(newECDSA(elliptic.P256()))) })
)

func newECDSA(c elliptic.Curve) crypto.Signer { return must(ecdsa.GenerateKey(c, rand.Reader)) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func publicOf(s crypto.Signer) ssh.PublicKey { return must(ssh.NewPublicKey(s.Public())) }

// plain is an identity with a key that always signs.
func plain(name string, s crypto.Signer) Identity { return identityOf(name, &softKey{Signer: s}) }

func identityOf(name string, k *softKey) Identity {
	return Identity{Public: publicOf(k.Signer), Comment: name + "@test", Name: name + ".tpm", Key: k}
}

// certified is id with a certificate valid from and until the given times.
func certified(id Identity, from, until uint64) Identity {
	cert := &ssh.Certificate{
		Key: id.Public, CertType: ssh.UserCert, KeyId: "id", ValidPrincipals: []string{"me"},
		ValidAfter: from, ValidBefore: until,
	}
	if err := cert.SignCert(rand.Reader, caSign()); err != nil {
		panic(err)
	}
	id.Public = cert
	return id
}

// changing is a Source whose set can be replaced.
type changing struct{ set atomic.Pointer[Set] }

func (s *changing) Identities() *Set { return s.set.Load() }

func fixed(ids ...Identity) *changing {
	var s changing
	s.set.Store(NewSet(ids))
	return &s
}

// prompterFunc is a Prompter.
type prompterFunc func(context.Context, AuthPrompt) ([]byte, error)

func (f prompterFunc) AuthValue(ctx context.Context, p AuthPrompt) ([]byte, error) { return f(ctx, p) }

func (prompterFunc) Confirm(context.Context, ConfirmPrompt) (Grant, error) {
	return GrantNo, errors.New("not asked for")
}
func (prompterFunc) LastTry(context.Context, AuthPrompt) error { return nil }
func (prompterFunc) Inform(context.Context, Notice)            {}

// scripted gives the answers one after the other, and keeps what was asked and
// the slices it gave.
type scripted struct {
	mu      sync.Mutex
	answers []string
	asked   []AuthPrompt
	given   [][]byte
}

func (*scripted) Confirm(context.Context, ConfirmPrompt) (Grant, error) {
	return GrantNo, errors.New("not asked for")
}
func (*scripted) LastTry(context.Context, AuthPrompt) error { return nil }
func (*scripted) Inform(context.Context, Notice)            {}

func (s *scripted) AuthValue(_ context.Context, p AuthPrompt) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, p)
	if len(s.answers) == 0 {
		return nil, io.EOF
	}
	value := []byte(s.answers[0])
	s.answers = s.answers[1:]
	s.given = append(s.given, value)
	return value, nil
}

func (s *scripted) checkWiped(t *testing.T) {
	t.Helper()
	for i, v := range s.given {
		if !bytes.Equal(v, make([]byte, len(v))) {
			t.Errorf("value %d is still in memory after use", i)
		}
	}
}
