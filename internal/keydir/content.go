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

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

type kind int

const (
	kindOther   kind = iota // nothing to do with a TPM
	kindKey                 // a valid TSS2 PRIVATE KEY block
	kindPublic              // a .pub file, valid or not
	kindBroken              // a key that is not valid, or a file that cannot be read
	kindUnknown             // there were no resources to read it now
)

// A content is the result of reading a file. It identifies a version of the
// file: it stays as long as reading again gives the same.
type content struct {
	kind    kind
	key     *keyfile.TPMKey
	public  ssh.PublicKey // of a key, or from a .pub file
	blob    string        // of public, or of the key that it certifies
	line    string        // the first line of a .pub file
	comment string        // in that line
	partial bool          // that line has no end yet
	err     error         // what is wrong with it
}

// read reads the file at path. It does not block, and reads at most 64 KiB of a
// file that is not a key.
func read(path string) *content {
	k, err := keyfile.ReadFile(path)
	if err == nil {
		return keyContent(k)
	}
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) && error(pathErr) == err {
		err = pathErr.Err // a Problem has the path already
	}
	// A name that ends in .tpm announces a key. Other files are reported only
	// if they are certainly broken keys.
	named := strings.HasSuffix(path, ".tpm")
	switch {
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return &content{kind: kindUnknown}
	case errors.Is(err, keyfile.ErrNoKey) && strings.HasSuffix(path, ".pub"):
		return readPublic(path)
	case !named && (errors.Is(err, keyfile.ErrNoKey) || errors.Is(err, keyfile.ErrNotRegular)):
		return &content{kind: kindOther}
	}
	return &content{kind: kindBroken, err: err}
}

func keyContent(k *keyfile.TPMKey) *content {
	p, err := ssh.NewPublicKey(k.Public.Key)
	if err != nil {
		return &content{kind: kindBroken, err: fmt.Errorf("not a key for SSH: %w", err)}
	}
	return &content{kind: kindKey, key: k, public: p, blob: string(p.Marshal())}
}

// maxLine bounds the first line of a .pub file in bytes. An RSA certificate
// with many principals has some thousands.
const maxLine = 64 << 10

// readPublic reads the first line of a .pub file, which was a regular file a
// moment ago.
func readPublic(path string) *content {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return &content{kind: kindUnknown}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxLine))
	if err != nil {
		return &content{kind: kindUnknown}
	}
	line, _, whole := bytes.Cut(bytes.TrimLeft(data, " \t\r\n"), []byte("\n"))
	c := &content{kind: kindPublic, line: string(line), partial: !whole}
	if c.public, c.comment, _, _, c.err = ssh.ParseAuthorizedKey(line); c.err != nil {
		return c
	}
	c.blob = string(c.public.Marshal())
	if cert, ok := c.public.(*ssh.Certificate); ok {
		c.blob = string(cert.Key.Marshal())
	}
	return c
}

// unfinished reports whether a writer may have got only this far, given what
// was there before.
func (c *content) unfinished(before *file) bool {
	switch c.kind {
	case kindBroken:
		return errors.Is(c.err, keyfile.ErrFormat)
	case kindPublic:
		return c.partial
	case kindOther:
		return before != nil && before.content.kind != kindOther
	}
	return false
}

// same reports whether reading a file again gave nothing new.
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
