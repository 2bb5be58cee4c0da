// Package knownhosts looks up the keys of a host in known_hosts files
// (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT), as ssh and ssh-add do, and the name
// of a host by its key.
//
// It is not for deciding whether to trust a host that one talks to: it lists
// what the files say.
package knownhosts

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// maxFile bounds a file in bytes: what is beyond is an error, not left out.
// The known_hosts of a large site has some ten thousand lines of 400 bytes.
const maxFile = 64 << 20

// maxLine bounds a line in bytes. A longer one is a broken one.
const maxLine = 64 << 10

// A Key is a key of a host, or of an authority that certifies the keys of
// hosts.
type Key struct {
	Public ssh.PublicKey
	CA     bool
}

// A NotFoundError says that no file has a key of the host.
type NotFoundError struct {
	Host   string
	Files  []string // where it was looked for
	Broken int      // lines that may have had one and could not be read
}

func (e *NotFoundError) Error() string {
	text := fmt.Sprintf("no host keys found for %q in %s", e.Host, strings.Join(e.Files, ", "))
	switch e.Broken {
	case 0:
		return text
	case 1:
		return text + " (one line could not be read)"
	}
	return fmt.Sprintf("%s (%d lines could not be read)", text, e.Broken)
}

// Lookup returns the keys that files have for host, in the order in which
// they stand there; ports other than 22 are written as [host]:port. A key that
// is marked as revoked for the host is left out wherever else it stands. Lines
// that cannot be read are passed over, and so are files that do not exist. It
// is a *NotFoundError if nothing remains.
func Lookup(files []string, host string) ([]Key, error) {
	l := lookup{host: host, revoked: make(map[string]bool)}
	for _, path := range files {
		if err := l.readFile(path); err != nil {
			return nil, fmt.Errorf("reading known hosts: %w", err)
		}
	}
	var keys []Key
	for _, k := range l.keys {
		if !l.revoked[string(k.Public.Marshal())] {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, &NotFoundError{host, files, l.broken}
	}
	return keys, nil
}

// lookup is what was found so far.
type lookup struct {
	host    string
	keys    []Key
	revoked map[string]bool // by blob
	broken  int
}

// readFile does not wait for a FIFO: the path is the user's, but may be
// mistaken.
func (l *lookup) readFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	switch info, err := f.Stat(); {
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a directory", path)
	case info.Size() > maxFile:
		return fmt.Errorf("%s has more than %d MiB", path, maxFile>>20)
	}
	if err := l.read(f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

var errTooLong = fmt.Errorf("more than %d MiB", maxFile>>20)

// read looks at each line.
func (l *lookup) read(r io.Reader) error { return readLines(r, l.line, func() { l.broken++ }) }

// readLines calls line for each line, with its end, and tooLong for one that
// is longer than maxLine.
func readLines(r io.Reader, line func([]byte), tooLong func()) error {
	limited := &io.LimitedReader{R: r, N: maxFile + 1}
	b := bufio.NewReaderSize(limited, maxLine)
	for {
		text, err := b.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			tooLong()
			text, err = nil, skipLine(b)
		}
		if limited.N == 0 {
			return errTooLong
		}
		line(text)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func skipLine(b *bufio.Reader) error {
	for {
		if _, err := b.ReadSlice('\n'); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// line takes the key of a line that is about the host. Other lines are not
// looked at beyond their names, which is what makes a large file cheap.
func (l *lookup) line(line []byte) {
	line = bytes.Trim(line, " \t\r\n")
	if len(line) == 0 || line[0] == '#' {
		return
	}
	names, ok := hostField(line)
	if !ok {
		l.broken++
		return
	}
	match, err := matches(l.host, names)
	if err == nil && !match {
		return
	}
	marker, _, public, _, _, parseErr := ssh.ParseKnownHosts(line)
	if err != nil || parseErr != nil {
		l.broken++
		return
	}
	l.take(marker, public)
}

func (l *lookup) take(marker string, public ssh.PublicKey) {
	switch marker {
	case "":
		l.keys = append(l.keys, Key{Public: public})
	case "cert-authority":
		l.keys = append(l.keys, Key{Public: public, CA: true})
	case "revoked":
		l.revoked[string(public.Marshal())] = true
	default:
		l.broken++
	}
}

// hostField returns the names of a line, which come behind the marker if there
// is one.
func hostField(line []byte) (names string, ok bool) {
	fields := bytes.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(fields) > 0 && fields[0][0] == '@' {
		fields = fields[1:]
	}
	if len(fields) < 3 {
		return "", false
	}
	return string(fields[0]), true
}
