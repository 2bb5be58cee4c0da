package parents

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// OldName is the name of the file that earlier versions kept in each directory
// with keys. It has the same format.
const OldName = ".tpm-agent-parents"

// maxFile bounds what is read and written, in bytes. 10000 keys find room.
const maxFile = 1 << 20

// A Store keeps a user's memory in the file Path.
type Store struct{ Path string }

// Default returns the user's store, $XDG_STATE_HOME/tpm-agent/storage-keys or
// ~/.local/state/tpm-agent/storage-keys.
func Default() Store {
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home := os.Getenv("HOME")
		if home == "" {
			return Store{} // which cannot be used, and says so
		}
		state = filepath.Join(home, ".local", "state")
	}
	return Store{filepath.Join(state, "tpm-agent", "storage-keys")}
}

// Read returns the memory. It includes what the file of an earlier version in
// dir, a directory with keys, tells about keys that are not in the store yet.
// The Memory is never nil; with an error it may be empty.
func (s Store) Read(dir string) (*Memory, error) {
	m, err := read(s.Path)
	if old, oldErr := read(filepath.Join(dir, OldName)); oldErr == nil && len(old.parents) > 0 {
		m.merge(old)
	}
	return m, err
}

// Update reads the memory as Read does, lets change modify it, and writes it if
// change reports that there is news. It may call change twice. Updates by
// several processes at the same time are all kept.
func (s Store) Update(dir string, change func(*Memory) bool) error {
	m, err := s.Read(dir)
	if err != nil || !change(m) {
		return err
	}
	state := filepath.Dir(s.Path)
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	// A lock on the file would not survive its replacement. On file systems
	// that cannot lock a directory the last writer wins.
	dirFile, err := os.Open(state)
	if err != nil {
		return err
	}
	defer dirFile.Close()
	_ = unix.Flock(int(dirFile.Fd()), unix.LOCK_EX)
	if m, err = s.Read(dir); err != nil || !change(m) {
		return err
	}
	return keyfile.Replace(s.Path, m.marshal(), 0o600)
}

// read reads a memory from a regular file of ours or root's. It follows no
// symbolic link and does not block. A missing file is an empty memory.
func read(path string) (*Memory, error) {
	m := new(Memory)
	if path == "" {
		return m, errors.New("neither XDG_STATE_HOME nor HOME is set")
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return m, err
	}
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	if !info.Mode().IsRegular() || uid != 0 && uid != os.Geteuid() {
		return m, fmt.Errorf("%s is not a regular file of yours", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil || len(text) > maxFile {
		return m, err
	}
	return parse(text), nil
}

// heading explains the file to people who open it.
const heading = `# Which storage key of which TPM your SSH keys were loaded under: Name, place,
# TPM, first seen, last seen, gone since, keys. tpm-agent inspect shows it. You
# can remove this file; then nothing is remembered.
`

// linePattern matches a line about a storage key.
var linePattern = regexp.MustCompile(`^([0-9a-f]{4,132}) ([0-9a-z-]{1,32}) (\S+) (\d{4}-\d\d-\d\d) (\d{4}-\d\d-\d\d) (\d{4}-\d\d-\d\d|-)((?: SHA256:[A-Za-z0-9+/]{43}=[0-9a-f]{16})*)\n?$`)

// marshal returns the text of a memory. It leaves out the oldest storage keys
// if there is no room for them.
func (m *Memory) marshal() []byte {
	var b strings.Builder
	for _, p := range m.parents {
		gone := "-"
		if p.Gone != "" {
			gone = string(p.Gone)
		}
		tpm := url.URL{Path: p.TPM} // the path of a socket may contain blanks
		words := []string{hex.EncodeToString(p.Name), p.At, tpm.EscapedPath(), string(p.First), string(p.Last), gone}
		for _, k := range p.Keys {
			words = append(words, k.Fingerprint+"="+k.Private)
		}
		b.WriteString(strings.Join(words, " ") + "\n")
	}
	text := b.String()
	for len(heading)+len(text) > maxFile {
		_, text, _ = strings.Cut(text, "\n")
	}
	return []byte(heading + text)
}

// parse reads the text of a memory. It skips lines that are not valid, and a
// second line about the same storage key.
func parse(text []byte) *Memory {
	m := new(Memory)
	for line := range strings.Lines(string(text)) {
		w := linePattern.FindStringSubmatch(line)
		if w == nil {
			continue
		}
		name, err := hex.DecodeString(w[1])
		tpm, tpmErr := url.PathUnescape(w[3])
		p := &Parent{Name: name, At: w[2], TPM: tpm, First: Date(w[4]), Last: Date(w[5]), Gone: Date(strings.TrimPrefix(w[6], "-"))}
		if err != nil || tpmErr != nil || slices.ContainsFunc(m.parents, p.same) {
			continue
		}
		for _, word := range strings.Fields(w[7]) {
			fingerprint, private, _ := strings.Cut(word, "=")
			p.Keys = append(p.Keys, Key{fingerprint, private})
		}
		m.parents = append(m.parents, p)
	}
	return m
}
