package keyfile

import (
	"bytes"
	"fmt"
)

// MarshalInto is [TPMKey.Marshal] for a key that takes the place of another in
// the content of its file: text around the block stays, as it was.
func (k *TPMKey) MarshalInto(file []byte) ([]byte, error) {
	block, err := k.Marshal()
	if err != nil {
		return nil, err
	}
	if _, err := decodePEM(file); err != nil {
		return nil, fmt.Errorf("write key file: %w", err)
	}
	start, end := blockLines(file)
	data := append(append(bytes.Clone(file[:start]), block...), file[end:]...)
	if len(data) > maxFile {
		return nil, fmt.Errorf("write key file: %w: %d octets, at most %d are allowed", ErrFormat, len(data), maxFile)
	}
	return data, nil
}

// blockLines returns where the lines of the block begin and end, in what decodePEM
// has read.
func blockLines(data []byte) (start, end int) {
	offset, begun := 0, false
	for line := range bytes.Lines(data) {
		switch string(bytes.TrimRight(line, " \t\r\n")) {
		case pemBegin:
			start, begun = offset, true
		case pemEnd:
			if begun {
				return start, offset + len(line)
			}
		}
		offset += len(line)
	}
	return start, offset
}
