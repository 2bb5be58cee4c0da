package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// parentWords names the storage key of a key file. short is for tables.
func parentWords(k *keyfile.TPMKey) (short, long string) {
	primary := "P-256"
	if k.RSAParent {
		primary = "RSA 2048"
	}
	name := ""
	switch k.Parent {
	case keyfile.ParentOwner:
		name = "owner"
	case keyfile.ParentEndorsement:
		name = "endorsement"
	case keyfile.ParentPlatform:
		name = "platform"
	case keyfile.ParentNull:
		name = "null"
	default:
		if k.Parent>>24 == 0x81 {
			short = fmt.Sprintf("%#x", k.Parent)
			return short, "the persistent key at " + short
		}
		// 0 and transient handles are written by others for the owner's.
		return "owner", fmt.Sprintf("the %s storage key of the owner hierarchy (written as %#x)", primary, k.Parent)
	}
	return name, fmt.Sprintf("the %s storage key of the %s hierarchy (%#x)", primary, name, k.Parent)
}

// keyName is the name of a key file without what is added to it: .tpm, or
// .wrapped.tpm for a key that is on its way to another machine.
func keyName(path string) string {
	if name, ok := strings.CutSuffix(path, wrappedSuffix); ok {
		return name
	}
	return strings.TrimSuffix(path, ".tpm")
}

// wrappedSuffix ends the names of keys for other machines.
const wrappedSuffix = ".wrapped.tpm"

// publicFile is where the public key of a key file is.
func publicFile(path string) string { return keyName(path) + ".pub" }

// authorizedKey is the line of the .pub file.
func authorizedKey(pub ssh.PublicKey, comment string) []byte {
	line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(pub)), "\n")
	if comment != "" {
		line += " " + comment
	}
	return []byte(line + "\n")
}

// commentFor is the comment of a key: that in its .pub file if it is there and
// of the same key, else the description in the key file.
func commentFor(path string, key *keyfile.TPMKey, public ssh.PublicKey) string {
	if comment, err := commentBeside(publicFile(path), public); err == nil {
		return comment
	}
	return key.DisplayDescription()
}

// commentBeside is the comment in a public key file, which must be of this key.
func commentBeside(path string, public ssh.PublicKey) (string, error) {
	data, err := readSmall(path)
	if err != nil {
		return "", naming(path, err)
	}
	found, comment, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return "", fmt.Errorf("%s is no public key", plain(path))
	}
	if !bytes.Equal(found.Marshal(), public.Marshal()) {
		return "", fmt.Errorf("%s is the public key of another key", plain(path))
	}
	return plain(comment), nil
}

// readSmall reads a regular file of at most 64 KiB, and never waits for a FIFO.
func readSmall(path string) ([]byte, error) {
	const most = 64 << 10
	data, err := keyfile.ReadRegular(path, most+1)
	if err == nil && len(data) > most {
		return nil, errors.New("too big")
	}
	return data, err
}

// readKey reads a key file and its public key in SSH's form.
func readKey(path string) (*keyfile.TPMKey, ssh.PublicKey, error) {
	key, err := keyfile.ReadFile(path)
	if err != nil {
		err = naming(path, err)
		if beside, ok := keyFileBeside(path); ok {
			err = withHint(err, "the key file is %s", shQuote(beside))
		}
		return nil, nil, err
	}
	public, err := ssh.NewPublicKey(key.Public.Key)
	if err != nil {
		return nil, nil, naming(path, err)
	}
	return key, public, nil
}

// keyFileBeside is the key file of which path is the public key, or the name as
// keygen's -f and ssh-keygen have it.
func keyFileBeside(path string) (string, bool) {
	beside := keyName(strings.TrimSuffix(path, ".pub")) + ".tpm"
	return beside, beside != path && exists(beside)
}

// naming puts the file's name before an error that does not have it.
func naming(path string, err error) error {
	// A short name may be part of another word, and a long one of several.
	text := " " + strings.Map(func(r rune) rune {
		if strings.ContainsRune(`:;,"'`, r) {
			return ' '
		}
		return r
	}, err.Error()) + " "
	if strings.Contains(text, " "+path+" ") || strings.Contains(err.Error(), ": "+path+":") {
		return err
	}
	return fmt.Errorf("%s: %w", plain(path), err)
}
