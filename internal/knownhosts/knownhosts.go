// Package knownhosts looks up the keys of a host in known_hosts files
// (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT), as ssh and ssh-add do, and the name
// of a host by its key.
//
// It reports what the files say. Do not use it to decide whether to trust a
// host.
package knownhosts

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// maxFile bounds a file in bytes. The known_hosts of a large site has some ten
// thousand lines of 400 bytes.
const maxFile = 64 << 20

// A Key is a key of a host, or of an authority that certifies the keys of
// hosts.
type Key struct {
	Public ssh.PublicKey
	CA     bool
}

// A NotFoundError reports that no file has a key of the host.
type NotFoundError struct {
	Host   string
	Files  []string // that were searched
	Broken int      // lines that could not be read, and may have had a key
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

// Lookup returns the keys that files have for host, in their order there. A
// port other than 22 is written as [host]:port. A key that is revoked for the
// host anywhere is left out. Lines that cannot be read are skipped, as are
// files that do not exist. If nothing remains, Lookup returns a *NotFoundError.
func Lookup(files []string, host string) ([]Key, error) {
	l := lookup{host: host, revoked: make(map[string]bool)}
	for _, file := range files {
		text, err := read(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading known hosts: %w", err)
		}
		l.read(text)
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

// read reads a file. The path comes from the user, so it may be a FIFO; read
// does not wait for a writer to open it.
func read(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s is larger than %d MiB", file, maxFile>>20)
	}
	return text, err
}

// lookup is what was found so far.
type lookup struct {
	host    string
	keys    []Key
	revoked map[string]bool // by blob
	broken  int
}

func (l *lookup) read(text []byte) {
	for line := range bytes.Lines(text) {
		if line = trim(line); len(line) > 0 && !l.take(line) {
			l.broken++
		}
	}
}

// trim returns nothing for a comment.
func trim(line []byte) []byte {
	line = bytes.Trim(line, " \t\r\n")
	if bytes.HasPrefix(line, []byte("#")) {
		return nil
	}
	return line
}

// take takes the key from a line about the host. It does not parse the keys of
// other lines, because a file may be large. It returns false for a broken line.
func (l *lookup) take(line []byte) bool {
	names, ok := hostField(line)
	if !ok {
		return false
	}
	match, err := matches(l.host, names)
	if err != nil || !match {
		return err == nil
	}
	marker, _, public, _, _, err := ssh.ParseKnownHosts(line)
	switch {
	case err != nil:
		return false
	case marker == "" || marker == "cert-authority":
		l.keys = append(l.keys, Key{Public: public, CA: marker != ""})
	case marker == "revoked":
		l.revoked[string(public.Marshal())] = true
	default:
		return false
	}
	return true
}

// hostField returns the names in a line, which follow the marker if there is
// one.
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

// matches reports whether the names in a line, patterns with commas in between
// or one hash, are for host. Case does not matter.
func matches(host, names string) (found bool, err error) {
	host = strings.ToLower(host)
	if strings.HasPrefix(names, "|") {
		return matchesHash(host, names)
	}
	for pattern := range strings.SplitSeq(strings.ToLower(names), ",") {
		pattern, negated := strings.CutPrefix(pattern, "!")
		if matchesPattern(host, pattern) {
			if negated {
				return false, nil
			}
			found = true
		}
	}
	return found, nil
}

// matchesPattern knows * for any characters and ? for one, but no brackets.
func matchesPattern(host, pattern string) bool {
	if !strings.ContainsAny(pattern, "*?") {
		return host == pattern
	}
	match, err := path.Match(strings.NewReplacer("[", `\[`, `\`, `\\`).Replace(pattern), host)
	return err == nil && match
}

// matchesHash compares with |1|salt|hash, the HMAC-SHA1 of a name.
func matchesHash(host, name string) (bool, error) {
	parts := strings.Split(name, "|")
	if len(parts) != 4 || parts[1] != "1" {
		return false, errors.New("unknown kind of hash")
	}
	salt, err := base64.StdEncoding.DecodeString(parts[2])
	if err == nil && len(salt) != sha1.Size {
		err = errors.New("the salt has a wrong length")
	}
	want, wantErr := base64.StdEncoding.DecodeString(parts[3])
	mac := hmac.New(sha1.New, salt)
	mac.Write([]byte(host))
	return hmac.Equal(mac.Sum(nil), want), errors.Join(err, wantErr)
}
