package keyfile

import (
	"errors"
	"fmt"
)

// ErrFormat is wrapped by every error about the content of a key file, except for the
// errors that name an unsupported algorithm.
var ErrFormat = errors.New("malformed key file")

// errUnsupported is wrapped by the error for a key that may be sound, but whose
// algorithm no SSH key can have. The text names the algorithm.
var errUnsupported = errors.New("unsupported algorithm")

// ErrNotRegular is wrapped by the error for a directory, FIFO, socket or device in
// place of a key file.
var ErrNotRegular = errors.New("not a regular file")

// The errors for files that may be sound, but are not key files that this package
// reads. They wrap ErrFormat.
var (
	// ErrNoKey means that there is no TSS2 PRIVATE KEY block.
	ErrNoKey error = refusal("no TSS2 PRIVATE KEY block")
	// ErrSealed means that the file has sealed data.
	ErrSealed error = refusal("sealed data, not a key")
	// ErrLegacy means that the file has an older format, which the text names.
	ErrLegacy error = refusal("legacy key format")
)

// refusal is an ErrFormat that does not call the file malformed.
type refusal string

func (r refusal) Error() string { return string(r) }

func (r refusal) Unwrap() error { return ErrFormat }

// malformed returns an error that says where a file is damaged. offset counts octets
// from the start of the DER, or of a TPM2B that is parsed alone.
func malformed(field string, offset int, format string, args ...any) error {
	return fmt.Errorf("%w: %s at octet %d: %s", ErrFormat, field, offset, fmt.Sprintf(format, args...))
}

// unsupported names the algorithm of a key that is of no use for SSH.
func unsupported(field string, offset int, what string) error {
	return fmt.Errorf("%w: %s at octet %d is %s", errUnsupported, field, offset, what)
}
