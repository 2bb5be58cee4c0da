package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
)

// softKey is a key that signs with any crypto.Signer. Its fields make it ask
// for a PIN, wait or fail.
type softKey struct {
	crypto.Signer
	required bool          // AuthRequired returns it
	pin      []byte        // nil: any auth value is right
	tries    int           // left, reported with a wrong PIN; -1: unknown
	begun    chan struct{} // if set, each Sign sends to it first
	gate     chan struct{} // if set, each Sign then receives from it, or waits for the end of its context
	deaf     bool          // … or ignores its context
	panics   bool

	ended chan struct{} // each Sign that its context has ended sends to it

	mu    sync.Mutex
	auths []string // the auth values of the calls of Sign
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

// plain returns an identity whose key always signs.
func plain(name string, s crypto.Signer) Identity { return identityOf(name, &softKey{Signer: s}) }

func identityOf(name string, k *softKey) Identity {
	return Identity{Public: sshtest.PublicOf(k.Signer), Comment: name + "@test", Name: name + ".tpm", Key: k}
}

// certified returns id with a certificate that is valid from and until the
// given times.
func certified(id Identity, from, until uint64) Identity {
	cert := &ssh.Certificate{
		Key: id.Public, CertType: ssh.UserCert, KeyId: "id", ValidPrincipals: []string{"me"},
		ValidAfter: from, ValidBefore: until,
	}
	if err := cert.SignCert(rand.Reader, sshtest.CA()); err != nil {
		panic(err)
	}
	id.Public = cert
	return id
}

// changing is a Source whose set a test can replace.
type changing struct{ set atomic.Pointer[Set] }

func (s *changing) Identities() *Set { return s.set.Load() }

func fixed(ids ...Identity) *changing {
	var s changing
	s.set.Store(NewSet(ids))
	return &s
}

// prompterFunc is a Prompter that only asks for PINs.
type prompterFunc func(context.Context, ask.AuthPrompt) ([]byte, error)

func (f prompterFunc) AuthValue(ctx context.Context, p ask.AuthPrompt) ([]byte, error) {
	return f(ctx, p)
}

func (prompterFunc) Confirm(context.Context, ask.ConfirmPrompt) (ask.Grant, error) {
	return ask.GrantNo, errors.New("no test asks for consent")
}
func (prompterFunc) LastTry(context.Context, ask.AuthPrompt) error { return nil }
func (prompterFunc) Inform(context.Context, ask.Notice)            {}

// scripted is a user who gives the answers one after the other. It keeps the
// prompts and the slices that it returned.
type scripted struct {
	mu      sync.Mutex
	answers []string
	asked   []ask.AuthPrompt
	given   [][]byte
}

func (*scripted) Confirm(context.Context, ask.ConfirmPrompt) (ask.Grant, error) {
	return ask.GrantNo, errors.New("no test asks for consent")
}
func (*scripted) LastTry(context.Context, ask.AuthPrompt) error { return nil }
func (*scripted) Inform(context.Context, ask.Notice)            {}

func (s *scripted) AuthValue(_ context.Context, p ask.AuthPrompt) ([]byte, error) {
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
