package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/keydir"
	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// source is an adapter over an empty directory, and its log.
func newSource(t *testing.T) (s *source, dir string, log *bytes.Buffer) {
	t.Helper()
	dir, log = t.TempDir(), new(bytes.Buffer)
	index, err := keydir.Open([]string{dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { index.Close() })
	tpm := tpmkey.New(func(context.Context) (tpmkey.Conn, error) { return nil, errors.New("no TPM is needed for this") })
	t.Cleanup(func() { tpm.Close() })
	logger := slog.New(slog.NewTextHandler(log, nil))
	return &source{index: index, tpm: tpm, log: logger, book: parents.NewBook(parents.Store{}, tcti.Address{}, logger)}, dir, log
}

// made returns key files that a real TPM has made, and one that can never sign
// for SSH: its copy with the restricted attribute.
func made(t *testing.T, n int) (files [][]byte, restricted []byte) {
	t.Helper()
	addr, err := tcti.Parse(tpmtest.Start(t).Address())
	if err != nil {
		t.Fatal(err)
	}
	tpm := tpmkey.New(addr.Open)
	defer tpm.Close()
	for range n + 1 {
		key, err := tpm.Create(t.Context(), tpmkey.Template{Algorithm: tpmkey.ECDSAP256})
		if err != nil {
			t.Fatal(err)
		}
		data, err := key.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, data)
		// TPM2B size, type and nameAlg are two octets each, then come the
		// attributes; restricted is bit 16 (Part 2, 8.3), and such a key has
		// to have a scheme, which is not what this is about.
		public := bytes.Clone(key.Pubkey)
		public[7] |= 1
		if k, err := keyfile.NewLoadable(public, key.Privkey, key.Parent, true); err == nil {
			if restricted, err = k.Marshal(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if restricted == nil {
		t.Fatal("no restricted key could be made")
	}
	return files[:n], restricted
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// The Set is the same until a file changes, and keys stay the same beyond that.
func TestIdentitiesAreKept(t *testing.T) {
	t.Parallel()
	files, _ := made(t, 2)
	s, dir, _ := newSource(t)
	empty := s.Identities()
	if empty.Len() != 0 || s.Identities() != empty {
		t.Fatalf("%d identities in an empty directory, or a new Set each time", empty.Len())
	}
	write(t, filepath.Join(dir, "a.tpm"), files[0])
	one := s.Identities()
	if one.Len() != 1 || s.Identities() != one {
		t.Fatalf("%d identities, want 1 and the same Set", one.Len())
	}
	before := s.keys[s.entries[0]]
	write(t, filepath.Join(dir, "b.tpm"), files[1])
	two := s.Identities()
	if two.Len() != 2 || two == one {
		t.Fatalf("%d identities, want 2", two.Len())
	}
	if s.keys[s.entries[0]] != before {
		t.Error("a key whose file did not change was made anew, and lost its saved context")
	}
	if err := os.Remove(filepath.Join(dir, "a.tpm")); err != nil {
		t.Fatal(err)
	}
	if got := s.Identities().Len(); got != 1 || len(s.keys) != 1 {
		t.Errorf("%d identities and %d keys, want 1", got, len(s.keys))
	}
}

// A key that can never be used is named once, and the others are there.
func TestRefusedKeyIsReportedOnce(t *testing.T) {
	t.Parallel()
	files, restricted := made(t, 2)
	s, dir, log := newSource(t)
	write(t, filepath.Join(dir, "bad.tpm"), restricted)
	write(t, filepath.Join(dir, "good.tpm"), files[0])
	for range 3 {
		if got := s.Identities().Len(); got != 1 {
			t.Errorf("%d identities, want 1", got)
		}
	}
	write(t, filepath.Join(dir, "new.tpm"), files[1])
	if got := s.Identities().Len(); got != 2 {
		t.Errorf("%d identities, want 2", got)
	}
	if got := strings.Count(log.String(), "bad.tpm"); got != 1 {
		t.Errorf("named %d times: %s", got, log.String())
	}
}

// Keys of the software TPM say so in every list, certificates too.
func TestSoftwareKeysAreMarked(t *testing.T) {
	t.Parallel()
	files, _ := made(t, 1)
	s, dir, _ := newSource(t)
	s.software = true
	write(t, filepath.Join(dir, "a.tpm"), files[0])
	s.Identities()
	var offered []agent.Identity
	for _, e := range s.entries {
		offered = s.offers(e, s.keys[e])
	}
	if len(offered) != 1 || !strings.HasSuffix(offered[0].Comment, "(not protected: software TPM)") {
		t.Errorf("offered %+v", offered)
	}
}

// A key file that is added is the key of its directory if it is in one, and
// bad ones are refused with the reason.
func TestKeyFile(t *testing.T) {
	t.Parallel()
	files, restricted := made(t, 2)
	s, dir, _ := newSource(t)
	s.software = true
	write(t, filepath.Join(dir, "a.tpm"), files[0])
	s.Identities()
	id, err := s.keyFile("/stick/a", "mine", files[0])
	if err != nil {
		t.Fatal(err)
	}
	if id.Key != s.keys[s.entries[0]] {
		t.Error("a new key for one that is there, whose context is saved")
	}
	if id.Name != "/stick/a" || id.Comment != "mine (not protected: software TPM)" || !bytes.Equal(id.Public.Marshal(), s.entries[0].Public.Marshal()) {
		t.Errorf("%+v", id)
	}
	other, err := s.keyFile("/stick/b", "", files[1])
	if err != nil || other.Key == id.Key || other.Key == nil {
		t.Errorf("%+v, %v", other, err)
	}
	for name, content := range map[string][]byte{"nothing": nil, "text": []byte("text"), "restricted": restricted, "cut": files[0][:100]} {
		if id, err := s.keyFile(name, "", content); err == nil || id.Key != nil {
			t.Errorf("%s: %+v", name, id)
		}
	}
}
