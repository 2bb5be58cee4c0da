// Package keyfile reads and writes the TPM 2.0 key file, PEM type "TSS2
// PRIVATE KEY", as described by draft-bottomley-tpm-keys-00.
//
// It works on bytes and never uses a TPM. [Parse] checks the whole file, the public
// area included, so later use of the result cannot fail or panic. Reading accepts the
// known mistakes of other writers; writing uses the narrow form that all of them read.
package keyfile

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// The limits of what is read, in octets. The largest file that a TPM 2.0 can make, RSA
// 4096 with a policy, is well under a tenth of them.
const (
	maxFile        = 64 << 10
	maxTPM2B       = 2<<10 + 2
	maxDescription = 1 << 10
	// maxPolicy is how many commands a policy may have. Each one costs a TPM
	// command for every signature. Policies that are in use have two or three.
	maxPolicy = 32
)

// Type is the way in which the key gets into a TPM.
type Type int

// The types of key that Parse returns.
const (
	// Loadable is an object that was created under its parent: TPM2_Load.
	Loadable Type = iota + 1
	// Importable is an object that was wrapped for its parent elsewhere. It needs
	// TPM2_Import first.
	Importable
)

// String returns the name that the draft uses.
func (t Type) String() string {
	switch t {
	case Loadable:
		return "loadable"
	case Importable:
		return "importable"
	}
	return "unknown"
}

// The hierarchies that TPMKey.Parent may name (TPM 2.0 Part 2, 7.4). The parent is then
// the primary key of the draft's template in that hierarchy.
const (
	ParentOwner       uint32 = 0x40000001
	ParentNull        uint32 = 0x40000007
	ParentEndorsement uint32 = 0x4000000b
	ParentPlatform    uint32 = 0x4000000c
)

// The most significant octet of a handle is its type.
const (
	handleTypeMask   uint32 = 0xff000000
	handleTransient  uint32 = 0x80000000
	handlePersistent uint32 = 0x81000000
)

// TPMKey is the content of one key file.
type TPMKey struct {
	Type Type
	// EmptyAuth is TRUE in a file whose key has an empty auth value. It is a hint
	// that several writers get wrong; only the TPM knows.
	EmptyAuth bool
	// Policy has the commands, in order, that satisfy the key's policy digest.
	Policy []Policy
	// Secret is the TPM2B_ENCRYPTED_SECRET for TPM2_Import, its size included.
	// Importable keys have one, loadable keys never.
	Secret []byte
	// AuthPolicy has the signed alternatives to Policy.
	AuthPolicy []AuthPolicy
	// Description is as it is in the file: at most 1 KiB, any octets. Use
	// DisplayDescription to show it.
	Description string
	// RSAParent means that the primary key in a hierarchy is RSA 2048 and not ECC
	// P-256.
	RSAParent bool
	// Parent is a TPM handle: a persistent object (0x81…) or a hierarchy. 0 and
	// transient handles (0x80…) are kept as they are in the file; both mean the
	// owner hierarchy.
	Parent uint32
	// Unknown has the tag numbers, 6 to 30, of optional fields that were skipped.
	Unknown []int
	// Pubkey is the TPM2B_PUBLIC, its size included.
	Pubkey []byte
	// Privkey is the TPM2B_PRIVATE, its size included.
	Privkey []byte
	// Public is the content of Pubkey. Parse and NewLoadable always set it. Marshal
	// writes Pubkey.
	Public *Public
}

// Policy is one command of a TPM policy.
type Policy struct {
	CommandCode   uint32 // TPM_CC
	CommandPolicy []byte // the command's parameters, in the draft's form
}

// AuthPolicy is one signed policy, which TPM2_PolicyAuthorize accepts.
type AuthPolicy struct {
	Name   string // for display, may be empty
	Policy []Policy
}

// NewLoadable returns the key that TPM2_Create made. pubkey and privkey are its
// TPM2B_PUBLIC and TPM2B_PRIVATE, sizes included. parent is a persistent handle or a
// hierarchy other than null, in which a key would be lost at the next reset of the TPM.
// The checks and errors are those of [Parse].
func NewLoadable(pubkey, privkey []byte, parent uint32, emptyAuth bool) (*TPMKey, error) {
	if parent == ParentNull || parent == 0 || parent&handleTypeMask == handleTransient {
		return nil, malformed("parent", 0, "a key with the parent %#08x would not last", parent)
	}
	if err := checkParent(parent, 0); err != nil {
		return nil, err
	}
	if err := checkTPM2B("privkey", privkey, 0); err != nil {
		return nil, err
	}
	public, err := ParsePublic(pubkey)
	if err != nil {
		return nil, err
	}
	return &TPMKey{
		Type:      Loadable,
		EmptyAuth: emptyAuth,
		Parent:    parent,
		Pubkey:    bytes.Clone(pubkey),
		Privkey:   bytes.Clone(privkey),
		Public:    public,
	}, nil
}

// checkParent checks that a key can have this parent: one of the four hierarchies, a
// persistent object, or one of the two old ways to write the owner.
func checkParent(parent uint32, offset int) error {
	switch parent {
	case 0, ParentOwner, ParentNull, ParentEndorsement, ParentPlatform:
		return nil
	}
	switch parent & handleTypeMask {
	case handlePersistent, handleTransient:
		return nil
	}
	return malformed("parent", offset, "%#08x is neither a persistent handle nor a hierarchy", parent)
}

// checkTPM2B checks that b is one sized buffer that is not empty: two octets of size,
// that many octets, and nothing else.
func checkTPM2B(field string, b []byte, offset int) error {
	switch {
	case len(b) > maxTPM2B:
		return malformed(field, offset, "%d octets, at most %d are allowed", len(b), maxTPM2B)
	case len(b) < 2:
		return malformed(field, offset, "%d octets, too short for a size", len(b))
	}
	size := int(b[0])<<8 | int(b[1])
	switch {
	case size != len(b)-2:
		return malformed(field, offset, "the size says %d octets, %d follow", size, len(b)-2)
	case size == 0:
		return malformed(field, offset, "empty")
	}
	return nil
}

// DisplayDescription returns the description in a form that can neither harm a terminal
// nor deceive a reader. Control and format characters, those for the direction of text
// included, are removed; white space becomes a blank; octets that are not UTF-8 become
// U+FFFD.
func (k *TPMKey) DisplayDescription() string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsGraphic(r):
			return r
		}
		return -1
	}, k.Description))
}

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
