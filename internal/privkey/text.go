package privkey

import (
	"bytes"
	"encoding/binary"
	"unicode/utf16"
	"unicode/utf8"
)

// plainText returns a copy of data as it would be in UTF-8, with line feeds
// between lines, or nil if data is binary. Windows writes a byte order mark in
// front, and UTF-16 when PowerShell redirects an output.
func plainText(data []byte) ([]byte, error) {
	var text []byte
	switch {
	case bytes.HasPrefix(data, []byte{0xef, 0xbb, 0xbf}):
		text = bytes.Clone(data[3:])
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}):
		text = fromUTF16(data[2:], binary.LittleEndian)
	case bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		text = fromUTF16(data[2:], binary.BigEndian)
	default:
		text = bytes.Clone(data)
	}
	if bytes.IndexFunc(text, isBinary) >= 0 {
		clear(text)
		return nil, oldBinary(data)
	}
	// In place, as ReplaceAll would leave copies.
	lines := text[:0]
	for i, c := range text {
		switch {
		case c != '\r':
			lines = append(lines, c)
		case i+1 == len(text) || text[i+1] != '\n':
			lines = append(lines, '\n')
		}
	}
	clear(text[len(lines):])
	return lines, nil
}

// isBinary reports characters that no text has; every DER encoding of a key has
// some.
func isBinary(r rune) bool { return r < ' ' && !bytes.ContainsRune([]byte("\t\n\v\f\r\x1b"), r) }

func fromUTF16(data []byte, order binary.ByteOrder) []byte {
	units := make([]uint16, len(data)/2)
	for i := range units {
		units[i] = order.Uint16(data[2*i:])
	}
	runes := utf16.Decode(units)
	defer clear(units)
	defer clear(runes)
	text := make([]byte, 0, utf8.UTFMax*len(runes))
	for _, r := range runes {
		text = utf8.AppendRune(text, r)
	}
	return text
}

// oldBinary recognises binary files by their first octets.
func oldBinary(data []byte) error {
	if bytes.HasPrefix(data, []byte("SSH PRIVATE KEY FILE FORMAT 1.1\n")) {
		return useless("SSH 1 key", "it is of the first version of the protocol, which is long gone")
	}
	return nil
}
