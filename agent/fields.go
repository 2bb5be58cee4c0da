package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// maxNumber is the longest number that OpenSSH takes, in bytes: that of an RSA
// key of 16384 bits.
const maxNumber = 16384 / 8

// fields takes a message apart, field by field. After the first that is not
// what it should be, all others are empty; err says which one it was. What is
// returned is part of the message, not a copy.
type fields struct {
	rest []byte
	err  error
}

func (f *fields) fail(field string, err error) {
	if f.err == nil {
		f.err = fmt.Errorf("%s: %w", field, err)
	}
	f.rest = nil
}

func (f *fields) octet(field string) byte {
	if len(f.rest) < 1 {
		f.fail(field, errors.New("cut short"))
		return 0
	}
	b := f.rest[0]
	f.rest = f.rest[1:]
	return b
}

// bytes is a string, RFC 4251, section 5.
func (f *fields) bytes(field string) []byte {
	if len(f.rest) < 4 {
		f.fail(field, errors.New("cut short"))
		return nil
	}
	length, rest := binary.BigEndian.Uint32(f.rest), f.rest[4:]
	if uint64(length) > uint64(len(rest)) {
		f.fail(field, fmt.Errorf("should have %d bytes, but only %d follow", length, len(rest)))
		return nil
	}
	f.rest = rest[length:]
	return rest[:length:length]
}

// text is a string that C programs take for one: as OpenSSH has it, a NUL may
// be its last byte, which is left away, and nowhere else.
func (f *fields) text(field string) string {
	b := bytes.TrimSuffix(f.bytes(field), []byte{0})
	if bytes.IndexByte(b, 0) >= 0 {
		f.fail(field, errors.New("has a NUL in it"))
		return ""
	}
	return string(b)
}

// number is an mpint that is not negative, without leading zeros. More of
// these than RFC 4251 allows are taken, as OpenSSH does.
func (f *fields) number(field string) []byte {
	b := f.bytes(field)
	if len(b) > 0 && b[0]&0x80 != 0 {
		f.fail(field, errors.New("negative"))
		return nil
	}
	if len(b) > maxNumber+1 || (len(b) == maxNumber+1 && b[0] != 0) {
		f.fail(field, fmt.Errorf("a number of %d bytes", len(b)))
		return nil
	}
	return bytes.TrimLeft(b, "\x00")
}
