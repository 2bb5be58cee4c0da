package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/keydir"
	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// identities is the agent's Source: what is in the key directories, as keys of
// one TPM. It is the place where files, TPM and protocol meet.
type identities struct {
	index    *keydir.Index
	tpm      *tpmkey.TPM
	software bool // the keys of this TPM are not protected, and say so
	log      *slog.Logger
	memory   *memory

	mu      sync.Mutex
	entries []*keydir.Entry // what set was made of
	set     *agent.Set
	keys    map[*keydir.Entry]*rememberedKey // nil: refused, and reported
}

var _ agent.Source = (*identities)(nil)

// close lets go of the TPM and the directories.
func (s *identities) close() error {
	err := errors.Join(s.tpm.Close(), s.index.Close())
	s.memory.wait()
	return err
}

// Identities returns the same Set until a file changes. A key keeps its
// TPM's key as long as its file does, for that holds its saved context. The
// index is asked under the lock, so that an older answer never replaces a newer
// one.
func (s *identities) Identities() *agent.Set {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries := s.index.Entries()
	if s.set != nil && sameSlice(entries, s.entries) {
		return s.set
	}
	keys := make(map[*keydir.Entry]*rememberedKey, len(entries))
	memories := s.memory.recall()
	var ids []agent.Identity
	for _, e := range entries {
		key, known := s.keys[e]
		if !known {
			key = s.key(e, memories)
		}
		keys[e] = key
		if key != nil {
			ids = append(ids, s.offers(e, key)...)
		}
	}
	s.entries, s.keys, s.set = entries, keys, agent.NewSet(ids)
	return s.set
}

// key makes the TPM's key of an entry, or says once why there is none.
func (s *identities) key(e *keydir.Entry, memories func(file string) *parents.Memory) *rememberedKey {
	key, err := s.tpm.Key(e.Key)
	if err != nil {
		s.log.Warn("not offered", "file", e.Path, "cause", err)
		return nil
	}
	return s.memory.remember(key, memories(e.Path), e.Path, e.Public)
}

// offers are the identities of one file: the key, and its certificates.
func (s *identities) offers(e *keydir.Entry, key agent.Key) []agent.Identity {
	comment := e.Comment
	if s.software {
		comment += " (" + notProtected + ")"
	}
	ids := []agent.Identity{{Public: e.Public, Comment: comment, Name: e.Path, Key: key}}
	for _, certificate := range e.Certificates {
		var public ssh.PublicKey = certificate
		ids = append(ids, agent.Identity{Public: public, Comment: comment, Name: e.Path, Key: key})
	}
	return ids
}

// keyFile is the identity of a key file that is added at run time. It need not
// be in a directory; if it is, the key is the one of there, whose context the
// TPM has saved already.
func (s *identities) keyFile(name, comment string, content []byte) (agent.Identity, error) {
	file, err := keyfile.Parse(content)
	if err != nil {
		return agent.Identity{}, err
	}
	public, err := ssh.NewPublicKey(file.Public.Key)
	if err != nil {
		return agent.Identity{}, fmt.Errorf("no key for SSH: %w", err)
	}
	key, err := s.anyKey(file)
	if err != nil {
		return agent.Identity{}, err
	}
	entry := &keydir.Entry{Path: name, Public: public, Comment: comment}
	return s.offers(entry, key)[0], nil
}

// anyKey returns the TPM's key of a file with the same content, or a new one.
// Nothing is remembered of that: where its file is, only the client knows.
func (s *identities) anyKey(file *keyfile.TPMKey) (agent.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for entry, key := range s.keys {
		if key != nil && reflect.DeepEqual(entry.Key, file) {
			return key, nil
		}
	}
	key, err := s.tpm.Key(file)
	if err != nil {
		return nil, err // not a nil key in an interface
	}
	return limitedKey{key}, nil
}

// limitedKey tells the agent how many wrong PINs the TPM still takes.
type limitedKey struct{ *tpmkey.Key }

// Lockout is what agent.Prompter tells the user before he spends a try.
func (k limitedKey) Lockout(ctx context.Context) (agent.Lockout, error) {
	l, err := k.Key.Lockout(ctx)
	return agent.Lockout{Tries: l.Tries, Wait: l.Wait}, err
}

// sameSlice reports whether a and b are the same slice of the same array.
func sameSlice[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}
