package keyfile

import (
	"errors"
	"fmt"
)

// ErrFormat is wrapped by every error about the content of a key file, except
// for ErrUnsupported.
var ErrFormat = errors.New("malformed key file")

// ErrUnsupported is wrapped by the error for a key which may well be sound but
// whose algorithm no SSH key can have. The text names the algorithm. It does
// not wrap ErrFormat.
var ErrUnsupported = errors.New("unsupported algorithm")

// ErrNotRegular is wrapped by the error for a directory, FIFO, socket or
// device in place of a key file.
var ErrNotRegular = errors.New("not a regular file")

// The errors for what is not a key file that this package reads, though it may
// be sound. All of them wrap ErrFormat.
var (
	// ErrNoKey: there is no TSS2 PRIVATE KEY block at all.
	ErrNoKey error = refusal("no TSS2 PRIVATE KEY block")
	// ErrSealed: the file has sealed data.
	ErrSealed error = refusal("sealed data, not a key")
	// ErrLegacy: the file is of a format before this one, which the text names.
	ErrLegacy error = refusal("legacy key format")
)

// refusal is an ErrFormat that does not call the file malformed.
type refusal string

func (r refusal) Error() string { return string(r) }

func (r refusal) Unwrap() error { return ErrFormat }

// formatError says where a file is damaged, and how.
type formatError struct {
	field  string
	offset int // octets from the start of the DER, or of the TPM2B alone
	reason string
}

func (e *formatError) Error() string {
	return fmt.Sprintf("%v: %s at octet %d: %s", ErrFormat, e.field, e.offset, e.reason)
}

func (e *formatError) Unwrap() error { return ErrFormat }

func malformed(field string, offset int, format string, args ...any) error {
	return &formatError{field, offset, fmt.Sprintf(format, args...)}
}

// unsupported names the algorithm of a key that is of no use for SSH.
func unsupported(field string, offset int, what string) error {
	return fmt.Errorf("%w: %s at octet %d is %s", ErrUnsupported, field, offset, what)
}
