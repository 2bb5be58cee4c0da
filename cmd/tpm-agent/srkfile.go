package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// target is a storage key of another machine's TPM, from a file.
type target struct {
	key    *tpmkey.StorageKey
	handle uint32 // as the file has it; 0 if it does not say
}

// readTarget reads a storage key: what `tpm-agent srk` prints, a public key in
// PEM form or a TPM2B_PUBLIC.
func readTarget(path string) (*target, error) {
	data, err := readSmall(path)
	if err != nil {
		return nil, naming(path, err)
	}
	t, err := parseTarget(data)
	if err != nil {
		return nil, withHint(naming(path, err), "tpm-agent srk prints the storage key, on the machine that is to have the key")
	}
	return t, nil
}

func parseTarget(data []byte) (*target, error) {
	if bytes.Contains(data, []byte("-----BEGIN ")) {
		return parseTargetPEM(data)
	}
	if public, _, _, _, err := ssh.ParseAuthorizedKey(data); err == nil {
		return nil, fmt.Errorf("it is an SSH public key (%s), not a storage key", public.Type())
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("it is empty")
	}
	if utf8.Valid(data) && bytes.IndexByte(data, 0) < 0 {
		return nil, errors.New("it is a text without a PEM block; a TPM2B_PUBLIC is binary")
	}
	key, err := tpmkey.ParseStorageKey(data)
	return &target{key: key}, err
}

func parseTargetPEM(data []byte) (*target, error) {
	block, rest := pem.Decode(data)
	head, _, _ := bytes.Cut(data, []byte("-----BEGIN "))
	switch {
	case block == nil:
		return nil, errors.New("its PEM block is damaged or not whole")
	case strings.Contains(block.Type, "PRIVATE KEY"):
		return nil, fmt.Errorf("it is a private key (%s), not the public storage key of a TPM", plain(block.Type))
	case block.Type != "PUBLIC KEY":
		return nil, fmt.Errorf("it is a %s, not a PUBLIC KEY", plain(block.Type))
	case bytes.Contains(rest, []byte("-----BEGIN ")):
		return nil, errors.New("there is more than one PEM block in it")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("its public key: %w", err)
	}
	key, err := tpmkey.StorageKeyOf(public)
	if err != nil {
		return nil, err
	}
	t := &target{key: key}
	return t, t.readHead(string(head))
}

// readHead reads the lines of `tpm-agent srk` that matter. The fingerprint
// there protects from mistakes, not from liars.
func (t *target) readHead(head string) error {
	for line := range strings.Lines(head) {
		line = strings.TrimSpace(line)
		if value, ok := strings.CutPrefix(line, handlePrefix); ok {
			handle, err := strconv.ParseUint(value, 0, 32)
			if err != nil {
				return fmt.Errorf("its line %q: no handle", line)
			}
			t.handle = uint32(handle)
		}
		if value, ok := strings.CutPrefix(line, "Fingerprint: "); ok && value != storageFingerprint(t.key) {
			return fmt.Errorf("it says that the fingerprint is %s, but it is %s", value, storageFingerprint(t.key))
		}
	}
	return nil
}
