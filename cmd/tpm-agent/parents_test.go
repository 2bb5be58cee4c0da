package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// A laptop is a software TPM, a key in a directory, and a user's memory.
type laptop struct {
	*tpmtest.SWTPM
	addr tcti.Address
	log  bytes.Buffer
	dir  string
	file *keyfile.TPMKey
}

func newLaptop(t *testing.T) *laptop {
	t.Helper()
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	l := &laptop{SWTPM: tpmtest.Start(t), dir: t.TempDir()}
	var err error
	if l.addr, err = tcti.Parse(l.Address()); err != nil {
		t.Fatal(err)
	}
	tpm := openTPM(l.addr)
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
	tpm := openTPM(l.addr)
	defer tpm.Close()
	m := newMemory(l.addr, slog.New(slog.NewTextHandler(&l.log, nil)))
	defer m.wait()
	key, public := l.key(t, tpm)
	_, err := m.remember(key, m.recall()(l.path()), l.path(), public).Sign(t.Context(), nil, digest(), crypto.SHA256)
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
	m, err := parents.Default().Read(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// keepNothing puts something else in the place of the memory.
func (l *laptop) keepNothing(t *testing.T) {
	t.Helper()
	path := parents.Default().Path
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func digest() []byte {
	sum := sha256.Sum256([]byte("a message"))
	return sum[:]
}

// TestAgentRemembers checks that the agent remembers the storage key at the
// first signature, and refuses a different one from then on.
func TestAgentRemembers(t *testing.T) {
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
	if hint := hints(err); len(hint) != 1 || !strings.Contains(hint[0], "make a new one") {
		t.Errorf("hints %q", hint)
	}
	if l.log.Len() != 0 {
		t.Errorf("log: %s", &l.log)
	}
}

// TestAgentKnowsDamage checks that a damaged file is reported as such, with a
// hint that fits.
func TestAgentKnowsDamage(t *testing.T) {
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
	if hint := hints(err); len(hint) != 1 || !strings.Contains(hint[0], "backup") {
		t.Errorf("hints %q", hint)
	}
	if p := l.memory(t).Parents()[0]; p.Gone != "" {
		t.Errorf("%+v", p)
	}
}

// TestAgentWithAnotherTPM checks that a TPM at another address does not count as
// one that was cleared.
func TestAgentWithAnotherTPM(t *testing.T) {
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
	if p := known.Parents()[0]; p.Gone != "" || newMemory(l.addr, nil).lost(p) != "" {
		t.Errorf("%+v", p)
	}
}

// TestNothingCanBeKept checks that a failure to write is logged once, and stops
// nothing.
func TestNothingCanBeKept(t *testing.T) {
	l := newLaptop(t)
	l.keepNothing(t)
	tpm := openTPM(l.addr)
	defer tpm.Close()
	m := newMemory(l.addr, slog.New(slog.NewTextHandler(&l.log, nil)))
	for range 3 {
		key, public := l.key(t, tpm)
		if _, err := m.remember(key, m.recall()(l.path()), l.path(), public).Sign(t.Context(), nil, digest(), crypto.SHA256); err != nil {
			t.Error(err)
		}
		m.wait()
	}
	if n := strings.Count(l.log.String(), "storage keys are not remembered"); n != 1 {
		t.Errorf("logged %d times: %s", n, &l.log)
	}
}

// TestTPMClearedWithoutMemory checks that an agent keeps to a storage key within
// a run even if it cannot remember it.
func TestTPMClearedWithoutMemory(t *testing.T) {
	l := newLaptop(t)
	l.keepNothing(t)
	tpm := openTPM(l.addr)
	defer tpm.Close()
	m := newMemory(l.addr, nil)
	key, public := l.key(t, tpm)
	k := m.remember(key, m.recall()(l.path()), l.path(), public)
	sign := func() error {
		defer m.wait()
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

func TestPresence(t *testing.T) {
	l := newLaptop(t)
	_, public := l.key(t, tpmkey.New(nil))
	p := findPresence(t.Context(), l.addr, l.path(), l.file, public, true)
	if p.InTPM != "yes" || p.Remembered != nil || p.At != "owner" || p.Why != "" {
		t.Errorf("%+v", p)
	}
	// What systemd has found at boot is compared.
	boot := filepath.Join(l.dir, "boot")
	compare := func(p presence) string { p.compareBoot(boot); return p.AtBoot }
	if got := compare(p); got != "" {
		t.Errorf("no file: %q", got)
	}
	write(t, boot, []byte("garbage"))
	if got := compare(p); got != "" {
		t.Errorf("garbage: %q", got)
	}
	write(t, boot, l.file.Pubkey) // any public area will do
	if got := compare(p); got != "" {
		t.Errorf("a storage key of another place: %q", got)
	}
	p.At = "0x81000001"
	if got := compare(p); got != "other" {
		t.Errorf("another in the same place: %q", got)
	}
	p.Present = fmt.Sprintf("%x", l.file.Public.Name())
	if got := compare(p); got != "same" {
		t.Errorf("the same: %q", got)
	}
	if p := findPresence(t.Context(), l.addr, l.path(), l.file, public, false); p.InTPM != "unknown" || !strings.Contains(p.Why, "not asked") {
		t.Errorf("%+v", p)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if p := findPresence(ended, l.addr, l.path(), l.file, public, true); p.InTPM != "unknown" || p.Why == "" {
		t.Errorf("%+v", p)
	}
	if _, err := os.Lstat(parents.Default().Path); err == nil {
		t.Error("looking at a key has written a memory")
	}
}

// TestMemoryIsOfOneMachine checks that machines which share a home directory do
// not share entries.
func TestMemoryIsOfOneMachine(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Skip(err)
	}
	for address, want := range map[string]string{
		"auto": "/dev/tpmrm0@" + host, "device:/dev/tpmrm0": "/dev/tpmrm0@" + host, "device:/dev/tpm1": "/dev/tpm1@" + host,
		"software": "software", "swtpm:path=/s": "swtpm:path=/s",
	} {
		addr, err := tcti.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		if got := newMemory(addr, nil).tpm; got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}

// TestAgentReadsOldMemory checks that the agent uses what an earlier version
// remembered beside the key, and takes it over.
func TestAgentReadsOldMemory(t *testing.T) {
	l := newLaptop(t)
	if err := l.sign(t); err != nil {
		t.Fatal(err)
	}
	path := parents.Default().Path
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
