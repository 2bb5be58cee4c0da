package parents

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// A Book reads and writes what the memories say of one TPM.
type Book struct {
	TPM string       // its address, with the host's name if it is a chip
	log *slog.Logger // for what cannot be kept; nil: it is not reported

	store   Store
	writing sync.WaitGroup
	mu      sync.Mutex // held while the file is written
	failed  bool       // a failure was reported
}

// NewBook returns the Book of the TPM at addr.
func NewBook(store Store, addr tcti.Address, log *slog.Logger) *Book {
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
	return &Book{TPM: tpm, log: log, store: store}
}

// Wait waits until everything is written.
func (b *Book) Wait() { b.writing.Wait() }

// Recall returns a function that reads the memory, once for each directory: earlier
// versions kept a file in each.
func (b *Book) Recall() func(file string) *Memory {
	known := make(map[string]*Memory)
	return func(file string) *Memory {
		dir := filepath.Dir(file)
		if known[dir] == nil {
			known[dir], _ = b.store.Read(dir) // one that cannot be read is empty
		}
		return known[dir]
	}
}

// Of returns what a memory says of the storage key of a key, or nil.
func (b *Book) Of(m *Memory, public ssh.PublicKey, key *keyfile.TPMKey) *Parent {
	p, _ := m.Of(KeyOf(public, key), b.TPM)
	return p
}

// change writes to the memory; dir is where the key is. It reports a failure once.
func (b *Book) change(dir string, change func(*Memory) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.store.Update(dir, change)
	if err != nil && b.log != nil && !b.failed {
		b.failed = true
		b.log.Info("storage keys are not remembered", "file", b.store.Path, "cause", err)
	}
}

// Learn remembers the storage key under which a key in dir was loaded.
func (b *Book) Learn(dir string, id Key, under tpmkey.Parent) {
	b.change(dir, func(m *Memory) bool {
		return m.Seen(Parent{Name: under.Name, At: under.At, TPM: b.TPM}, id, Date(time.Now().Format(time.DateOnly)))
	})
}

// A Record holds the memory of one key.
type Record struct {
	Last Date // when what is so now was last noted; "": it was not
	book *Book
	dir  string
	id   Key
}

// Record returns the record of a key in a file, and holds the key to it: from then
// on a storage key with a different Name is refused.
func (b *Book) Record(known *Memory, key *tpmkey.Key, file string, public ssh.PublicKey) *Record {
	r := &Record{book: b, dir: filepath.Dir(file), id: KeyOf(public, key.File())}
	if p, changed := known.Of(r.id, b.TPM); p != nil {
		key.Pin(p.Name, changed)
		if p.Gone == "" && !changed {
			r.Last = p.Last
		}
	}
	return r
}

// Note remembers the storage key that the key has just been loaded under.
func (r *Record) Note(under tpmkey.Parent) { r.book.Learn(r.dir, r.id, under) }

// NoteLater does the same in the background; see [Book.Wait].
func (r *Record) NoteLater(under tpmkey.Parent) { r.book.writing.Go(func() { r.Note(under) }) }

// IsGone reports whether err says that a storage key is not in the TPM.
func IsGone(err error) bool {
	return errors.Is(err, tpmkey.ErrWrongTPM) || errors.Is(err, tpmkey.ErrNoParent)
}

// Explain returns err. If err reports that the key's storage key is gone, Explain
// records this, and returns an error with the dates between which it disappeared,
// if they are remembered.
func (r *Record) Explain(err error) error {
	if !IsGone(err) {
		return err
	}
	var changed *tpmkey.ParentChangedError
	errors.As(err, &changed)
	var was *Parent
	today := Date(time.Now().Format(time.DateOnly))
	r.book.change(r.dir, func(m *Memory) (news bool) {
		was, _ = m.Of(r.id, r.book.TPM)
		if was != nil && changed != nil && !bytes.Equal(was.Name, changed.Want) {
			was = nil // another process has written a new one meanwhile
		}
		if was != nil {
			news = m.Missed(was.Name, r.book.TPM, today)
		}
		if changed != nil {
			have := Parent{Name: changed.Have.Name, At: changed.Have.At, TPM: r.book.TPM}
			news = m.Seen(have, Key{}, today) || news
		}
		return news
	})
	if was == nil {
		return err
	}
	return &historyError{"loading the key: " + r.book.history(was), err}
}

// historyError is an error whose message comes from the remembered history.
type historyError struct {
	words string
	err   error
}

func (e *historyError) Error() string { return e.words }
func (e *historyError) Unwrap() error { return e.err }

// history describes what happened to a storage key that the TPM does not have.
func (b *Book) history(p *Parent) string {
	if p.TPM != b.TPM {
		return fmt.Sprintf("made in another TPM (%s), or that TPM was cleared: its storage key was last found there on %s", p.TPM, p.Last)
	}
	when := fmt.Sprintf("between %s and %s", p.Last, p.Gone)
	if p.Last == p.Gone {
		when = "on " + string(p.Last)
	}
	if isHandle(p.At) {
		return fmt.Sprintf("its storage key is no longer at %s: it was removed or replaced %s, or this TPM was cleared or is a different one", p.At, when)
	}
	return "made in another TPM, or this TPM was cleared: its storage key changed " + when
}

// isHandle reports whether a place is a persistent handle. What is there can change
// without the TPM being cleared.
func isHandle(place string) bool { return strings.HasPrefix(place, "0x") }

// Lost describes what happened to a key's storage key. It returns "" unless the
// storage key is remembered as gone.
func (b *Book) Lost(p *Parent) string {
	if p == nil || p.Gone == "" || p.TPM != b.TPM {
		return ""
	}
	return b.history(p)
}

// Check refuses a storage key that differs from the last one recorded for a place.
// Only the user can know whether that is right: an attacker on the bus who presents
// a storage key of their own would get the PIN, or the private key itself.
func (b *Book) Check(dir, place string, name []byte) error {
	remembered, _ := b.store.Read(dir) // one that cannot be read is empty
	last := remembered.Latest(place, b.TPM)
	if last == nil || bytes.Equal(last.Name, name) {
		return nil
	}
	which, because := "of this TPM", "it is another TPM, or was cleared since"
	if isHandle(place) {
		which, because = "at "+place, "it was replaced, or it is another TPM, or was cleared since"
	}
	return &historyError{
		fmt.Sprintf("the storage key %s is not the one of %s: %s", which, last.Last, because),
		&tpmkey.ParentChangedError{Want: last.Name, Have: tpmkey.Parent{Name: name, At: place}},
	}
}
