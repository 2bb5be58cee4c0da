package keydir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"github.com/tpm-agent/tpm-agent/keyfile"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

type kind int

const (
	kindOther   kind = iota // no concern of ours
	kindKey                 // a TSS2 PRIVATE KEY block that is sound
	kindPublic              // the text of a .pub file, not looked at yet
	kindBroken              // a key that is not sound, or what cannot be read
	kindUnknown             // there were no means to read it just now
)

// A content is what one reading of a file gave. Its identity is the version
// of the file: it stays as long as reading again gives the same.
type content struct {
	kind   kind
	key    *keyfile.TPMKey
	public ssh.PublicKey // of key
	blob   string        // of public
	line   string        // the first line of a .pub file
	err    error         // of what is broken
}

// read looks at the file at path. It does not block and reads 64 KiB at most
// of what is no key.
func read(path string) *content {
	k, err := keyfile.ReadFile(path)
	if err == nil {
		return keyContent(k)
	}
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) && error(pathErr) == err {
		err = pathErr.Err // a Problem has the path already
	}
	// A name that ends in .tpm says that there is a key. Of all other files
	// only those are worth a word that are broken for certain.
	claims := strings.HasSuffix(path, ".tpm")
	switch {
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return &content{kind: kindUnknown}
	case errors.Is(err, keyfile.ErrNoKey) && strings.HasSuffix(path, ".pub"):
		return readPublic(path)
	case !claims && (errors.Is(err, keyfile.ErrNoKey) || errors.Is(err, keyfile.ErrNotRegular)):
		return &content{kind: kindOther}
	}
	return &content{kind: kindBroken, err: err}
}

func keyContent(k *keyfile.TPMKey) *content {
	p, err := ssh.NewPublicKey(k.Public.Key)
	if err != nil {
		return &content{kind: kindBroken, err: fmt.Errorf("no key for SSH: %w", err)}
	}
	return &content{kind: kindKey, key: k, public: p, blob: string(p.Marshal())}
}

// maxLine bounds the first line of a .pub file in bytes. An RSA certificate
// with many principals has some thousands.
const maxLine = 64 << 10

// readPublic returns the first line of a file that is known to be regular, or
// was a moment ago.
func readPublic(path string) *content {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return &content{kind: kindUnknown}
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return &content{kind: kindUnknown}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxLine))
	if err != nil {
		return &content{kind: kindUnknown}
	}
	data = bytes.TrimLeft(data, " \t\r\n")
	line, _, whole := bytes.Cut(data, []byte("\n"))
	c := &content{kind: kindPublic, line: string(bytes.TrimSpace(line))}
	if !whole {
		c.err = errUnfinished
	}
	return c
}

// errUnfinished marks a line without an end: it may be written just now.
var errUnfinished = errors.New("the line has no end")

// unfinished says whether c may be what a writer has got to so far, given
// that before was there.
func (c *content) unfinished(before *content) bool {
	switch c.kind {
	case kindBroken:
		return errors.Is(c.err, keyfile.ErrFormat)
	case kindPublic:
		return c.err != nil
	case kindOther:
		return before != nil && before.kind != kindOther
	}
	return false
}

// same says whether reading a file again gave nothing new.
func (c *content) same(d *content) bool {
	return c.kind == d.kind && c.line == d.line && c.blob == d.blob &&
		errorText(c.err) == errorText(d.err) && reflect.DeepEqual(c.key, d.key)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
