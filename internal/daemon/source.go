package daemon

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/keydir"
	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// source is the agent's Source: what is in the key directories, as keys of one TPM.
// It is the place where files, TPM and protocol meet.
type source struct {
	index    *keydir.Index
	tpm      *tpmkey.TPM
	software bool // the keys of this TPM are marked as not protected
	log      *slog.Logger
	book     *parents.Book

	mu      sync.Mutex
	entries []*keydir.Entry // what set was made of
	set     *agent.Set
	keys    map[*keydir.Entry]*key // nil: refused, and reported
}

var _ agent.Source = (*source)(nil)

// close closes the TPM and the directories.
func (s *source) close() error {
	err := errors.Join(s.tpm.Close(), s.index.Close())
	s.book.Wait()
	return err
}

// Identities returns the same Set until a file changes. A key keeps its TPM's key as
// long as its file does, for that holds its saved context. The index is asked under
// the lock, so that an older answer never replaces a newer one.
func (s *source) Identities() *agent.Set {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries := s.index.Entries()
	if s.set != nil && unsafe.SliceData(entries) == unsafe.SliceData(s.entries) {
		return s.set // the same slice of the same array
	}
	keys := make(map[*keydir.Entry]*key, len(entries))
	memories := s.book.Recall()
	var ids []agent.Identity
	for _, e := range entries {
		k, known := s.keys[e]
		if !known {
			k = s.key(e, memories)
		}
		keys[e] = k
		if k != nil {
			ids = append(ids, s.offers(e, k)...)
		}
	}
	s.entries, s.keys, s.set = entries, keys, agent.NewSet(ids)
	return s.set
}

// key makes the TPM's key of an entry, or logs once why there is none.
func (s *source) key(e *keydir.Entry, memories func(file string) *parents.Memory) *key {
	k, err := s.tpm.Key(e.Key)
	if err != nil {
		s.log.Warn("not offered", "file", e.Path, "cause", err)
		return nil
	}
	record := s.book.Record(memories(e.Path), k, e.Path, e.Public)
	return &key{Key: k, record: record, noted: record.Last}
}

// offers returns the identities of one file: the key, and its certificates.
func (s *source) offers(e *keydir.Entry, k agent.Key) []agent.Identity {
	comment := e.Comment
	if s.software {
		comment += " (" + term.NotProtected + ")"
	}
	ids := []agent.Identity{{Public: e.Public, Comment: comment, Name: e.Path, Key: k}}
	for _, certificate := range e.Certificates {
		ids = append(ids, agent.Identity{Public: certificate, Comment: comment, Name: e.Path, Key: k})
	}
	return ids
}

// keyFile returns the identity of a key file that is added at run time. If it is
// also in a directory, the key is the one from there, whose context the TPM has
// saved already. Else nothing is remembered of it: only the client knows where its
// file is.
func (s *source) keyFile(name, comment string, content []byte) (agent.Identity, error) {
	file, err := keyfile.Parse(content)
	if err != nil {
		return agent.Identity{}, err
	}
	public, err := ssh.NewPublicKey(file.Public.Key)
	if err != nil {
		return agent.Identity{}, fmt.Errorf("no key for SSH: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found *key
	for entry, k := range s.keys {
		if k != nil && reflect.DeepEqual(entry.Key, file) {
			found = k
		}
	}
	if found == nil {
		k, err := s.tpm.Key(file)
		if err != nil {
			return agent.Identity{}, err
		}
		found = &key{Key: k}
	}
	return s.offers(&keydir.Entry{Path: name, Public: public, Comment: comment}, found)[0], nil
}

// key is a key of the TPM as the agent uses it.
type key struct {
	*tpmkey.Key
	record *parents.Record // nil: its file is in no directory

	mu    sync.Mutex
	noted parents.Date // when the storage key was last noted
}

// Sign implements agent.Key. The record is written in the background, once a day.
func (k *key) Sign(ctx context.Context, auth, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := k.Key.Sign(ctx, auth, digest, opts)
	switch {
	case k.record == nil:
	case err != nil:
		k.mu.Lock()
		k.noted = "" // the next success may be news
		k.mu.Unlock()
		err = k.record.Explain(err)
	case k.due():
		k.record.NoteLater(k.Parent())
	}
	return sig, err
}

// due reports, once a day, that the storage key must be noted.
func (k *key) due() bool {
	day := parents.Date(time.Now().Format(time.DateOnly))
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.noted == day || k.Parent().Name == nil {
		return false
	}
	k.noted = day
	return true
}

// Lockout returns what the agent tells the user before a try.
func (k *key) Lockout(ctx context.Context) (consent.Lockout, error) {
	l, err := k.Key.Lockout(ctx)
	return consent.Lockout{Tries: l.Tries, Wait: l.Wait}, err
}
