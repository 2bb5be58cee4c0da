// Command gokeyfiles makes and uses key files with go-tpm-keyfiles, the library
// of ssh-tpm-agent and of others in Go. It is a module of its own, so that
// tpm-agent does not depend on that.
//
//	gokeyfiles make SOCKET TYPE BITS PASSWORD PARENT [DESCRIPTION]
//	gokeyfiles wrap STORAGEKEY TYPE BITS PASSWORD
//	gokeyfiles import SOCKET FILE
//	gokeyfiles sign SOCKET FILE PASSWORD
//
// SOCKET is swtpm's, STORAGEKEY a TPM2B_PUBLIC, TYPE ecdsa or rsa, PARENT a
// handle. Key files are written to standard output; sign verifies what it has
// signed.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"strconv"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gokeyfiles:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) >= 6 && args[0] == "make":
		return create(args[1], args[2:])
	case len(args) == 5 && args[0] == "wrap":
		return wrap(args[1], args[2:])
	case len(args) == 3 && args[0] == "import":
		return bringIn(args[1], args[2])
	case len(args) == 4 && args[0] == "sign":
		return sign(args[1], args[2], args[3])
	}
	return errors.New("usage: see the source")
}

func create(socket string, args []string) error {
	bits, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	parent, err := strconv.ParseUint(args[3], 0, 32)
	if err != nil {
		return err
	}
	algorithm := tpm2.TPMAlgECC
	if args[0] == "rsa" {
		algorithm = tpm2.TPMAlgRSA
	}
	options := []keyfile.TPMKeyOption{keyfile.WithParent(tpm2.TPMHandle(parent))}
	if args[2] != "" {
		options = append(options, keyfile.WithUserAuth([]byte(args[2])))
	}
	if len(args) > 4 {
		options = append(options, keyfile.WithDescription(args[4]))
	}
	tpm, err := linuxudstpm.Open(socket)
	if err != nil {
		return err
	}
	defer tpm.Close()
	key, err := keyfile.NewLoadableKey(tpm, algorithm, bits, nil, options...)
	if err != nil {
		return err
	}
	return keyfile.Encode(os.Stdout, key)
}

func wrap(storageKey string, args []string) error {
	data, err := os.ReadFile(storageKey)
	if err != nil {
		return err
	}
	sized, err := tpm2.Unmarshal[tpm2.TPM2BPublic](data)
	if err != nil {
		return err
	}
	public, err := sized.Contents()
	if err != nil {
		return err
	}
	private, err := newPrivate(args[0], args[1])
	if err != nil {
		return err
	}
	options := []keyfile.TPMKeyOption{keyfile.WithParent(tpm2.TPMRHOwner)}
	if args[2] != "" {
		options = append(options, keyfile.WithUserAuth([]byte(args[2])))
	}
	key, err := keyfile.NewImportablekey(public, private, options...)
	if err != nil {
		return err
	}
	return keyfile.Encode(os.Stdout, key)
}

// newPrivate makes a key in memory, of the types that the library takes.
func newPrivate(keyType, bits string) (any, error) {
	if keyType == "rsa" {
		n, err := strconv.Atoi(bits)
		if err != nil {
			return nil, err
		}
		key, err := rsa.GenerateKey(rand.Reader, n)
		if err != nil {
			return nil, err
		}
		return *key, nil
	}
	curve := map[string]elliptic.Curve{"256": elliptic.P256(), "384": elliptic.P384(), "521": elliptic.P521()}[bits]
	if curve == nil {
		return nil, fmt.Errorf("there is no curve of %s bits", bits)
	}
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, err
	}
	return *key, nil
}

func read(file string) (*keyfile.TPMKey, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return keyfile.Decode(data)
}

func bringIn(socket, file string) error {
	key, err := read(file)
	if err != nil {
		return err
	}
	tpm, err := linuxudstpm.Open(socket)
	if err != nil {
		return err
	}
	defer tpm.Close()
	loadable, err := keyfile.ImportTPMKey(tpm, key, nil)
	if err != nil {
		return err
	}
	return keyfile.Encode(os.Stdout, loadable)
}

func sign(socket, file, password string) error {
	key, err := read(file)
	if err != nil {
		return err
	}
	tpm, err := linuxudstpm.Open(socket)
	if err != nil {
		return err
	}
	defer tpm.Close()
	signer, err := key.Signer(tpm, nil, []byte(password))
	if err != nil {
		return err
	}
	public, err := key.PublicKey()
	if err != nil {
		return err
	}
	digest := make([]byte, crypto.SHA256.Size())
	rand.Read(digest)
	signature, err := signer.Sign(rand.Reader, digest, crypto.SHA256)
	if err != nil {
		return err
	}
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(public, digest, signature) {
			return errors.New("the signature does not verify")
		}
		return nil
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, digest, signature)
	}
	return fmt.Errorf("a public key %T", public)
}
