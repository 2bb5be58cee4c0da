package tpmkey

import (
	"cmp"
	"context"
	"crypto"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// Algorithm is the type and size of a new key.
type Algorithm int

// The algorithms that SSH and TPM 2.0 have in common.
const (
	ECDSAP256 Algorithm = iota + 1
	ECDSAP384
	ECDSAP521
	RSA2048
	RSA3072
	RSA4096
)

// algorithms describes the algorithms.
var algorithms = map[Algorithm]struct {
	name  string
	bits  int              // of the field or of the modulus
	curve tpm2.TPMECCCurve // 0 for RSA
}{
	ECDSAP256: {"ECDSA P-256", 256, tpm2.TPMECCNistP256},
	ECDSAP384: {"ECDSA P-384", 384, tpm2.TPMECCNistP384},
	ECDSAP521: {"ECDSA P-521", 521, tpm2.TPMECCNistP521},
	RSA2048:   {"RSA 2048", 2048, 0},
	RSA3072:   {"RSA 3072", 3072, 0},
	RSA4096:   {"RSA 4096", 4096, 0},
}

// String returns the algorithm as "ECDSA P-256" or "RSA 2048".
func (a Algorithm) String() string {
	return cmp.Or(algorithms[a].name, fmt.Sprintf("algorithm %d", int(a)))
}

// Bits returns the size of the curve's field or of the modulus, in bits. It is 0 for
// an unknown algorithm.
func (a Algorithm) Bits() int { return algorithms[a].bits }

// Template describes a new key.
type Template struct {
	Algorithm Algorithm
	// Auth is the PIN as typed; empty for none. The TPM's lockout protects a key
	// with a PIN. A key without a PIN is exempt from the lockout, so that wrong
	// PINs for other keys do not stop it.
	Auth []byte
	// Parent is the handle of the storage key: 0 for the owner hierarchy, a
	// hierarchy (keyfile.ParentOwner, …), which means its primary storage key, or
	// a persistent storage key 0x81xxxxxx.
	Parent uint32
	// ParentName is the Name that the storage key must have, nil for any. If it
	// has a different one, Create fails with a [ParentChangedError] before
	// anything about the new key has crossed the bus.
	ParentName []byte
	// PCRs, 0 to 23 of the SHA-256 bank, bind the key to their current values: it
	// signs only while they have these values.
	PCRs []int
}

// Create makes a key inside the TPM and returns it wrapped by its parent. It leaves
// nothing in the TPM. The PIN crosses the bus encrypted.
//
// If the owner hierarchy has a password and the key is for the owner hierarchy, it is
// created under the storage key at 0x81000001, if there is one, and its file names
// that as its parent.
//
// Errors: [UnsupportedError], [ErrOwnerAuth], [ErrNoParent], [ParentChangedError], a
// [tpm2.TPMRC] for other refusals of the TPM, and the error from opening the TPM.
func (t *TPM) Create(ctx context.Context, tm Template) (file *keyfile.TPMKey, err error) {
	err = t.underParent(ctx, tm.Parent, func(l *link, sk storageKey) (err error) {
		file, err = tm.create(t, l, sk)
		return err
	})
	return file, err
}

// supported refuses an algorithm that the TPM does not have, and names those that it
// has.
func supported(l *link, a Algorithm) error {
	if _, known := algorithms[a]; !known {
		return fmt.Errorf("no such algorithm: %d", a)
	}
	ok, err := hasAlgorithm(l, a)
	if ok || err != nil {
		return err
	}
	list, err := supportedAlgorithms(l)
	if err != nil {
		return err
	}
	e := &UnsupportedError{What: a.String()}
	for _, has := range list {
		e.Supported = append(e.Supported, has.String())
	}
	return e
}

// create runs TPM2_Create (TPM 2.0 Part 3, 12.1) under a storage key.
func (tm Template) create(t *TPM, l *link, sk storageKey) (file *keyfile.TPMKey, err error) {
	if err := supported(l, tm.Algorithm); err != nil {
		return nil, err
	}
	value := authValue(tm.Auth, crypto.SHA256)
	defer clear(value)
	public := tm.Algorithm.public(len(value) == 0)
	var policy []keyfile.Policy
	if len(tm.PCRs) > 0 {
		if policy, err = tm.policy(l, &public); err != nil {
			return nil, err
		}
	}
	err = t.withSession(l, sk, tm.ParentName, func(s *session) error {
		return t.withParent(l, sk, func(p *parent) error {
			if err := l.alive(); err != nil {
				return err
			}
			rsp, err := execute(l, "TPM2_Create", tpm2.Create{
				ParentHandle: tpm2.AuthHandle{Handle: p.handle, Name: p.name, Auth: s.use(nil, continueSession|decryptSession)},
				InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
					UserAuth: tpm2.TPM2BAuth{Buffer: value},
				}},
				InPublic: tpm2.New2B(public),
			})
			if err != nil {
				return fmt.Errorf("creating the key under %v: %w", sk, err)
			}
			file, err = keyfile.NewLoadable(tpm2.Marshal(rsp.OutPublic), tpm2.Marshal(rsp.OutPrivate), uint32(sk.handle), len(value) == 0)
			if err == nil {
				file.Policy = policy
			}
			return err
		})
	})
	return file, err
}

// policy returns the policy commands of a key that is bound to PCRs, in the order
// that create_tpm2_key writes. It writes their digest into the public area.
func (tm Template) policy(l *link, public *tpm2.TPMTPublic) ([]keyfile.Policy, error) {
	s := keyfile.PCRSelection{Hash: uint16(tpm2.TPMAlgSHA256), PCRs: slices.Compact(slices.Sorted(slices.Values(tm.PCRs)))}
	if s.PCRs[0] < 0 || s.PCRs[len(s.PCRs)-1] > 23 {
		return nil, fmt.Errorf("PCRs %v: only 0 to 23 exist", s.PCRs)
	}
	digest, err := pcrDigest(l, crypto.SHA256, []keyfile.PCRSelection{s})
	if err != nil {
		return nil, err
	}
	var list []keyfile.Policy
	if len(tm.Auth) > 0 {
		list = append(list, keyfile.Policy{CommandCode: uint32(tpm2.TPMCCPolicyAuthValue)})
	}
	list = append(list, s.Policy(digest))
	steps, err := newSteps(list, crypto.SHA256)
	public.AuthPolicy.Buffer = stepsDigest(crypto.SHA256, make([]byte, crypto.SHA256.Size()), steps)
	public.ObjectAttributes.UserWithAuth = false
	return list, err
}

// public returns the public area of a new key. RSA keys may also decrypt:
// rsa-sha2-512 needs it in a TPM without SHA-512.
func (a Algorithm) public(noDA bool) tpm2.TPMTPublic {
	p := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, SignEncrypt: true, NoDA: noDA,
		},
	}
	if curve := algorithms[a].curve; curve != 0 {
		p.Type = tpm2.TPMAlgECC
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve})
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
		return p
	}
	p.Type = tpm2.TPMAlgRSA
	p.ObjectAttributes.Decrypt = true
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: tpm2.TPMKeyBits(a.Bits())})
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	return p
}
