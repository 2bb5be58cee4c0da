package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// ReadKeyFile makes an identity of the content of a key file.
type ReadKeyFile func(name, comment string, content []byte) (agent.Identity, error)

// Extensions returns the agent's side of the extensions, for the keys of k.
func Extensions(k *agent.Keyring, read ReadKeyFile) map[string]agent.Extension {
	s := &server{k, read}
	return map[string]agent.Extension{
		extAddKeyFile: {Answer: s.addKeyFile},
		extKeyStatus:  {Answer: s.keyStatus},
		extUnlockKey:  {Answer: s.unlockKey, Secret: true},
		extForgetPINs: {Answer: s.forgetPINs, Locked: true},
		extRefusals:   {Answer: s.refusals},
		extHeldKeys:   {Answer: s.heldKeys},
	}
}

// server is the agent's side.
type server struct {
	keyring *agent.Keyring
	read    ReadKeyFile
}

// addKeyFile adds the key and its certificates. The client is the owner at a
// terminal, and is told why a key is not added.
func (s *server) addKeyFile(_ context.Context, c *agent.Client, body []byte) ([]byte, error) {
	var m keyFile
	if err := decode(body, &m); err != nil {
		return nil, err
	}
	ids, err := s.identities(&m)
	if err != nil {
		s.keyring.RefuseMalformed(c, "add key file", err)
		return encode(nil, failure(err), nil), nil
	}
	for _, id := range ids {
		if refused := s.keyring.Add(c, "add key file", id, m.Constraints); refused != nil {
			return encode(nil, failure(refused), nil), nil
		}
	}
	return encode(nil, outcome{}, nil), nil
}

// failure returns the outcome of a request that has failed. The error may quote a
// request that is as long as an answer can be.
func failure(err error) outcome { return outcome{fmt.Sprintf("%.1000s", err.Error())} }

// identities returns the key and its certificates.
func (s *server) identities(m *keyFile) ([]agent.Identity, error) {
	key, err := s.read(string(m.Name), string(m.Comment), m.Content)
	if err != nil {
		return nil, err
	}
	ids := []agent.Identity{key}
	for _, blob := range m.Certificates {
		public, err := sshkey.Parse(blob)
		if err != nil {
			return nil, fmt.Errorf("a certificate: %w", err)
		}
		cert, ok := public.(*ssh.Certificate)
		if !ok || !sshkey.Same(cert.Key, key.Public) {
			return nil, errors.New("a certificate is not for the key")
		}
		certified := key
		certified.Public = cert
		ids = append(ids, certified)
	}
	return ids, nil
}

func (s *server) keyStatus(ctx context.Context, _ *agent.Client, body []byte) ([]byte, error) {
	var m keyBlob
	if err := decode(body, &m); err != nil {
		return nil, err
	}
	status, err := s.keyring.Status(ctx, m.Blob)
	if err != nil {
		return encode(nil, keyStatus{Missing: true}, nil), nil
	}
	return encode(nil, keyStatus{
		NeedsPIN: status.NeedsPIN, Remembered: status.Remembered > 0,
		TriesLeft: status.Tries, Wait: status.Wait,
	}, nil), nil
}

func (s *server) unlockKey(ctx context.Context, c *agent.Client, body []byte) ([]byte, error) {
	var m unlock
	pin, err := decodeSecret(body, &m)
	switch {
	case err != nil:
		return nil, err
	case pin == nil:
		return nil, errors.New("the PIN is missing")
	}
	life, err := s.keyring.GivePIN(ctx, c, m.Blob, pin, m.TTL)
	answer := unlocked{Outcome: unlockDone, Life: life, TriesLeft: -1}
	var wrong consent.WrongAuth
	var locked consent.LockedOut
	switch {
	case err == nil:
	case errors.Is(err, agent.ErrNoKey):
		answer.Outcome = unlockNoKey
	case errors.Is(err, consent.ErrNoPIN):
		answer.Outcome = unlockNoPIN
	case errors.As(err, &wrong) && wrong.WrongAuth():
		answer.Outcome = unlockWrong
		if n, known := wrong.TriesLeft(); known {
			answer.TriesLeft = n
		}
	case errors.As(err, &locked):
		answer.Outcome, answer.Wait = unlockLockedOut, locked.LockedOut()
	default:
		answer.Outcome, answer.Problem = unlockFailed, err.Error()
	}
	return encode(nil, answer, nil), nil
}

// err is the inverse of unlockKey's answer.
func (u *unlocked) err() error {
	switch u.Outcome {
	case unlockDone:
		return nil
	case unlockWrong:
		return &consent.WrongPINError{Left: u.TriesLeft}
	case unlockLockedOut:
		return &consent.LockedOutError{Wait: u.Wait}
	case unlockNoPIN:
		return consent.ErrNoPIN
	case unlockNoKey:
		return agent.ErrNoKey
	}
	return errors.New(u.Problem)
}

func (s *server) forgetPINs(_ context.Context, c *agent.Client, body []byte) ([]byte, error) {
	if err := decode(body, new(struct{})); err != nil {
		return nil, err
	}
	return encode(nil, forgottenPINs{s.keyring.ForgetPINs(c)}, nil), nil
}

// maxAnswer is the room for keys or refusals in an answer.
const maxAnswer = wire.MaxMessage - 1<<10

// refusals answers with the latest refusals, as many as fit.
func (s *server) refusals(_ context.Context, _ *agent.Client, body []byte) ([]byte, error) {
	if err := decode(body, new(struct{})); err != nil {
		return nil, err
	}
	all := s.keyring.Refusals()
	answer := encode(nil, all, nil)
	for len(answer) > maxAnswer { // JSON has taken up to six bytes for one
		all = all[1:]
		answer = encode(nil, all, nil)
	}
	return answer, nil
}

// heldKeys answers with as many keys as fit. One that is too long for an answer is
// left out, as it is from lists.
func (s *server) heldKeys(ctx context.Context, c *agent.Client, body []byte) ([]byte, error) {
	var m heldPage
	if err := decode(body, &m); err != nil {
		return nil, err
	}
	all := s.keyring.Held(ctx, c)
	var answer heldKeys
	size := 0
	for i := max(0, m.First); i < len(all); i++ {
		text, err := json.Marshal(all[i])
		switch {
		case err != nil:
			return nil, err
		case len(text) > maxAnswer:
		case size+len(text) > maxAnswer:
			answer.Next = i
			return encode(nil, answer, nil), nil
		default:
			answer.Keys, size = append(answer.Keys, text), size+len(text)+1
		}
	}
	return encode(nil, answer, nil), nil
}
