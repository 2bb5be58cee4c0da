package keyfile

import (
	"bytes"
	"encoding/base64"
	"fmt"
)

const (
	pemType   = "TSS2 PRIVATE KEY"
	pemBegin  = "-----BEGIN " + pemType + "-----"
	pemEnd    = "-----END " + pemType + "-----"
	pemLegacy = "-----BEGIN TSS2 KEY BLOB-----"
	pemTPM12  = "-----BEGIN TSS KEY BLOB-----"
)

// decodePEM returns the content of the only TSS2 PRIVATE KEY block in data, and where
// the lines of the block start and end. Unlike encoding/pem it never skips a damaged
// block, and its errors name the line.
func decodePEM(data []byte) (der []byte, start, end int, err error) {
	var body []byte
	begin, n, offset := 0, 0, 0 // begin and n are lines, from 1
	for line := range bytes.Lines(data) {
		n++
		trimmed := bytes.TrimRight(line, " \t\r\n")
		switch inside := begin > 0 && end == 0; {
		case string(trimmed) == pemBegin && begin > 0:
			return nil, 0, 0, malformedLine(n, "a second %s block, one is allowed", pemType)
		case string(trimmed) == pemBegin:
			begin, start = n, offset
		case string(trimmed) == pemEnd && inside:
			end = offset + len(line)
		case inside && bytes.IndexByte(trimmed, ':') >= 0:
			return nil, 0, 0, malformedLine(n, "a header, none is allowed: the TPM encrypts the key, not the file")
		case inside:
			body = append(body, trimmed...)
		}
		offset += len(line)
	}
	switch {
	case begin == 0:
		return nil, 0, 0, noBlock(data)
	case end == 0:
		return nil, 0, 0, malformedLine(begin, "no END line for this block")
	}
	if der, err = base64.StdEncoding.AppendDecode(nil, body); err != nil {
		return nil, 0, 0, malformedLine(begin, "the block is not base64: %v", err)
	}
	return der, start, end, nil
}

// noBlock returns [ErrLegacy] for old formats, [ErrNoKey] for all other files.
func noBlock(data []byte) error {
	switch {
	case bytes.Contains(data, []byte(pemLegacy)):
		return fmt.Errorf("%w: TSS2 KEY BLOB, of openssl_tpm2_engine before 2018", ErrLegacy)
	case bytes.Contains(data, []byte(pemTPM12)):
		return fmt.Errorf("%w: TSS KEY BLOB, a key of a TPM 1.2", ErrLegacy)
	}
	return ErrNoKey
}

func malformedLine(line int, format string, args ...any) error {
	return fmt.Errorf("%w: line %d: %s", ErrFormat, line, fmt.Sprintf(format, args...))
}
