package main

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// memory is what is remembered of the storage keys of one TPM.
type memory struct {
	store parents.Store
	tpm   string       // its address
	log   *slog.Logger // for what cannot be kept; nil: it is not logged

	writing sync.WaitGroup
	mu      sync.Mutex // held while the file is written
	failed  bool       // nothing can be kept, which was logged
}

func newMemory(addr tcti.Address, log *slog.Logger) *memory {
	if absolute, err := addr.Abs(); err == nil {
		addr = absolute
	}
	tpm := addr.String()
	if !addr.Software() {
		// Machines that share a home directory have a TPM each.
		tpm = strings.TrimPrefix(tpm, "device:")
		if tpm == "auto" {
			tpm = "/dev/tpmrm0"
		}
		if host, err := os.Hostname(); err == nil {
			tpm += "@" + host
		}
	}
	return &memory{store: parents.Default(), tpm: tpm, log: log}
}

// wait waits for what is being written.
func (m *memory) wait() { m.writing.Wait() }

// recall reads the memory, once for each directory: earlier versions kept a file
// in each.
func (m *memory) recall() func(file string) *parents.Memory {
	known := make(map[string]*parents.Memory)
	return func(file string) *parents.Memory {
		dir := filepath.Dir(file)
		if known[dir] == nil {
			// One that cannot be read is empty.
			known[dir], _ = m.store.Read(dir)
		}
		return known[dir]
	}
}

// change writes to the memory; dir is where the key is. If it cannot, it logs
// that once.
func (m *memory) change(dir string, change func(*parents.Memory) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.store.Update(dir, change)
	if err != nil && m.log != nil && !m.failed {
		m.failed = true
		m.log.Info("storage keys are not remembered", "file", m.store.Path, "cause", err)
	}
}

func (m *memory) parent(p tpmkey.Parent) parents.Parent {
	return parents.Parent{Name: p.Name, At: p.At, TPM: m.tpm}
}

func today() parents.Date { return parents.DateOf(time.Now()) }

// rememberedKey is a key whose storage key is remembered.
type rememberedKey struct {
	limitedKey
	memory *memory
	dir    string // that its file is in
	id     parents.Key

	mu    sync.Mutex
	noted parents.Date // when the storage key was last noted
}

// remember gives a key what is remembered of it. From then on a storage key of
// another Name is refused.
func (m *memory) remember(key *tpmkey.Key, known *parents.Memory, file string, public ssh.PublicKey) *rememberedKey {
	k := &rememberedKey{limitedKey: limitedKey{key}, memory: m, dir: filepath.Dir(file), id: parents.KeyOf(public, key.File())}
	if p, changed := known.Of(k.id, m.tpm); p != nil {
		key.Pin(p.Name, changed)
	}
	return k
}

// Sign implements agent.Key. What it learns about the storage key is written
// while nobody waits for it.
func (k *rememberedKey) Sign(ctx context.Context, auth, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := k.Key.Sign(ctx, auth, digest, opts)
	if err != nil && gone(err) {
		return nil, k.missed(err)
	}
	if k.due() {
		k.memory.writing.Go(k.note)
	}
	return sig, err
}

// due says, once a day, that the storage key is to be noted.
func (k *rememberedKey) due() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ParentName() == nil || k.noted == today() {
		return false
	}
	k.noted = today()
	return true
}

// note remembers the storage key that the key has just been loaded under.
func (k *rememberedKey) note() {
	k.memory.change(k.dir, func(m *parents.Memory) bool { return m.Seen(k.memory.parent(k.Parent()), k.id, today()) })
}

// gone reports whether err is about a storage key that is not there.
func gone(err error) bool {
	return errors.Is(err, tpmkey.ErrWrongTPM) || errors.Is(err, tpmkey.ErrNoParent)
}

// missed remembers that the key's storage key is not there any more, and gives
// the error the words for it: since when, as far as that is known.
func (k *rememberedKey) missed(err error) error {
	var changed *tpmkey.ParentChangedError
	errors.As(err, &changed)
	var was *parents.Parent
	k.memory.change(k.dir, func(m *parents.Memory) (news bool) {
		was, _ = m.Of(k.id, k.memory.tpm)
		if was != nil && changed != nil && !bytes.Equal(was.Name, changed.Want) {
			was = nil // somebody has written a new one meanwhile
		}
		if was != nil {
			news = m.Missed(was.Name, k.memory.tpm, today())
		}
		if changed != nil {
			news = m.Seen(k.memory.parent(changed.Have), parents.Key{}, today()) || news
		}
		return news
	})
	if was == nil {
		return err
	}
	return &goneError{"loading the key: " + k.memory.history(was), err}
}

// goneError is an error in words that say what is remembered.
type goneError struct {
	words string
	err   error
}

func (e *goneError) Error() string { return e.words }
func (e *goneError) Unwrap() error { return e.err }

// history says what became of a storage key that the TPM does not have.
func (m *memory) history(p *parents.Parent) string {
	switch {
	case p.TPM != m.tpm:
		return fmt.Sprintf("made in another TPM (%s), or that TPM was cleared: its storage key was last seen there on %s", plain(p.TPM), p.Last)
	}
	when := fmt.Sprintf("between %s and %s", p.Last, p.Gone)
	if p.Last == p.Gone {
		when = "on " + string(p.Last)
	}
	if isHandle(p.At) {
		return fmt.Sprintf("its storage key is not at %s any more: it was taken away or replaced %s, or this TPM was cleared, or is another one", p.At, when)
	}
	return "made in another TPM, or this TPM was cleared: its storage key changed " + when
}

// isHandle says that a place is a persistent handle. What is there can change
// without the TPM being cleared.
func isHandle(place string) bool { return strings.HasPrefix(place, "0x") }

// lost is what became of a key's storage key, "" if it is there as far as is
// remembered.
func (m *memory) lost(p *parents.Parent) string {
	if p == nil || p.Gone == "" || p.TPM != m.tpm {
		return ""
	}
	return m.history(p)
}

// storageKeyInfo is what is remembered of a key's storage key, as data.
type storageKeyInfo struct {
	Name  string       `json:"name"`
	Place string       `json:"place"`
	TPM   string       `json:"tpm"`
	First parents.Date `json:"first_seen"`
	Last  parents.Date `json:"last_seen"`
	Gone  parents.Date `json:"gone_since,omitempty"`
}

func infoOf(p *parents.Parent) *storageKeyInfo {
	if p == nil {
		return nil
	}
	return &storageKeyInfo{fmt.Sprintf("%x", p.Name), p.At, plain(p.TPM), p.First, p.Last, p.Gone}
}

// storageKey asks for the storage key under which a key is to be put into dir, and
// returns its handle and its Name, which the key is then held to. It must be the
// one that is remembered: where it was asked for, and where it is found, which is
// another place if the owner hierarchy has a password. known says that it need not
// be.
func (m *memory) storageKey(ctx context.Context, tpm *tpmkey.TPM, dir string, asked uint32, known bool) (handle uint32, name []byte, err error) {
	key, handle, err := tpm.StorageKey(ctx, asked)
	if err != nil {
		return 0, nil, noStorageKey(err)
	}
	for _, at := range []uint32{asked, handle} {
		if err := m.check(dir, placeOf(at), key.Name()); err != nil && !known {
			return 0, nil, err
		}
	}
	return handle, key.Name(), nil
}

// placeOf is the place of a storage key, in the words of [tpmkey.Parent].
func placeOf(handle uint32) string {
	switch handle {
	case keyfile.ParentOwner:
		return "owner"
	case keyfile.ParentEndorsement:
		return "endorsement"
	}
	return fmt.Sprintf("%#x", handle)
}

// noStorageKey adds the way on where nothing is at the handle that was asked for.
func noStorageKey(err error) error {
	if errors.Is(err, tpmkey.ErrNoParent) {
		return withHint(err, "tpm2_getcap handles-persistent lists what is there; without --parent it is the owner's storage key, which every TPM has")
	}
	return err
}

// check refuses a storage key that is not the one that was seen last in a place.
func (m *memory) check(dir, place string, name []byte) error {
	remembered, _ := m.store.Read(dir) // one that cannot be read is empty
	last := remembered.Latest(place, m.tpm)
	if last == nil || bytes.Equal(last.Name, name) {
		return nil
	}
	return anotherTPM(last.Last, &tpmkey.ParentChangedError{Want: last.Name, Have: tpmkey.Parent{Name: name, At: place}})
}

// anotherTPM refuses to make a key in a TPM that is not the one of before. Only
// the user can know whether that is right; who sits on the bus and offers a
// storage key of their own would get the PIN, or the private key itself.
func anotherTPM(last parents.Date, changed *tpmkey.ParentChangedError) error {
	which, because := "of this TPM", "it is another TPM, or was cleared since"
	if isHandle(changed.Have.At) {
		which, because = "at "+changed.Have.At, "it was replaced, or it is another TPM, or was cleared since"
	}
	return withHint(&goneError{fmt.Sprintf("the storage key %s is not the one of %s: %s", which, last, because), changed},
		"if you know that it was, go on with --new-tpm (the keys of before do not work in it); if not, do not: something may stand between you and the TPM")
}

// learn remembers the storage key of a key that was tried and saved.
func (m *memory) learn(dir string, key *newKey) {
	id := parents.KeyOf(key.public, key.tried.File())
	m.change(dir, func(memory *parents.Memory) bool { return memory.Seen(m.parent(key.tried.Parent()), id, today()) })
}
