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

// hasBlock is the cheap look that tells most other files from key files.
func hasBlock(data []byte) bool {
	return bytes.Contains(data, []byte(pemBegin))
}

// decodePEM returns the content of the one TSS2 PRIVATE KEY block in data.
// Unlike encoding/pem it never passes over a damaged block, and says which
// line is wrong.
func decodePEM(data []byte) ([]byte, error) {
	var body []byte
	var begin, end int // lines, from 1
	for n, line := range bytes.Split(data, []byte("\n")) {
		line = bytes.TrimRight(line, " \t\r")
		switch inside := begin > 0 && end == 0; {
		case string(line) == pemBegin && begin > 0:
			return nil, malformedLine(n+1, "a second %s block, one is allowed", pemType)
		case string(line) == pemBegin:
			begin = n + 1
		case string(line) == pemEnd && inside:
			end = n + 1
		case inside && bytes.IndexByte(line, ':') >= 0:
			return nil, malformedLine(n+1, "a header, none is allowed: the TPM encrypts the key, not the file")
		case inside:
			body = append(body, line...)
		}
	}
	switch {
	case begin == 0:
		return nil, noBlock(data)
	case end == 0:
		return nil, malformedLine(begin, "no END line for this block")
	}
	return decodeBase64(body, begin)
}

func decodeBase64(body []byte, line int) ([]byte, error) {
	der := make([]byte, base64.StdEncoding.DecodedLen(len(body)))
	n, err := base64.StdEncoding.Decode(der, body)
	if err != nil {
		return nil, malformedLine(line, "the block is not base64: %v", err)
	}
	return der[:n], nil
}

// noBlock tells old formats from files that have nothing to do with a TPM.
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
