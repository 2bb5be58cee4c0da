package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// errNoBinding: destination constraints would mean nothing there.
var errNoBinding = errors.New("upstream agent does not check session bindings")

// provesBinding returns nil if the upstream, on a connection of its own for
// this, takes a binding that is right and refuses one that is false. No
// version number needs to be believed for that.
func (u *upstream) provesBinding(ctx context.Context) error {
	right, wrong, err := proof()
	if err != nil {
		return fmt.Errorf("making a session binding: %w", err)
	}
	u.begin()
	err = u.prove(ctx, right, wrong)
	u.end(err)
	if !errors.Is(err, errNoBinding) {
		u.note(err)
	}
	return err
}

func (u *upstream) prove(ctx context.Context, right, wrong []byte) error {
	p := patienceFor(wakePatience)
	w, err := u.dial(ctx, p)
	if err != nil {
		return err
	}
	defer w.nc.Close()
	for _, b := range []struct {
		request []byte
		takes   bool
	}{{right, true}, {wrong, false}} {
		answer, err := w.ask(ctx, b.request, p)
		if err != nil {
			return fmt.Errorf("binding: %w", err)
		}
		u.heard()
		if (answer[lengthSize] == msgSuccess) != b.takes {
			return errNoBinding
		}
	}
	return nil
}

// proof makes two session-bind requests with a host key that nobody knows: one
// with its signature, and one, for another session identifier, with the
// signature of the first. Both are for forwarding, after which more may come:
// only the signature is wrong with the second.
func proof() (right, wrong []byte, err error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		return nil, nil, err
	}
	id := make([]byte, 32)
	rand.Read(id)
	sig, err := signer.Sign(rand.Reader, id)
	if err != nil {
		return nil, nil, err
	}
	b := bindRequest{Host: signer.PublicKey().Marshal(), SessionID: id, Signature: ssh.Marshal(sig), Forwarding: true}
	right = append(bindHeader(), ssh.Marshal(b)...)
	b.SessionID = make([]byte, 32)
	rand.Read(b.SessionID)
	return right, append(bindHeader(), ssh.Marshal(b)...), nil
}

func bindHeader() []byte { return appendString([]byte{msgExtension}, extSessionBind) }
