package daemon

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// laptop is a software TPM with a memory and a key in a directory.
type laptop struct {
	*tpmtest.SWTPM
	addr  tcti.Address
	log   bytes.Buffer
	dir   string
	store parents.Store
	file  *keyfile.TPMKey
}

func newLaptop(t *testing.T) *laptop {
	t.Helper()
	l := &laptop{SWTPM: tpmtest.Start(t), dir: t.TempDir(), store: parents.Store{Path: filepath.Join(t.TempDir(), "state", "storage-keys")}}
	var err error
	if l.addr, err = tcti.Parse(l.Address()); err != nil {
		t.Fatal(err)
	}
	tpm := tpmkey.New(l.addr.Open)
	defer tpm.Close()
	if l.file, err = tpm.Create(t.Context(), tpmkey.Template{Algorithm: tpmkey.ECDSAP256}); err != nil {
		t.Fatal(err)
	}
	return l
}

// sign signs with a new agent's key, and returns the error when everything has
// been written.
func (l *laptop) sign(t *testing.T) error {
	t.Helper()
	tpm := tpmkey.New(l.addr.Open)
	defer tpm.Close()
	m := parents.NewBook(l.store, l.addr, slog.New(slog.NewTextHandler(&l.log, nil)))
	defer m.Wait()
	key, public := l.key(t, tpm)
	_, err := remembered(m, key, l.path(), public).Sign(t.Context(), nil, digest(), crypto.SHA256)
	return err
}

func (l *laptop) key(t *testing.T, tpm *tpmkey.TPM) (*tpmkey.Key, ssh.PublicKey) {
	t.Helper()
	key, err := tpm.Key(l.file)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(l.file.Public.Key)
	if err != nil {
		t.Fatal(err)
	}
	return key, public
}

func (l *laptop) path() string { return filepath.Join(l.dir, "key.tpm") }

func (l *laptop) memory(t *testing.T) *parents.Memory {
	t.Helper()
	m, err := l.store.Read(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func today() parents.Date { return parents.Date(time.Now().Format(time.DateOnly)) }

// keepNothing puts something else in the place of the memory.
func (l *laptop) keepNothing(t *testing.T) {
	t.Helper()
	path := l.store.Path
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func digest() []byte {
	sum := sha256.Sum256([]byte("a message"))
	return sum[:]
}

// The agent remembers at the first signature, and keeps to it from then on.
func TestAgentRemembers(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	for range 2 {
		if err := l.sign(t); err != nil {
			t.Fatal(err)
		}
	}
	list := l.memory(t).Parents()
	if len(list) != 1 || len(list[0].Keys) != 1 || list[0].At != "owner" || list[0].TPM != l.Address() || list[0].Last != today() {
		t.Fatalf("%+v", list)
	}
	l.Replace()
	err := l.sign(t)
	var changed *tpmkey.ParentChangedError
	if !errors.As(err, &changed) || !strings.Contains(err.Error(), "its storage key changed on "+string(today())) {
		t.Fatalf("%v", err)
	}
	if !bytes.Equal(changed.Want, list[0].Name) {
		t.Errorf("%x, want %x", changed.Want, list[0].Name)
	}
	list = l.memory(t).Parents()
	if len(list) != 2 || list[0].Gone != today() || list[1].Gone != "" || len(list[1].Keys) != 0 {
		t.Errorf("%+v", list)
	}
	if hint := hintOf(err); !strings.Contains(hint, "make a new one") {
		t.Errorf("hint %q", hint)
	}
	if l.log.Len() != 0 {
		t.Errorf("log: %s", &l.log)
	}
}

// A file that was damaged is said to be, with a way out that fits.
func TestAgentKnowsDamage(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	if err := l.sign(t); err != nil {
		t.Fatal(err)
	}
	l.file.Privkey = bytes.Clone(l.file.Privkey)
	l.file.Privkey[20] ^= 1
	err := l.sign(t)
	if !errors.Is(err, tpmkey.ErrDamaged) || strings.Contains(err.Error(), "another TPM") {
		t.Errorf("%v", err)
	}
	if hint := hintOf(err); !strings.Contains(hint, "backup") {
		t.Errorf("hint %q", hint)
	}
	if p := l.memory(t).Parents()[0]; p.Gone != "" {
		t.Errorf("%+v", p)
	}
}

// Another TPM at another address is not one that was cleared.
func TestAgentWithAnotherTPM(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	if err := l.sign(t); err != nil {
		t.Fatal(err)
	}
	first := l.Address()
	l.SWTPM = tpmtest.Start(t)
	var err error
	if l.addr, err = tcti.Parse(l.Address()); err != nil {
		t.Fatal(err)
	}
	if err := l.sign(t); err == nil || !strings.Contains(err.Error(), "made in another TPM ("+first+")") {
		t.Errorf("%v", err)
	}
	known := l.memory(t)
	if p := known.Parents()[0]; p.Gone != "" || parents.NewBook(l.store, l.addr, nil).Lost(p) != "" {
		t.Errorf("%+v", p)
	}
}

// What cannot be written is told once, and stops nothing.
func TestNothingCanBeKept(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.keepNothing(t)
	tpm := tpmkey.New(l.addr.Open)
	defer tpm.Close()
	m := parents.NewBook(l.store, l.addr, slog.New(slog.NewTextHandler(&l.log, nil)))
	for range 3 {
		key, public := l.key(t, tpm)
		if _, err := remembered(m, key, l.path(), public).Sign(t.Context(), nil, digest(), crypto.SHA256); err != nil {
			t.Error(err)
		}
		m.Wait()
	}
	if n := strings.Count(l.log.String(), "storage keys are not remembered"); n != 1 {
		t.Errorf("told %d times: %s", n, &l.log)
	}
}

// Within a run no memory is needed to keep to a storage key.
func TestTPMClearedWithoutMemory(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.keepNothing(t)
	tpm := tpmkey.New(l.addr.Open)
	defer tpm.Close()
	m := parents.NewBook(l.store, l.addr, nil)
	key, public := l.key(t, tpm)
	k := remembered(m, key, l.path(), public)
	sign := func() error {
		defer m.Wait()
		_, err := k.Sign(t.Context(), nil, digest(), crypto.SHA256)
		return err
	}
	if err := sign(); err != nil {
		t.Fatal(err)
	}
	l.Replace()
	err := sign()
	var changed *tpmkey.ParentChangedError
	if !errors.As(err, &changed) { // the line may have broken in the middle
		err = sign()
	}
	if !errors.As(err, &changed) || !strings.Contains(err.Error(), "made in another TPM, or this TPM was cleared: its storage key has changed") {
		t.Errorf("%v", err)
	}
}

// TestAgentReadsOldMemory checks that the agent uses what an earlier version
// remembered beside the key, and takes it over.
func TestAgentReadsOldMemory(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	if err := l.sign(t); err != nil {
		t.Fatal(err)
	}
	path := l.store.Path
	old := filepath.Join(l.dir, parents.OldName)
	if err := os.Rename(path, old); err != nil {
		t.Fatal(err)
	}
	l.Replace()
	var changed *tpmkey.ParentChangedError
	if err := l.sign(t); !errors.As(err, &changed) {
		t.Errorf("%v", err)
	}
	if err := os.Remove(old); err != nil {
		t.Fatal(err)
	}
	if list := l.memory(t).Parents(); len(list) != 2 || len(list[0].Keys) != 1 || list[0].Gone != today() {
		t.Errorf("%+v", list)
	}
}

// remembered is the key of a file as the agent has it.
func remembered(m *parents.Book, k *tpmkey.Key, path string, public ssh.PublicKey) *key {
	return &key{Key: k, record: m.Record(m.Recall()(path), k, path, public)}
}

// hintOf returns the hint that the user reads.
func hintOf(err error) string {
	var report strings.Builder
	term.Report(&report, "", err)
	_, hint, _ := strings.Cut(report.String(), "\nhint: ")
	return hint
}
