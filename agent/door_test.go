package agent_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
)

// A door is a front end that does not speak the SSH protocol, as PKCS #11 will
// be: it lists certificates, and signs digests for an application.
type door struct {
	keyring *agent.Keyring
	client  agent.Client
	asked   *owner
	log     *sshtest.Log
}

// newDoor returns a door to a key with a PIN. The owner types the answers.
func newDoor(answers ...string) *door {
	d := &door{client: agent.Client{Peer: peer.Peer{PID: 1, UID: 0, Program: "curl"}}, asked: &owner{answers: answers}, log: new(sshtest.Log)}
	d.keyring = agent.NewKeyring(agent.Config{
		Sources: []agent.Source{keys{agent.NewSet([]agent.Identity{{
			Public: sshtest.PublicOf(sshtest.P256()), Comment: "work", Name: "work.tpm", Key: pinned{sshtest.P256()},
		}})}},
		Prompter: d.asked,
		Log:      slog.New(slog.NewTextHandler(d.log, nil)),
	})
	return d
}

// sign signs a digest for an application.
func (d *door) sign(ctx context.Context, signer crypto.Signer, digest []byte) ([]byte, *refusal.Error) {
	sig, refused := d.keyring.Sign(ctx, &d.client, sshtest.PublicOf(signer).Marshal(), func(ssh.PublicKey) (agent.Message, error) {
		return agent.Message{Use: ask.Use{Kind: ask.UseUnknown}, Digest: digest, Hash: crypto.SHA256}, nil
	})
	if refused != nil {
		return nil, refused
	}
	sig.Log("ECDSA")
	return sig.Raw, nil
}

type keys struct{ set *agent.Set }

func (k keys) Identities() *agent.Set { return k.set }

// pinned is a key with the PIN 1234.
type pinned struct{ crypto.Signer }

func (pinned) AuthRequired() bool { return true }

func (k pinned) Sign(_ context.Context, auth, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if string(auth) != "1234" {
		return nil, &consent.WrongPINError{Left: 30}
	}
	return k.Signer.Sign(rand.Reader, digest, opts)
}

// owner answers questions about PINs and consents to everything.
type owner struct {
	answers   []string
	questions []ask.Question
	confirmed int
}

func (o *owner) AuthValue(_ context.Context, p ask.AuthPrompt) ([]byte, error) {
	o.questions = append(o.questions, p.Question)
	if len(o.answers) == 0 {
		return nil, ask.ErrRefused
	}
	answer := o.answers[0]
	o.answers = o.answers[1:]
	return []byte(answer), nil
}

func (o *owner) LastTry(context.Context, ask.AuthPrompt) error { return nil }

func (o *owner) Confirm(context.Context, ask.ConfirmPrompt) (ask.Grant, error) {
	o.confirmed++
	return ask.GrantOnce, nil
}

func (o *owner) Inform(context.Context, ask.Notice) {}

// TestSignThroughAnotherDoor checks that a front end without the SSH protocol gets
// everything that stands between a request and a key.
func TestSignThroughAnotherDoor(t *testing.T) {
	t.Parallel()
	digest := sha256.Sum256([]byte("a message"))
	d := newDoor("wrong", "1234")
	offers := d.keyring.Offered(&d.client)
	if len(offers) != 1 || offers[0].Comment != "work" || !bytes.Equal(offers[0].Public.Marshal(), sshtest.PublicOf(sshtest.P256()).Marshal()) {
		t.Fatalf("offered %+v", offers)
	}
	sig, refused := d.sign(t.Context(), sshtest.P256(), digest[:])
	if refused != nil {
		t.Fatal(refused)
	}
	if !ecdsa.VerifyASN1(sshtest.P256().Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Error("the signature is wrong")
	}
	if n := len(d.asked.questions); n != 2 || d.asked.questions[1].Name != "work.tpm" || d.asked.questions[1].Peer.Program != "curl" {
		t.Errorf("asked %d times, %+v", n, d.asked.questions)
	}
	if d.log.Count("msg=signed key=work.tpm") != 1 {
		t.Errorf("log: %s", d.log)
	}
}

// TestRefusedThroughAnotherDoor checks that refusals have causes, which are kept
// for `tpm-agent why`.
func TestRefusedThroughAnotherDoor(t *testing.T) {
	t.Parallel()
	digest := sha256.Sum256([]byte("a message"))
	d := newDoor()
	want := []refusal.Cause{refusal.Cancelled, refusal.UnknownKey}
	for i, signer := range []crypto.Signer{sshtest.P256(), sshtest.P384()} {
		if _, refused := d.sign(t.Context(), signer, digest[:]); refused == nil || refused.Cause != want[i] {
			t.Errorf("%v, want %s", refused, want[i])
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, refused := d.sign(ended, sshtest.P256(), digest[:]); refused == nil || refused.Cause != refusal.HungUp {
		t.Errorf("%v, want %s", refused, refusal.HungUp)
	}
	kept := d.keyring.Refusals()
	if len(kept) != 3 || kept[0].Cause != string(refusal.Cancelled) || kept[0].Key != "work.tpm" || kept[1].Fingerprint == "" {
		t.Errorf("kept %+v", kept)
	}
}

// TestConstraintsThroughAnotherDoor checks that constraints hold: a key that was
// added for some hosts is not for applications, and one that was added with
// confirmation asks.
func TestConstraintsThroughAnotherDoor(t *testing.T) {
	t.Parallel()
	digest := sha256.Sum256([]byte("a message"))
	to := restrict.Hop{Host: "a", Keys: []restrict.HostKey{{Key: sshtest.HostA().PublicKey()}}}
	for _, test := range []struct {
		limits    restrict.Constraints
		want      refusal.Cause // "" if it signs
		confirmed int
	}{
		{restrict.Constraints{Destinations: []restrict.Destination{{To: to}}}, refusal.Destination, 0},
		{restrict.Constraints{Confirm: true}, "", 1},
	} {
		d := newDoor("1234")
		id := agent.Identity{Public: sshtest.PublicOf(sshtest.P384()), Comment: "added", Key: pinned{sshtest.P384()}}
		if refused := d.keyring.Add(&d.client, "add", id, test.limits.Marshal()); refused != nil {
			t.Fatal(refused)
		}
		_, refused := d.sign(t.Context(), sshtest.P384(), digest[:])
		if (refused == nil) != (test.want == "") || refused != nil && refused.Cause != test.want {
			t.Errorf("%+v: %v, want %q", test.limits, refused, test.want)
		}
		if d.asked.confirmed != test.confirmed {
			t.Errorf("%+v: asked for consent %d times, want %d", test.limits, d.asked.confirmed, test.confirmed)
		}
	}
}

// TestPrepareFails checks that a door's own error is the reason of the refusal.
func TestPrepareFails(t *testing.T) {
	t.Parallel()
	d := newDoor()
	mechanism := errors.New("a mechanism that the key does not have")
	_, refused := d.keyring.Sign(t.Context(), &d.client, sshtest.PublicOf(sshtest.P256()).Marshal(), func(ssh.PublicKey) (agent.Message, error) {
		return agent.Message{}, mechanism
	})
	if refused == nil || refused.Cause != refusal.Algorithm || !errors.Is(refused, mechanism) {
		t.Errorf("%v", refused)
	}
}
